"""A BLAS is chosen once a process, before mlx is imported: each test is a process of its own."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from sempa_mlx import blas

ROOT = Path(__file__).resolve().parents[1]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="BLAS is preloaded on Linux only")


# The package loads a BLAS when it is imported; this gives the module alone.
ALONE = """
import json, sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
spec = spec_from_file_location("blas", "sempa_mlx/blas.py")
blas = module_from_spec(spec)
spec.loader.exec_module(blas)
assert "sempa_mlx" not in sys.modules
"""


def run(code):
    """Run Python code after `ALONE`; return the JSON it prints."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


BEFORE_MLX = """
found = blas.preload_blas()
assert "mlx.core" not in sys.modules
import ctypes
fast = hasattr(ctypes.CDLL(None), "openblas_get_num_threads")
import mlx.core as mx
import numpy as np
left = np.random.default_rng(0).normal(size=(65, 130)).astype(np.float32)
product = np.array(mx.array(left) @ mx.array(left.T))
error = float(np.abs(product - left.astype(float) @ left.T.astype(float)).max())
print(json.dumps([found, fast, error, blas.preload_blas() == found]))
"""


@on_linux
def test_before_mlx_a_library_is_loaded_or_none_is_found():
    found, fast, error, again = run(BEFORE_MLX)
    assert found is None or Path(found).name.startswith("libopenblas.so")
    assert fast == (found is not None)
    assert error < 1e-3
    assert again  # the answer is kept, although mlx is there by now


@on_linux
@pytest.mark.skipif(find_spec("cmeel") is None, reason="cmeel-openblas is not installed")
def test_the_wheels_library_is_the_first_choice():
    found, fast, _error, _again = run(BEFORE_MLX)
    assert fast
    assert "cmeel.prefix" in found


@on_linux
def test_after_mlx_it_is_too_late_and_the_user_is_told():
    code = """
import warnings
import mlx.core as mx
mx.set_default_device(mx.cpu)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    answer = blas.preload_blas()
print(json.dumps([answer, [str(warning.message) for warning in caught]]))
"""
    answer, warned = run(code)
    assert answer is None
    assert len(warned) == 1
    assert "import sempa_mlx first" in warned[0]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_bring_their_own(platform):
    code = f"sys.platform = {platform!r}\nprint(json.dumps(blas.preload_blas()))"
    assert run(code) is None


@on_linux
def test_without_any_library_mlx_works_as_it_is():
    code = """
blas._wheel_library = lambda: None
blas.SYSTEM_NAMES = ("libnothing-of-that-name.so",)
found = blas.preload_blas()
import mlx.core as mx
print(json.dumps([found, (mx.ones((3, 4)) @ mx.ones((4, 2))).sum().item()]))
"""
    assert run(code) == [None, 24.0]


@on_linux
def test_a_broken_library_is_passed_over(tmp_path):
    library = tmp_path / "libopenblas.so.0"
    library.write_bytes(b"\x7fELF, but no more")
    code = f"""
blas._wheel_library = lambda: Path({str(library)!r})
blas.SYSTEM_NAMES = ()
print(json.dumps(blas.preload_blas()))
"""
    assert run(code) is None


@on_linux
def test_a_library_that_does_not_spell_its_name_is_not_renamed(tmp_path):
    library = tmp_path / "libgfortran-040039e1.so.5.0.0"
    library.write_bytes(b"no name in here")
    code = f"print(json.dumps(blas._load_renamed(Path({str(library)!r}), b'libgfortran.so.5')))"
    assert run(code) is False


@on_linux
@pytest.mark.skipif(not hasattr(blas.os, "memfd_create"), reason="Linux only")
def test_a_library_that_cannot_be_copied_is_not_loaded(tmp_path, monkeypatch):
    library = tmp_path / "libgfortran-040039e1.so.5"
    library.write_bytes(b"..." + library.name.encode() + b"\0...")

    def refuse(_file, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blas.os, "write", refuse)
    assert not blas._load_renamed(library, b"libgfortran.so.5")


def test_the_package_loads_it_with_mlx():
    code = """
import ctypes
import sempa_mlx
from sempa_mlx.blas import preload_blas
is_there = lambda: hasattr(ctypes.CDLL(None), "openblas_get_num_threads")
before = is_there()
import mlx.core
after = is_there()
print(json.dumps([before, after, preload_blas()]))
"""
    before, after, library = run(code)
    assert not before, "help does not wait for it"
    assert after == (library is not None)
    assert library == run("print(json.dumps(blas.preload_blas()))")


# In this process: paths that a machine takes where a package is missing


def test_without_the_wheels_there_is_nothing_to_load(monkeypatch):
    monkeypatch.setattr(blas, "find_spec", lambda _name: None)
    assert blas._wheel_library() is None
    assert blas._load_bundled_gfortran() is False


@on_linux
@pytest.mark.parametrize("loads", [[True], [False, True]])
def test_a_wheel_that_needs_gfortran_is_tried_again_with_mlxs_own(monkeypatch, loads):
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    tries = iter(loads)
    monkeypatch.setattr(blas, "_wheel_library", lambda: Path("libopenblas.so.0"))
    monkeypatch.setattr(blas, "_load", lambda _library: next(tries))
    monkeypatch.setattr(blas, "_load_bundled_gfortran", lambda: True)
    assert blas.preload_blas.__wrapped__() == "libopenblas.so.0"


@on_linux
def test_an_mlx_that_was_first_keeps_its_blas_and_is_told_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx.core", fake_mlx("cpu"))
    with pytest.warns(UserWarning, match="import sempa_mlx first"):
        assert blas.preload_blas.__wrapped__() is None
    monkeypatch.setitem(sys.modules, "mlx.core", fake_mlx("gpu"))
    assert blas.preload_blas.__wrapped__() is None


def fake_mlx(device):
    return SimpleNamespace(cpu="cpu", default_device=lambda: SimpleNamespace(type=device))
