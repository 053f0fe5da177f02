import json
import os
import platform
import subprocess
import sys

import pytest

from sempa_mlx import malloc

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own settings")

FAULTS = """
import ctypes, json, resource
from sempa_mlx.malloc import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
    ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p])

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [libc.malloc(20_000_000) for _ in range(3)]
        for block in blocks:
            ctypes.memset(block, 1, 20_000_000)
        for block in blocks:
            libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
kept = keep_freed_memory()
faults()
print(json.dumps([kept, usual, faults()]))
"""


def run(**environment):
    clean = {name: value for name, value in os.environ.items() if name not in malloc.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return json.loads(done.stdout)


def test_freed_blocks_are_used_again():
    kept, usual, tuned = run()
    assert kept
    assert usual > 10_000  # pages that the system handed out, and cleared
    assert tuned < usual / 100


@pytest.mark.parametrize("name", malloc.VARIABLES)
def test_what_the_user_set_stays(name):
    kept, *_ = run(**{name: "glibc.malloc.trim_threshold=1" if "TUNABLES" in name else "1"})
    assert not kept


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not malloc.keep_freed_memory()


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda _name: object())
    for name in malloc.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not malloc.keep_freed_memory()
