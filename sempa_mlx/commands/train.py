"""`sempa-mlx train`."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sempa_mlx.commands.signals import stop_requests
from sempa_mlx.commands.sparse import facts, fit_line
from sempa_mlx.config import OutputConfig, SempaConfig
from sempa_mlx.config_file import Setting, parse_setting
from sempa_mlx.config_resolve import Resolved, resolve_config
from sempa_mlx.console import Console
from sempa_mlx.files import named_path

if TYPE_CHECKING:
    from sempa_mlx.encoder.coding import FittedCoder
    from sempa_mlx.run.inputs import RunData
    from sempa_mlx.run.training_run import TrainingRun
    from sempa_mlx.training.events import Evaluated


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the user asked for: a recipe or file, overrides, flags by name, and how to start."""

    source: str | None
    sets: Sequence[str]
    flags: dict[str, tuple[str, Any]]
    dry_run: bool = False
    force: bool = False
    resume: bool = False


def run_train(console: Console, request: TrainRequest) -> None:
    """Train with a recipe or file and overrides; print the outcome and the next command."""
    resolved = _settings(request)
    console.say(f"settings: {resolved.origin}{_overrides(resolved)}")
    # mlx and mlx-lm take seconds to import, settings do not: say what was chosen first.
    from sempa_mlx.run.folder import check_output, check_place, claimed
    from sempa_mlx.run.inputs import read_run_data

    config = resolved.config
    if request.dry_run:
        from sempa_mlx.commands.plan import show_plan

        check_place(Path(config.output.path), config.model.name)
        check_output(Path(config.output.path), force=not request.resume, resume=request.resume)
        show_plan(console, resolved, _with_notes(console, read_run_data(config)))
        return
    with claimed(config, force=request.force, resume=request.resume) as remark:
        if remark:
            console.warn(remark)
        data = _with_notes(console, read_run_data(config))
        _train(console, config, data, resume=request.resume)


def _with_notes(console: Console, data: "RunData") -> "RunData":
    for note in data.notes:
        console.warn(note)
    return data


def _train(console: Console, config: SempaConfig, data: "RunData", *, resume: bool) -> None:
    """Train, fit the coder of the settings, and print the outcome."""
    from sempa_mlx.encoder.coder_file import CODER_FILE

    run = train_and_show(console, config, data, resume=resume)
    document = run.summary() | {"output": str(run.folder)}
    folder, sparse = shlex.quote(str(run.folder)), ""
    if config.sparse.coder is not None and not run.world.rank:
        document["coder"] = facts(_fit_coder(console, run))
    if (run.folder / CODER_FILE).is_file():
        sparse = f" --sparse {folder}"
    console.document(document)
    console.result(outcome(run))
    console.say(f"\nembed a text file:  sempa-mlx embed FILE.txt --adapter-path {folder}{sparse}")
    console.say(f"compare on STS:     sempa-mlx eval sts --adapter-path {folder}")


def _fit_coder(console: Console, run: "TrainingRun") -> "FittedCoder":
    """Fit the coder of the settings to the kept adapter, showing how far it is."""
    from sempa_mlx.run.coder import fit_run_coder, run_sentences

    sentences = run_sentences(run)
    with (
        console.progress("embedding", len(sentences.texts), "texts") as embedded,
        console.progress("fitting", run.config.sparse.epochs, "epochs") as epochs,
    ):
        fitted = fit_run_coder(run, sentences, on_progress=embedded, on_epoch=lambda _: epochs(1))
    console.say(fit_line(fitted))
    return fitted


def _settings(request: TrainRequest) -> Resolved:
    """Resolve the settings; a run that goes on starts from those in its folder."""
    source: str | Path | None = request.source
    if request.resume and source is None:
        from sempa_mlx.run.folder import CONFIG_COPY, check_run

        folder = _named_folder(request)
        check_run(folder)
        source = folder / CONFIG_COPY
    return resolve_config(source, sets=request.sets, flags=request.flags)


def _named_folder(request: TrainRequest) -> Path:
    """Return the run folder that the command line names, by flag or setting, or the default."""
    key = "output.path"
    sets = [each.partition("=") for each in request.sets]
    named = [parse_setting(key, text, "--set") for name, _, text in sets if name.strip() == key]
    found = [str(each.value) for each in named if isinstance(each, Setting) and each.value]
    flag = request.flags.get("--adapter-path", ("", None))[1]
    return named_path(flag or next(iter(found), OutputConfig().path))


