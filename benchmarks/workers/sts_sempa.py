"""The command `sempa-mlx eval sts` on a folder of sets."""

import json
import sys
from pathlib import Path

from worker import read_job, write_report

from sempa_mlx.__main__ import run

job = read_job()
out = Path(job["folder"], "sempa.json")
out.unlink(missing_ok=True)
line = ["--quiet", "eval", "sts", "--model", job["base"], "--method", "prompteol"]
sys.argv = ["sempa-mlx", *line, "--data", job["data"], "--out", str(out)]
try:
    run()
except SystemExit as ended:
    if ended.code:
        raise
(result,) = json.loads(out.read_text())["results"]
write_report({"scores": result["scores"]})
