"""`sempa-mlx train`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sempa_mlx.config import Resolved, SempaConfig, load_config
from sempa_mlx.console import Console

if TYPE_CHECKING:
    from sempa_mlx.run import RunData, TrainingRun

INTERRUPTED = 130


def run_train(
    console: Console,
    source: str | None,
    sets: Sequence[str],
    flags: dict[str, tuple[str, Any]],
    *,
    dry_run: bool,
    force: bool,
) -> None:
    """Train with a recipe or file and overrides; print the outcome and the next command."""
    resolved = load_config(source, sets=sets, flags=flags)
    console.say(f"settings: {resolved.origin}{_overrides(resolved)}")
    # mlx and mlx-lm take seconds to import, settings do not: say what was chosen first.
    from sempa_mlx.run import check_output, read_run_data

    config = resolved.config
    check_output(Path(config.output.path), force=force or dry_run)
    data = read_run_data(config)
    for note in data.notes:
        console.warn(note)
    if dry_run:
        _show_plan(console, config, data)
        return
    run = train_and_show(console, config, data)
    summary = run.summary()
    console.document(summary | {"output": str(run.folder)})
    console.result(outcome(run))
    console.say(f"\nembed a text file:  sempa-mlx embed FILE.txt --adapter-path {run.folder}")
    console.say(f"compare on STS:     sempa-mlx eval sts --adapter-path {run.folder}")


def train_and_show(console: Console, config: SempaConfig, data: "RunData") -> "TrainingRun":
    """Prepare and train with live progress; on Ctrl-C say what is kept and exit."""
    from sempa_mlx.run import prepare_run

    with console.working(f"loading {config.model.name}"):
        run = prepare_run(config, data)
    console.facts(run.facts())
    if run.scorer.path == "plain" and config.train.scoring == "auto":
        console.warn("this model's layers cannot share prompts: plain scoring, about 2x slower")
    try:
        with console.steps(run.trainer.num_steps) as show:
            _follow(console, run, show)
    except KeyboardInterrupt:
        console.warn(
            f"stopped after step {run.last_step} of {run.trainer.num_steps}; "
            f"the best adapter so far (step {run.best_step}) is in {run.folder}"
        )
        sys.exit(INTERRUPTED)
    return run


def _follow(console: Console, run: "TrainingRun", show: Any) -> None:  # noqa: ANN401 - a callback
    from sempa_mlx.training.trainer import Evaluated, StepDone

    learning = ""
    for event in run.events():
        if isinstance(event, StepDone):
            facts = _facts(event.metrics)
            learning = "  ".join(facts[:2])
            show(event.step, facts)
        elif isinstance(event, Evaluated):
            mark = "  best so far" if event.step == event.best_step and event.step else ""
            name = "base" if event.step == 0 else f"step {event.step}"
            console.say(f"  {name:<9} dev Spearman {event.score:6.2f}  {learning}{mark}".rstrip())
        else:
            console.warn(f"step {event.step} skipped: loss or gradient not finite")


def _facts(metrics: dict[str, float]) -> list[str]:
    """Name the figures of a step, the most important first: a narrow terminal shows the first."""
    return [
        f"loss {metrics['loss']:.3f}",
        f"acc {metrics['rewards/accuracies']:.2f}",
        f"{metrics['pairs_per_second']:.1f} pairs/s",
        f"{metrics['peak_memory_gb']:.1f} GB",
        f"margin {metrics['rewards/margins']:.2f}",
        f"{metrics['tokens_per_second']:.0f} tok/s",
        f"lr {metrics['learning_rate']:.1e}",
    ]


def outcome(run: "TrainingRun") -> str:
    """Say in one line what training did to the dev score, whichever way it went."""
    summary = run.summary()
    base, best = (_shown(summary[f"{which}_dev_spearman"]) for which in ("base", "best"))
    minutes = summary["seconds"] / 60
    if run.best_step == 0:
        return f"no step beat the base on dev ({base}); {run.folder} holds a neutral adapter"
    return (
        f"dev Spearman {base} -> {best} (step {run.best_step} of {run.last_step}, "
        f"{minutes:.1f} min); adapter in {run.folder}"
    )


def _shown(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.2f}"


def _overrides(resolved: Resolved) -> str:
    given = [key for key, source in resolved.sources.items() if source.startswith("--")]
    return f", with {', '.join(given)} from the command line" if given else ""


def _show_plan(console: Console, config: SempaConfig, data: "RunData") -> None:
    """Print what a run would do; no model is loaded."""
    from sempa_mlx.training.schedule import plan_steps

    num_rows = len(data.records)
    steps = len(plan_steps([0] * num_rows, config.train))
    report = data.report
    document = {
        "config": config.model_dump(mode="json"),
        "data": {"path": str(data.train.path), "rows": report.rows, "kept": report.kept},
        "dev_pairs": len(data.dev_task.pairs),
        "steps": steps,
    }
    console.document(document)
    console.result(
        f"{report.rows} rows read, {report.kept} kept ({report.format}); {steps} steps of "
        f"{config.train.batch_size} pairs; dev: {len(data.dev_task.pairs)} pairs of "
        f"{data.dev.label}; output: {config.output.path}\nnothing was started"
    )
