"""What every worker does: read the job, write the report. It knows no library."""

import json
import sys
from pathlib import Path
from typing import Any

# Read at once: workers that run a command put its words in the place of their own.
JOB, REPORT = (Path(each) for each in sys.argv[1:3])


def read_job() -> dict[str, Any]:
    """Return the job."""
    job: dict[str, Any] = json.loads(JOB.read_text())
    return job


def write_report(report: dict[str, Any]) -> None:
    """Write what was found."""
    REPORT.write_text(json.dumps(report))
