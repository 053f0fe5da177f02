"""`sempa-mlx data leaks`: which sentences of the test sets stand in the training rows."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sempa_mlx.console import Console
from sempa_mlx.data.sts_sets import Protocol
from sempa_mlx.data.sts_tasks import sts_tasks
from sempa_mlx.files import json_text, refuse_read, write_text

if TYPE_CHECKING:
    from sempa_mlx.data.leaks import Leak, LeakCounts, TaskLeaks
    from sempa_mlx.data.records import PreferenceRecord

NOTE = """exact: the same text; normalised: without case, blanks and punctuation;
near: Jaccard index of character 5-grams 0.8 or more; each level includes the one before.
as ...: of these sentences, those that are an anchor or a candidate (they may be several).
pairs: test pairs with both sentences in training; one row: both in one training row."""


@dataclass(frozen=True, slots=True)
class LeakRequest:
    """What is compared: a training file, read with 2 or 3 candidates, and STS tasks."""

    train: str
    data: str
    tasks: Sequence[str] | None = None
    protocol: Protocol | None = None
    candidates: int = 2


def run_leaks(
    console: Console, request: LeakRequest, *, show: int, out: Path | None, fail_over: float | None
) -> None:
    """Print one row a task and level, and the first `show` leaked sentences of each task."""
    from sempa_mlx.data.leaks import find_leaks
    from sempa_mlx.data.preferences import read_preferences
    from sempa_mlx.data.sources import training_source

    refuse_read(out, request.train, request.data)
    tasks = sts_tasks(request.data, request.tasks, request.protocol)
    source = training_source(request.train)
    if source.note:
        console.warn(source.note)
    started = time.perf_counter()
    with console.working(f"reading {source.label}"):
        records = read_preferences(
            source.path, candidates=request.candidates, skip_faulty=source.is_downloaded
        ).records
    with console.progress("looking for test sentences", len(records), "rows") as advance:

        def counted() -> Iterator["PreferenceRecord"]:
            for record in records:
                yield record
                advance(1)

        found = find_leaks(counted(), tasks)
    _report(console, source.label, len(records), found, show)
    document = {
        "train": str(source.path),
        "rows": len(records),
        "candidates": request.candidates,
        "seconds": round(time.perf_counter() - started, 1),
        "tasks": [_facts(task) for task in found],
    }
    if out is not None:
        write_text(out, json_text(document))
        console.say(f"results: {out}")
    console.document(document)
    _judge(console, found, fail_over)


def _facts(found: "TaskLeaks") -> dict[str, Any]:
    return {
        "task": found.task,
        "protocol": found.protocol,
        "sentences": found.num_sentences,
        "pairs": found.num_pairs,
        "levels": {
            level: asdict(counts) | {"share": round(found.share(level), 6)}
            for level, counts in found.counts.items()
        },
        "leaks": [asdict(leak) for leak in found.leaks],
    }


def _report(
    console: Console, label: str, num_rows: int, found: Sequence["TaskLeaks"], show: int
) -> None:
    roles = _roles(found)
    columns = ["match", "sentences", "of", "share", *(f"as {role}" for role in roles)]
    rows = [
        [f"{task.task} {level}", *_cells(task, counts, task.share(level), roles)]
        for task in found
        for level, counts in task.counts.items()
    ]
    title = f"STS test sentences in {label} ({num_rows:,} rows)"
    console.table(title, [*columns, "pairs", "of", "one row"], rows, NOTE)
    for task in found if show else ():
        if task.leaks:
            shown = task.leaks[:show]
            console.result(f"\n{task.task}: {len(shown)} of {len(task.leaks):,}\n")
            console.result("\n".join(map(_example, shown)))


def _roles(found: Sequence["TaskLeaks"]) -> list[Any]:
    """Return the roles to show: `neutral` only where there are any."""
    from sempa_mlx.data.leaks import ROLES

    neutral = any(task.counts["near"].roles["neutral"] for task in found)
    return [role for role in ROLES if neutral or role != "neutral"]


def _cells(
    task: "TaskLeaks", counts: "LeakCounts", share: float, roles: Sequence[Any]
) -> list[str]:
    numbers = [counts.roles[role] for role in roles] + [counts.both_sides, task.num_pairs]
    return [
        f"{counts.sentences:,}",
        f"{task.num_sentences:,}",
        f"{share:.2%}",
        *(f"{number:,}" for number in numbers),
        f"{counts.one_row:,}",
    ]


def _example(leak: "Leak") -> str:
    how = f"near {leak.similarity:.2f}" if leak.level == "near" else leak.level
    text = "" if leak.level == "exact" else f": {leak.text}"
    return f"  {leak.sentence}\n    {how}, line {leak.line}, {leak.role}{text}"


def _judge(console: Console, found: Sequence["TaskLeaks"], fail_over: float | None) -> None:
    """Exit with 1 if more of a task's sentences than that are in training, not counting `near`."""
    worst = max(found, key=lambda task: task.share())
    if fail_over is not None and worst.share() > fail_over:
        share = f"{worst.share():.4f} of the sentences of {worst.task}"
        console.warn(f"{share} are in the training rows, over {fail_over:g}")
        sys.exit(1)
