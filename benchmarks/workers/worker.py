"""What every worker does: read the job, write the report. It knows no library."""

import json
import sys
from pathlib import Path
from typing import Any


def read_job() -> dict[str, Any]:
    """Return the job."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return job


def write_report(report: dict[str, Any]) -> None:
    """Write what was found."""
    Path(sys.argv[2]).write_text(json.dumps(report))