def train_and_show(
    console: Console, config: SempaConfig, data: "RunData", *, resume: bool = False
) -> "TrainingRun":
    """Prepare and train with live progress; on a signal save, say how to go on, and exit."""
    from sempa_mlx.run.prepare import prepare_run
    from sempa_mlx.run.resume import resume as continue_run
    from sempa_mlx.world import World

    world = World.join()
    if world.rank:
        console.mute()
    with console.working(f"loading {config.model.name}"):
        run = prepare_run(config, data, world)
    if resume:
        for problem in continue_run(run):
            console.warn(f"passed over: {problem}")
    console.facts(run.facts())
    if resume:
        console.say(f"going on after step {run.progress.step}")
    if run.scorer.path == "plain" and config.train.scoring == "auto":
        console.warn("this model's layers cannot share prompts: plain scoring, 3 to 4 times slower")
    if run.memory_remark:
        console.warn(run.memory_remark)
    with stop_requests() as stop:
        with console.steps(run.trainer.num_steps) as show:
            _follow(console, run, show, stop)
        if run.is_stopped:
            console.warn(
                f"stopped after step {run.progress.step} of {run.trainer.num_steps}; the best "
                f"adapter so far (step {run.progress.best_step}) is in {run.folder}; go on with: "
                f"sempa-mlx train --resume --adapter-path {shlex.quote(str(run.folder))}"
            )
            sys.exit(stop.exit_code)
    return run


def _follow(
    console: Console, run: "TrainingRun", show: Callable[..., None], stop: Callable[[], bool]
) -> None:
    from sempa_mlx.training.events import DialSearched, Evaluated, StepDone

    learning = ""
    for event in run.events(stop):
        if isinstance(event, StepDone):
            facts = _facts(event.metrics)
            learning = "  ".join(facts[:2])
            show(event.step, facts)
        elif isinstance(event, Evaluated):
            mark = "  best so far" if event.step == event.best_step and event.step else ""
            name = "base" if event.step == 0 else f"step {event.step}"
            console.say(f"  {name:<9} dev {_scores(event)}  {learning}{mark}".rstrip())
        elif isinstance(event, DialSearched):
            tried = ", ".join(f"{scale:g}: {score:.2f}" for scale, score in event.scores.items())
            console.say(f"  dial      dev Spearman by adapter scale: {tried}; kept {event.scale:g}")
        else:
            console.warn(f"step {event.step} skipped: loss or gradient not finite")


def _scores(event: "Evaluated") -> str:
    """Name what an evaluation found; the scale only where several were tried."""
    metrics = event.score.metrics
    text = f"Spearman {metrics['dev/spearman']:6.2f}"
    if event.score.scale != 1:
        text += f" ({metrics[f'dev/spearman@{event.score.scale:g}']:.2f} at {event.score.scale:g})"
    if "eval/loss" in metrics:
        text += f"  loss {metrics['eval/loss']:.3f}  acc {metrics['eval/accuracies']:.3f}"
    return text


def _facts(metrics: dict[str, float]) -> list[str]:
    """Name the figures of a step, the most important first: a narrow terminal shows the first."""
    shown = {
        "loss": "loss {:.3f}",
        "rewards/accuracies": "acc {:.2f}",
        "pairs_per_second": "{:.1f} pairs/s",
        "peak_memory_gb": "{:.1f} GB",
        "rewards/margins": "margin {:.2f}",
        "grad_norm": "grad {:.2f}",
        "tokens_per_second": "{:.0f} tok/s",
        "learning_rate": "lr {:.1e}",
    }
    return [text.format(metrics[name]) for name, text in shown.items() if name in metrics]


def outcome(run: "TrainingRun") -> str:
    """Say in one line what training did to the dev score, whichever way it went."""
    summary = run.summary()
    what = {"spearman": "dev Spearman", "loss": "dev loss", "accuracy": "dev accuracy"}
    name, sign = what[summary["metric"]], -1 if summary["metric"] == "loss" else 1
    base, best = (_shown(summary[f"{which}_dev_score"], sign) for which in ("base", "best"))
    minutes = summary["seconds"] / 60
    if run.progress.best_step == 0:
        return f"no step beat the base on dev ({base}); {run.folder} holds a neutral adapter"
    return (
        f"{name} {base} -> {best} (step {run.progress.best_step} of {run.progress.step}, "
        f"scale {run.best_scale:g}, {minutes:.1f} min); adapter in {run.folder}"
    )


def _shown(score: float | None, sign: int) -> str:
    return "undefined" if score is None else f"{sign * score:.2f}"


def _overrides(resolved: Resolved) -> str:
    given = [key for key, source in resolved.sources.items() if source.startswith("--")]
    return f", with {', '.join(given)} from the command line" if given else ""
