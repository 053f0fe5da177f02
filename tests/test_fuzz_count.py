"""What `make fuzz` counts, and that too little of it is a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
from hypothesis import given, settings, strategies as st
ten = settings(max_examples=10, deadline=None, database=None)

@ten
@given(st.integers())
def test_one(number): pass

@ten
@given(st.text())
def test_two(text): pass

def test_of_another_kind(): pass
"""


@pytest.mark.parametrize("least", [20, 21])
def test_examples_are_counted(tmp_path, least):
    (tmp_path / "test_it.py").write_text(TESTS)
    folder = str(tmp_path)
    code = (
        "import sys, pytest, tests.fuzz_count as plugin\n"
        f"plugin.LEAST = {least}\n"
        f"sys.exit(pytest.main(['-q', '--rootdir', {folder!r}, {folder!r}], [plugin]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "20 examples in 2 tests of hypothesis" in done.stdout, done.stdout + done.stderr
    assert done.returncode == (least > 20)
    assert ("; 21 are wanted" in done.stdout) == (least > 20)
