"""The program leaves torch out of its process, except where something asks for it."""

import pytest

from tests.command import write_inputs
from tests.processes import python

START = """
import sys
sys.path.insert(0, "elsewhere")
import sempa_mlx.cli_torch as cli_torch
"""
EMBED = """
from sempa_mlx.__main__ import run
try:
    run()
finally:
    import transformers
    print("torch" in sys.modules, transformers.is_torch_available(), file=sys.stderr)
"""
LATER = """
cli_torch.leave_torch_out()
{}
import transformers
import torch
print(transformers.is_torch_available())
"""
LOADED = """
import transformers
assert sys.modules["torch"] is torch
print(transformers.is_torch_available())
"""
TOO_LATE = """
import transformers
finders = [*sys.meta_path]
cli_torch.leave_torch_out()
assert sys.meta_path == finders
"""


@pytest.fixture
def here(here):
    """A folder beside something that passes for torch."""
    (here / "elsewhere" / "torch-9.0.dist-info").mkdir(parents=True)
    (here / "elsewhere" / "torch-9.0.dist-info" / "METADATA").write_text(
        "Name: torch\nVersion: 9.0"
    )
    (here / "elsewhere" / "torch.py").touch()
    return here


def done(code, *arguments):
    found = python("-c", START + code, *arguments)
    assert found.returncode == 0, found.stderr.decode()
    return found


def test_embedding_loads_no_torch(here):
    (here / "texts.txt").write_text("A man reads.\n")
    base = write_inputs(here) / "base"
    found = done(EMBED, "embed", "texts.txt", "--model", base, "-o", "vectors.npy")
    assert found.stderr.decode().splitlines()[-1] == "False False"
    assert (here / "vectors.npy").is_file()


@pytest.mark.parametrize(
    ("asked", "expected"), [("", b"False"), ("cli_torch.let_torch_in()", b"True")]
)
def test_torch_can_be_found_by_what_needs_it(asked, expected, here):
    """By transformers if that is said before it is loaded, and by all others at any time."""
    assert done(LATER.format(asked)).stdout.split() == [expected]


@pytest.mark.parametrize("step", [1, -1])
def test_torch_that_is_loaded_stays(step, here):
    before = ["import torch", "cli_torch.leave_torch_out()"][::step]
    assert done("\n".join(before) + LOADED).stdout.split() == [b"True"]


def test_nothing_changes_where_transformers_is_loaded_already(here):
    done(TOO_LATE)
