"""Whether memory stays flat: a long training run and a long file, watched from outside.

    python benchmarks/soak.py --data train.jsonl.gz [--steps 300] [--lines 50000] [--out soak.json]

The commands are those a user types, each in a process of its own. Resident memory is read twice a
second. The run is cut into tenths; after the first three, which warm up, the highest memory of each
tenth should no longer rise.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sempa_mlx import runtime

PERIOD_S = 0.5
TENTHS = 10
WARM_UP = 3
PAIRS_A_STEP = 4


def watched(command: Sequence[str]) -> dict[str, object]:
    """Run a command; return its seconds and the highest resident memory (MB) of each tenth."""
    found: list[float] = []
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "sempa_mlx", *command]) as process:
        while process.poll() is None:
            found.append(resident_mb(process.pid))
            time.sleep(PERIOD_S)
    if process.returncode:
        raise SystemExit(f"`{' '.join(command)}` ended with {process.returncode}")
    return {"seconds": round(time.perf_counter() - start)} | summary(found)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process; 0 if it has just ended."""
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=False)
    return int(shown.stdout or 0) / 1024


def summary(found: Sequence[float]) -> dict[str, object]:
    """Return the peak of each tenth of the readings, and how far the last is above the fourth."""
    size = max(1, len(found) // TENTHS)
    peaks = [round(max(found[at * size : (at + 1) * size], default=0.0)) for at in range(TENTHS)]
    return {"peak_mb_by_tenth": peaks, "growth_mb": peaks[-1] - peaks[WARM_UP]}


def sentences(data: Path, number: int) -> list[str]:
    """Return distinct sentences of preference rows, in order."""
    with gzip.open(data, "rt", encoding="utf-8") as rows:
        texts = dict.fromkeys(text for row in rows for text in json.loads(row).values())
    if len(texts) < number:
        raise SystemExit(f"{data} has {len(texts)} distinct sentences, not {number}")
    return list(texts)[:number]


def measure(data: Path, steps: int, lines: int) -> dict[str, object]:
    """Train and embed, each watched; either is left out if its number is 0."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        run, text = Path(folder, "run"), Path(folder, "lines.txt")
        if steps:
            train = ["train", "--config", "sempa", "--data", str(data)]
            train += ["--iters", str(steps), "--batch-size", str(PAIRS_A_STEP)]
            train += ["--adapter-path", str(run), "--set", f"data.limit={steps * PAIRS_A_STEP}"]
            for setting in ("eval.data=demo", "eval.every=50", "eval.patience=null"):
                train += ["--set", setting]
            found["train"] = {"steps": steps, "pairs_a_step": PAIRS_A_STEP} | watched(train)
        if lines:
            # Line breaks inside a sentence would make more lines than sentences.
            rows = (" ".join(each.split()) + "\n" for each in sentences(data, lines))
            text.write_text("".join(rows), encoding="utf-8")
            found["embed"] = {"lines": lines} | watched(["embed", str(text)])
    return found | {"machine": str(runtime.machine()), "versions": runtime.package_versions()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="NLI triplets, .jsonl.gz")
    parser.add_argument("--steps", type=int, default=300, help="0: no training")
    parser.add_argument("--lines", type=int, default=50_000, help="0: no embedding")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    document = json.dumps(measure(arguments.data, arguments.steps, arguments.lines), indent=2)
    if arguments.out:
        arguments.out.write_text(document + "\n")
    sys.stdout.write(document + "\n")
