"""What `make check` makes of pip-audit: unreachable data is no fault, a vulnerability is one."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent / ".ci" / "audit.py"
SAFE = {"name": "numpy", "version": "2.0", "vulns": []}
LOST = {"name": "torch", "skip_reason": "not found"}
HOLE = {"id": "CVE-1", "fix_versions": ["3.1"]}
BAD = {"name": "jinja2", "version": "3.0", "vulns": [HOLE, HOLE | {"fix_versions": []}]}


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ([SAFE], (0, ["pip-audit: 0 in 1 packages"])),
        ([SAFE, LOST], (0, ["pip-audit: 0 in 1 packages, 1 unknown to it"])),
        ([LOST, LOST], (0, ["pip-audit: skipped, its data cannot be reached"])),
        (
            [BAD, LOST],
            (
                1,
                [
                    "jinja2 3.0: CVE-1, mended in 3.1",
                    "jinja2 3.0: CVE-1, mended in no version yet",
                    "pip-audit: 2 in 1 packages, 1 unknown to it",
                ],
            ),
        ),
    ],
)
def test_packages_are_judged(audit, packages, expected):
    assert audit.judge(json.dumps({"dependencies": packages}), "") == expected


def test_a_lost_connection_is_told_from_a_failure(audit):
    lost = "requests.exceptions.ConnectionError: Max retries exceeded"
    assert audit.judge("", lost) == (0, ["pip-audit: skipped, its data cannot be reached"])
    assert audit.judge("", "TypeError: broken") == (1, ["pip-audit: failed", "TypeError: broken"])
