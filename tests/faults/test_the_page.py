"""docs/reliability.md: one row a fault, each with a test that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(
    r"^\| (\d+) \|.*\| (\S+\.py) \|$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE
)


def test_every_fault_has_a_row_with_its_test():
    assert [int(number) for number, _ in ROWS] == list(range(1, 26))
    assert [file for _, file in ROWS if not (ROOT / file).is_file()] == []


def test_every_test_of_a_fault_has_its_row():
    files = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/faults/test_[0-9]*.py")}
    assert files <= {file for _, file in ROWS}
