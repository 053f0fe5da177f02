"""`sempa-mlx eval geometry`: alignment, uniformity and isotropy of several systems."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sempa_mlx.commands.evaluate import Systems, defined, finish
from sempa_mlx.commands.evaluate_data import Sentences, sentences
from sempa_mlx.console import Console
from sempa_mlx.errors import Problem, RunError
from sempa_mlx.files import refuse_read

if TYPE_CHECKING:
    from sempa_mlx.data.records import StsTask

COLUMNS = {  # measure: title, digits
    "alignment": ("alignment", 3),
    "uniformity": ("uniformity", 3),
    "average_cosine": ("avg cosine", 3),
    "partition_isotropy": ("isotropy", 3),
    "iso_score": ("IsoScore", 3),
    "effective_rank": ("eff. rank", 1),
    "spearman": ("Spearman x 100", 2),
}
NOTE = """lower is better: alignment, uniformity
higher is better: isotropy, IsoScore, effective rank
none is a goal: whitening perfects them and teaches nothing"""


def run_eval_geometry(
    console: Console, systems: Systems, data: str, *, positives_from: float, out: Path | None
) -> None:
    """Print one row a system and one column a measure."""
    refuse_read(out, data)
    found = sentences(data)
    pairs = _positives(found, positives_from)
    results: list[dict[str, Any]] = []
    for name, encoder in systems.encoders(console):
        with console.progress(name, len(found.texts), "texts") as advance:
            vectors = encoder.encode(found.texts, on_progress=advance)
        results.append({"system": name, **_measure(console, name, vectors, found, pairs)})
        results[-1]["encoder"] = encoder.describe()
    _report(console, results, found, _remarks(found, pairs, positives_from, results))
    document = {
        "data": found.label,
        "texts": len(found.texts),
        "positives_from": positives_from if found.task else None,
        "results": results,
    }
    finish(console, document, out)


def _positives(found: Sentences, least: float) -> np.ndarray:
    """Return the row numbers of pairs with a score of at least `least`, (pairs, 2) int64."""
    from sempa_mlx.evaluation.sts import positive_rows

    rows = {text: row for row, text in enumerate(found.texts)}
    return positive_rows(found.task.pairs if found.task else (), rows, least)


def _measure(
    console: Console, name: str, vectors: np.ndarray, found: Sentences, positives: np.ndarray
) -> dict[str, Any]:
    from sempa_mlx.evaluation.geometry import measure_geometry

    try:
        geometry = measure_geometry(vectors, positives)
    except ValueError as error:
        what = f"the vectors of {name} have no geometry: {error}"
        raise RunError(Problem(what, fix="look at how it was trained")) from error
    if geometry.num_zero:
        console.warn(f"{name}: {geometry.num_zero} zero vectors are left out")
    measures = asdict(geometry) | {"spearman": _spearman(found.task, found.texts, vectors)}
    return defined(measures)


def _spearman(task: "StsTask | None", texts: tuple[str, ...], vectors: np.ndarray) -> float:
    from sempa_mlx.evaluation.stats import spearman
    from sempa_mlx.evaluation.sts import pair_cosines

    if task is None:
        return math.nan
    rows = {text: row for row, text in enumerate(texts)}
    gold = np.array([pair.score for pair in task.pairs])
    return 100 * spearman(gold, pair_cosines(task.pairs, rows, vectors))


def _remarks(
    found: Sentences, positives: np.ndarray, least: float, results: list[dict[str, Any]]
) -> str:
    if found.task is None:
        pairs = "no scored pairs: alignment and Spearman are undefined"
    else:
        count = f"{len(positives):,} of {len(found.task.pairs):,}"
        pairs = f"positive pairs: {count}, scored {least:g} or more"
    if any(row["num_vectors"] <= row["dim"] for row in results):
        pairs += "\nso few sentences bound IsoScore and effective rank"
    return f"{pairs}\n{NOTE}"


def _report(console: Console, results: list[dict[str, Any]], found: Sentences, note: str) -> None:
    columns = ["system", *(title for title, _ in COLUMNS.values())]
    rows = [
        [row["system"], *(_cell(row[name], digits) for name, (_, digits) in COLUMNS.items())]
        for row in results
    ]
    console.table(
        f"geometry of {len(found.texts):,} sentences ({found.label})", columns, rows, note
    )


def _cell(value: float | None, digits: int) -> str:
    return "undefined" if value is None else f"{value:z.{digits}f}"
