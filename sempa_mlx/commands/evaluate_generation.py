"""`sempa-mlx eval generation`: is the model still a generator, and at which scale?"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sempa_mlx.commands.evaluate import defined, finish
from sempa_mlx.commands.generators import Generators, LoadedSystems
from sempa_mlx.console import Console
from sempa_mlx.data.lm_tasks import FILES, LmTask, load_lm_tasks
from sempa_mlx.data.readers import read_text
from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.files import refuse_read

if TYPE_CHECKING:
    from sempa_mlx.evaluation.benchmarks import Figure
    from sempa_mlx.evaluation.generation import Drift

PERPLEXITY = "perplexity"
COLUMNS = {  # of figures whose name says more than their task
    ("hellaswag", "acc_norm"): "hellaswag norm",
    ("truthfulqa_mc1", "acc"): "truthfulqa mc1",
    ("truthfulqa_mc2", "true_mass"): "truthfulqa mc2",
    ("gsm8k", "strict"): "gsm8k strict",
    ("gsm8k", "flexible"): "gsm8k flexible",
}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to measure: tasks on local files, tasks of lm-evaluation-harness, or both."""

    tasks: Sequence[str]
    text: Path | None = None
    data: Path | None = None
    limit: int | None = None
    max_tokens: int | None = None
    harness: Sequence[str] = ()


@dataclass(slots=True)
class _Row:
    """What was measured of one system."""

    system: str
    scale: float
    drift: "Drift | None" = None
    figures: "list[Figure]" = field(default_factory=list)


def run_eval_generation(
    console: Console, generators: Generators, request: GenerationRequest, *, out: Path | None
) -> None:
    """Print one row a system and one column a figure, each with its standard error."""
    _check(request)
    refuse_read(out, request.text, request.data)
    content = read_text(request.text, state="nothing was measured") if request.text else None
    names = [name for name in request.tasks if name != PERPLEXITY]
    tasks = load_lm_tasks(request.data, names, request.limit) if request.data and names else ()
    rows: list[_Row] = []
    for each in generators.load(console):
        found = [_Row(name, scale) for name, scale in each.systems]
        if content is not None:
            _measure_text(console, each, content, request.max_tokens, found)
        _measure_tasks(console, each, tasks, found)
        _measure_harness(console, each, request, found)
        rows += found
        del each  # before the next weights are loaded
    _report(console, rows, request, tasks)
    finish(console, {"results": [_document(row, request) for row in rows]}, out)


def _check(request: GenerationRequest) -> None:
    """Refuse what cannot be measured before anything is read or loaded."""
    problems = []
    known = (PERPLEXITY, *FILES)
    for name in request.tasks:
        if name not in known:
            problems.append(Problem(f"unknown task {name!r}", fix=f"known: {', '.join(known)}"))
    if PERPLEXITY in request.tasks and request.text is None:
        problems.append(Problem("perplexity needs a text to predict", fix="add --text FILE"))
    if {*request.tasks} & {*FILES} and request.data is None:
        problems.append(Problem("the tasks need their files", fix="add --data DIR"))
    if not (request.tasks or request.harness or request.text):
        fix = "add --text FILE, or --tasks with --data DIR, or --harness"
        problems.append(Problem("nothing to measure", fix=fix))
    if problems:
        raise UsageError(problems)
    if request.harness:
        _harness_module()


def _harness_module() -> Any:  # noqa: ANN401 - a module
    try:
        from sempa_mlx.evaluation import lm_eval
    except ModuleNotFoundError as error:
        fix = "pip install 'sempa-mlx[lm-eval]'"
        raise UsageError(Problem(f"--harness needs the package {error.name}", fix=fix)) from error
    return lm_eval


def _measure_text(
    console: Console,
    each: LoadedSystems,
    content: str,
    max_tokens: int | None,
    rows: Sequence[_Row],
) -> None:
    from sempa_mlx.evaluation.generation import text_drift

    tokens = each.loaded.tokenizer.encode(content)[:max_tokens]
    scales = list(dict.fromkeys(row.scale for row in rows))
    with console.progress("text", len(tokens) * len(scales), "tokens") as advance:
        found = text_drift(each.loaded.model, tokens, scales, on_progress=advance)
    by_scale = {drift.scale: drift for drift in found}
    for row in rows:
        row.drift = by_scale[row.scale]


