"""Give mlx's CPU backend a fast BLAS on Linux.

The Linux CPU wheel of mlx is linked to the reference BLAS: a few GFLOP/s. An OpenBLAS loaded with
global symbols *before* the first `import mlx.core` takes its place, 30 to 60 times faster. Two
copies are tried: the wheel `cmeel-openblas` (extra `cpu`), then the system's. NumPy's and SciPy's
own copies cannot serve, because their symbols carry prefixes.

The wheel wants `libgfortran.so.5`, which bare systems lack. mlx's wheel bundles that very library
under another internal name; a temporary copy with the plain name put back satisfies the loader.
"""

import ctypes
import functools
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

SYSTEM_NAMES = ("libopenblas.so.0", "libopenblas.so")


def preload_blas_before_mlx() -> None:
    """Load an OpenBLAS as soon as mlx is imported; what needs no mlx, such as help, does not wait.

    Warns if mlx has been imported already and computes on the CPU.
    """
    if "mlx.core" in sys.modules:
        preload_blas()
    else:
        sys.meta_path.insert(0, _BeforeMlx())


class _BeforeMlx:
    """Sees mlx being looked for, and leaves finding it to the others."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Load the BLAS once, for the first part of mlx."""
        if fullname in ("mlx", "mlx.core"):
            sys.meta_path.remove(self)
            preload_blas()


@functools.cache
def preload_blas() -> str | None:
    """Load an OpenBLAS for mlx, once, on Linux only.

    Returns:
        The path or name of the library that was loaded, or None where none is needed, none was
        found, or mlx had been imported already (then it keeps the BLAS it has).
    """
    if sys.platform != "linux":
        return None
    if "mlx.core" in sys.modules:
        _warn_if_slow(sys.modules["mlx.core"])
        return None
    wheel = _wheel_library()
    if wheel is not None and _load(str(wheel)):
        return str(wheel)
    if wheel is not None and _load_bundled_gfortran() and _load(str(wheel)):
        return str(wheel)
    return next((name for name in SYSTEM_NAMES if _load(name)), None)


def _warn_if_slow(mlx: ModuleType) -> None:
    if mlx.default_device().type == mlx.cpu:
        warnings.warn(
            "mlx was imported before sempa_mlx and keeps its slow CPU BLAS; import sempa_mlx first",
            stacklevel=5,
        )


def _load(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _wheel_library() -> Path | None:
    """Find the library of `cmeel-openblas` beside the package `cmeel`, without importing it."""
    spec = find_spec("cmeel")
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin).parents[1] / "cmeel.prefix" / "lib" / "libopenblas.so.0"
    return library if library.exists() else None


def _load_bundled_gfortran() -> bool:
    """Load the libgfortran of mlx's wheel under the name `libgfortran.so.5`."""
    spec = find_spec("mlx")
    for root in spec.submodule_search_locations or [] if spec else []:
        folder = Path(root).parent / "mlx_cpu.libs"
        for dependency in folder.glob("libquadmath-*.so*"):
            _load(str(dependency))
        for library in folder.glob("libgfortran-*.so.5*"):
            return _load_renamed(library, b"libgfortran.so.5")
    return False


def _load_renamed(library: Path, plain_name: bytes) -> bool:
    """Load a copy of `library` whose internal name (SONAME) is cut back to `plain_name`."""
    bundled_name = library.name.encode() + b"\0"
    renamed = plain_name.ljust(len(bundled_name), b"\0")
    data = library.read_bytes()
    if len(plain_name) >= len(bundled_name) or bundled_name not in data:
        return False
    data = data.replace(bundled_name, renamed)
    copy = os.memfd_create(plain_name.decode())  # a full disk is no reason to be slow
    try:
        # Half a library would be mapped, and end the process.
        return os.write(copy, data) == len(data) and _load(f"/proc/self/fd/{copy}")
    except OSError:
        return False
    finally:
        os.close(copy)
