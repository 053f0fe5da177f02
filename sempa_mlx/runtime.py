"""What this machine can do: device, precision, memory, speed. The one place that asks."""

import os
import platform
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

GB = 1e9
POOL = 0.1  # of memory, for the buffers that mlx frees
SMALL_POOL = 0.01  # the same where the C library keeps freed memory as well
CONTAINER_LIMITS = tuple(
    Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")
)
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


@dataclass(frozen=True, slots=True)
class Machine:
    """The device mlx computes on, and the memory it has (gigabytes)."""

    device: str
    name: str
    memory_gb: float
    cores: int


def is_gpu() -> bool:
    """Tell whether mlx computes on a GPU (Metal or CUDA) by default."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def machine() -> Machine:
    """Describe the default device."""
    info = mx.device_info(mx.default_device())
    name = str(info.get("device_name") or platform.processor() or platform.machine())
    memory = float(info.get("memory_size") or info.get("total_memory") or _system_memory())
    kind = "cpu"
    if is_gpu():
        kind = "metal" if sys.platform == "darwin" else "cuda"
    return Machine(device=kind, name=name, memory_gb=memory / GB, cores=os.cpu_count() or 1)


def _system_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit_gb() -> float:
    """Return how much memory this process may take, in GB: the device's, or a bound on it.

    Bounds are Metal's working set, a container's limit, and the shell's (`ulimit -v`); the last two
    are not of a card with memory of its own.
    """
    info = mx.device_info(mx.default_device())
    if machine().device == "cuda":
        return machine().memory_gb
    bounds = [
        machine().memory_gb * GB,
        float(info.get("max_recommended_working_set_size") or "inf"),
    ]
    bounds += [limit for limit in map(_container_limit, CONTAINER_LIMITS) if limit is not None]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        bounds.append(float(soft))
    return min(bounds) / GB


def _container_limit(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # no container, or `max`
        return None


def resolve_dtype(name: str) -> mx.Dtype:
    """Turn a dtype setting into an mlx dtype.

    `auto` is float32 on a CPU, where mlx's half-precision products are 20 to 40 times slower, and
    bfloat16 on Metal and CUDA.
    """
    if name == "auto":
        return mx.bfloat16 if is_gpu() else mx.float32
    return DTYPES[name]


def dtype_name(dtype: mx.Dtype) -> str:
    """Return the name of an mlx dtype as settings write it, such as `float32`."""
    return str(dtype).removeprefix("mlx.core.")


def peak_memory_gb() -> float:
    """Return the largest memory that arrays took so far, in GB, without freed buffers."""
    return float(mx.get_peak_memory()) / GB


def peak_process_gb() -> float:
    """Return the largest memory of this process so far, in GB; on a GPU its own is not in it."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB


def limit_cache(fraction: float = POOL) -> None:
    """Cap mlx's pool of freed buffers at a fraction of memory; it grows with every new shape."""
    mx.set_cache_limit(int(machine().memory_gb * GB * fraction))


def matmul_gflops(size: int = 2048, dtype: mx.Dtype = mx.float32, repeats: int = 3) -> float:
    """Measure a square matrix product, in GFLOP/s: the best of `repeats` timed runs."""
    left = mx.random.normal((size, size), key=mx.random.key(0)).astype(dtype)
    mx.eval(left @ left)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(left @ left)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide results."""
    found = {"python": platform.python_version()}
    for name in ("sempa-mlx", "mlx", "mlx-lm", "transformers", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def free_disk_gb(path: str = ".") -> float:
    """Return the free space of the disk that holds `path`, in gigabytes."""
    return shutil.disk_usage(path).free / GB
