"""`sempa-mlx eval sts` beside the evaluation that papers use: wall time and scores of seven tasks.

    SEMPA_DATA=DIR python benchmarks/peers_sts.py --peers .venv-bench/bin/python

SEMPA_DATA holds sts_senteval/. The other side is SentEval's procedure with PromptEOL on torch:
batches of 16, task by task, head on, repeats again. Both load the same folder in float32. Ours
also bootstraps every score; that time is in.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from side_by_side import (
    Ran,
    Report,
    System,
    alternate,
    chosen,
    markdown,
    matmul_gflops,
    median,
    options,
    write,
)

TEST_SETS = ("STS1[2-6]/*.tsv", "STSB/test.tsv", "SICKR/test.tsv")


def data_folder() -> Path:
    """Return where the sets are."""
    folder = Path(os.environ.get("SEMPA_DATA", ""), "sts_senteval")
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder; let SEMPA_DATA name the one that holds it")
    return folder


def copy_sets(source: Path, target: Path, pairs: int | None) -> int:
    """Copy the test sets, or the first pairs of each file; return how many pairs that is."""
    total = 0
    for pattern in TEST_SETS:
        for path in sorted(source.glob(pattern)):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:pairs]
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text("".join(lines), encoding="utf-8")
            total += len(lines)
    return total


def figures(runs: dict[str, list[Ran]]) -> dict[str, Report]:
    """Return the medians, and how much longer the others take."""
    found: dict[str, Report] = {}
    ours = median(runs["sempa-mlx"], lambda ran: ran.seconds)
    for name, each in runs.items():
        seconds = median(each, lambda ran: ran.seconds)
        found[name] = {
            "seconds": seconds,
            "cpu_seconds": median(each, lambda ran: ran.cpu_seconds),
            "peak_gb": median(each, lambda ran: ran.peak_gb),
            "ours_over": seconds / ours,
            "scores": each[0].report["scores"],
        }
    return found


def table(found: dict[str, Report]) -> str:
    """Return the figures as a table."""
    tasks = list(found["sempa-mlx"]["scores"])
    rows = [
        [
            name,
            f"{each['seconds']:.0f} s",
            f"{each['ours_over']:.2f}x",
            f"{each['peak_gb']:.2f} GB",
            *(f"{each['scores'][task]:.2f}" for task in tasks),
        ]
        for name, each in found.items()
    ]
    return markdown(["", "time", "ours is", "memory", *tasks], rows)


def measure(arguments: argparse.Namespace) -> None:
    """Run both and write it down."""
    if arguments.quick:
        arguments.pairs, arguments.repeats = 4, 1
    threads = arguments.threads
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = data_folder()
        pairs = copy_sets(source, folder / "sts", arguments.pairs)
        job = {"folder": str(folder), "data": str(folder / "sts"), "seed": 0}
        wanted = job | {"for": "model", "model": arguments.model}
        job |= System("prepare", sys.executable, "prepare.py").run(wanted, threads).report
        both = [
            System("sempa-mlx", sys.executable, "sts_sempa.py"),
            System("SentEval on torch", arguments.peers, "sts_official.py"),
        ]
        rates = [matmul_gflops(threads)]
        runs, failed = alternate(chosen(both, arguments.only), job, arguments.repeats, threads)
        rates.append(matmul_gflops(threads))
    found = figures(runs)
    document = {
        "settings": {
            "model": arguments.model,
            "pairs": pairs,
            "repeats": arguments.repeats,
            "threads": threads,
        },
        "matmul_gflops": rates,
        "systems": found,
        "did_not_run": failed,
    }
    write(arguments.out, "peers_sts", document, [table(found)])


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, help="the first so many of each file")
    measure(parser.parse_args())
