"""Systems side by side: every run in a process of its own, alternately, and medians of the runs.

A worker is a script that reads a job (JSON) and writes a report (JSON); its two arguments are their
files. Its process gets the same number of threads whatever library it uses, and the kernel tells
how long it took and how much memory it had at most.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORKERS = HERE / "workers"
THREAD_SETTINGS = ("OPENBLAS", "OMP", "MKL", "RAYON")
GB = 1e9
Report = dict[str, Any]


class DidNotRunError(Exception):
    """A system's process ended with an error; the message is the end of what it said."""


@dataclass(frozen=True)
class Ran:
    """One process: what it reported, and what the kernel says of it."""

    report: Report
    seconds: float
    cpu_seconds: float
    peak_gb: float


Runs = dict[str, list[Ran]]


@dataclass(frozen=True)
class System:
    """What is measured: a worker under an interpreter, and what its jobs have besides."""

    name: str
    python: str
    worker: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def run(self, job: Report, threads: int) -> Ran:
        """Run one job in a new process.

        Raises:
            DidNotRunError: it failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("job.json", "report.json")]
            files[0].write_text(json.dumps({"threads": threads, **job, **self.extra}))
            command = [self.python, str(WORKERS / self.worker), *map(str, files)]
            ran = timed(command, threads)
            return Ran(json.loads(files[1].read_text()), *ran)


def timed(command: Sequence[str], threads: int) -> tuple[float, float, float]:
    """Run a command; return its seconds, its CPU seconds, and its largest memory in GB.

    Raises:
        DidNotRunError: it failed.
    """
    environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in THREAD_SETTINGS}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise DidNotRunError(f"exit {process.returncode}: " + " | ".join(lines[-3:]))
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / GB


def alternate(
    systems: Sequence[System],
    job: Report,
    repeats: int,
    threads: int,
    after_round: Callable[[Runs, dict[str, str]], None] = lambda _runs, _failed: None,
) -> tuple[Runs, dict[str, str]]:
    """Run all systems in turn, `repeats` times; return the runs, and why others did not run.

    `after_round` gets the same of the rounds so far, so that hours of work are not lost at the end.
    """
    runs: Runs = {}
    failed: dict[str, str] = {}
    for repeat in range(repeats):
        for system in systems:
            if system.name in failed:
                continue
            try:
                ran = system.run(job, threads)
            except DidNotRunError as error:
                failed[system.name] = str(error)
                runs.pop(system.name, None)
                say(f"{system.name}: {error}")
                continue
            runs.setdefault(system.name, []).append(ran)
            say(
                f"{repeat + 1}/{repeats} {system.name}: {ran.seconds:.1f} s, "
                f"{ran.cpu_seconds:.1f} s of CPU, {ran.peak_gb:.2f} GB"
            )
        after_round(runs, failed)
    return runs, failed


def median(runs: Sequence[Ran], figure: Callable[[Ran], float]) -> float:
    """Return the median of a figure over the runs of a system."""
    return statistics.median(map(figure, runs))


def matmul_gflops(threads: int) -> float:
    """Measure the machine's matmul rate, in a process with so many threads."""
    rate: float = System("matmul", sys.executable, "matmul.py").run({}, threads).report["gflops"]
    return rate


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(text + "\n")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table, its first column left and the others right aligned."""
    head = [list(columns), ["---"] + ["---:"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in [*head, *rows])


def options(text: str, *, repeats: int = 3) -> argparse.ArgumentParser:
    """Return the command line that all of these benchmarks have."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quick", action="store_true", help="a few rows, once: does it work?")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", default=".venv-bench/bin/python", help="their interpreter")
    parser.add_argument("--only", nargs="+", help="these systems, and sempa-mlx")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def chosen(systems: Sequence[System], only: Sequence[str] | None) -> list[System]:
    """Return the systems that are asked for."""
    return [each for each in systems if only is None or each.name in (*only, "sempa-mlx")]


def write(out: Path, name: str, document: Report, tables: Sequence[str]) -> None:
    """Write the figures as JSON and as tables, and show the tables."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    text = "\n".join(tables)
    (out / f"{name}.md").write_text(text)
    sys.stdout.write(text)