def _measure_tasks(
    console: Console, each: LoadedSystems, tasks: Sequence[LmTask], rows: Sequence[_Row]
) -> None:
    from sempa_mlx.evaluation.benchmarks import Benchmarks
    from sempa_mlx.model.lora import dialled

    if not tasks:
        return
    with console.working("preparing the questions"):
        benchmarks = Benchmarks(each.loaded, tasks)
    if benchmarks.num_cut:
        console.warn(f"{benchmarks.num_cut} prompts were cut on the left to what the model takes")
    for row in rows:
        with (
            dialled(each.loaded.model, row.scale),
            console.progress(f"{row.system}: tasks", benchmarks.num_prompts, "prompts") as advance,
        ):
            row.figures += benchmarks.figures(advance)


def _measure_harness(
    console: Console, each: LoadedSystems, request: GenerationRequest, rows: Sequence[_Row]
) -> None:
    if not request.harness:
        return
    harness_figures = _harness_module().harness_figures
    for row in rows:
        console.say(f"{row.system}: {', '.join(request.harness)} by lm-eval")
        row.figures += harness_figures(
            each.loaded, request.harness, scale=row.scale, limit=request.limit
        )


# What is shown


def _report(
    console: Console, rows: Sequence[_Row], request: GenerationRequest, tasks: Sequence[LmTask]
) -> None:
    from sempa_mlx.evaluation.generation import WINDOW

    drift, figures = rows[0].drift, rows[0].figures
    columns, counts = ["system"], []
    if drift is not None and request.text is not None:
        columns += ["perplexity", "KL to base"]
        counts.append(
            f"perplexity: {drift.perplexity.num_scored:,} tokens of {request.text.name}\n"
            f"windows of {WINDOW} tokens; KL in nats a token"
        )
    columns += [_column(figure) for figure in figures]
    counts += _counts(figures)
    counts += [task.note for task in tasks if task.note]
    cells = [[row.system, *_drift_cells(row), *map(_figure_cell, row.figures)] for row in rows]
    title = "generation" + (", accuracies x 100" if figures else "") + ", ± standard error"
    console.table(title, columns, cells, "\n".join(counts))


def _column(figure: "Figure") -> str:
    default = figure.task if figure.metric == "acc" else f"{figure.task} {figure.metric}"
    return COLUMNS.get((figure.task, figure.metric), default)


def _counts(figures: "Sequence[Figure]") -> list[str]:
    """Say how many items and shots each task had, one line a task."""
    found = {}
    for figure in figures:
        shots = f", {figure.shots} shots" if figure.shots else ""
        found[figure.task] = f"{figure.task}: {figure.mean.count:,} items{shots}"
    return list(found.values())


def _drift_cells(row: _Row) -> list[str]:
    if row.drift is None:
        return []
    text, kl = row.drift.perplexity, row.drift.kl
    return [
        with_error(text.perplexity, text.standard_error, 2),
        with_error(kl.value, kl.standard_error, 4),
    ]


def _figure_cell(figure: "Figure") -> str:
    return with_error(figure.mean.value * 100, figure.mean.standard_error * 100, 1)


def with_error(value: float, error: float, digits: int) -> str:
    """Show a value and its error, or what of them is defined."""
    if math.isnan(value):
        return "undefined"
    shown = f"{value:.{digits}f}"
    return shown if math.isnan(error) else f"{shown} ± {error:.{digits}f}"


def _document(row: _Row, request: GenerationRequest) -> dict[str, Any]:
    """Return a row for JSON, which knows no NaN."""
    from sempa_mlx.evaluation.generation import WINDOW

    found: dict[str, Any] = {"system": row.system, "adapter_scale": row.scale}
    if row.drift is not None:
        kl = {"kl": row.drift.kl.value, "kl_standard_error": row.drift.kl.standard_error}
        text = {"window": WINDOW, "text": str(request.text)}
        found |= text | defined(asdict(row.drift.perplexity) | kl)
    if row.figures:
        found["figures"] = [
            {"task": figure.task, "metric": figure.metric, "shots": figure.shots}
            | defined(asdict(figure.mean))
            for figure in row.figures
        ]
    return found
