"""The library in one call each: settings, training, evaluation, paraphrases. `Encoder` is a class.

What the command line does with a terminal around it, these do in a program: they print nothing,
raise `sempa_mlx.errors.SempaError`, and tell what happened through return values and events.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sempa_mlx.config import SempaConfig
from sempa_mlx.config_resolve import resolve_config
from sempa_mlx.data.sts_sets import Protocol
from sempa_mlx.data.sts_tasks import sts_tasks
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.paraphrase import Paraphrased, Paraphraser, ParaphraseSettings
from sempa_mlx.errors import UsageError
from sempa_mlx.evaluation import sts
from sempa_mlx.evaluation.sts import EncodesTexts, StsScore
from sempa_mlx.run.coder import fit_run_coder, run_sentences
from sempa_mlx.run.folder import claimed
from sempa_mlx.run.inputs import read_run_data
from sempa_mlx.run.prepare import prepare_run
from sempa_mlx.run.resume import resume as continue_run
from sempa_mlx.training.events import Event
from sempa_mlx.world import World


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that is over: open its encoder with `Encoder.load(trained.folder)`.

    Attributes:
        folder: the run folder, which every command takes as `--adapter-path`.
        base_score: the base's score on the dev set, Spearman x 100 unless `eval.metric` is another;
            None where it is undefined.
        score: the same of what was kept; never lower than the base's.
        step: the optimizer step whose adapter was kept; 0 if none was better than the base.
        scale: the kept scale of the adapter, in (0, 1].
        is_stopped: `should_stop` ended the run; `train(config, resume=True)` goes on.
        summary: all of that and more, as in `results.json`.
    """

    folder: Path
    base_score: float | None
    score: float | None
    step: int
    scale: float
    is_stopped: bool
    summary: dict[str, Any]


def load_config(source: str | Path | None = None, *, sets: str | Sequence[str] = ()) -> SempaConfig:
    """Read the settings of a run: every key has a value, and each was checked.

    Args:
        source: a recipe's name or a YAML file; by default `./sempa.yaml` if there is one, else the
            built-in recipe.
        sets: overrides `section.key=value`, the value in YAML, as `--set` takes them; or one.

    Raises:
        ConfigError: all faults of file and overrides together, with their lines.
    """
    return resolve_config(source, sets=[sets] if isinstance(sets, str) else sets).config


def train(
    config: SempaConfig | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    on_event: Callable[[Event], object] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train an adapter, and the sparse coder if the settings name one, into `config.output.path`.

    Args:
        config: what `load_config` returned; by default what it returns without arguments.
        force: replace an earlier run in that folder.
        resume: go on with the run in that folder, bit for bit on a CPU.
        on_event: called with every step, evaluation and search of the dial
            (`sempa_mlx.training.events`).
        should_stop: asked after every event; True saves a checkpoint and ends the run.

    Warns:
        UserWarning: the demo data stand in for a download; a checkpoint had to be passed over; an
            earlier run was killed.

    Raises:
        UsageError: the folder is taken, or holds no run that these settings can resume.
        DataError: rows or dev pairs are missing or malformed; all faults of a file at once.
        ModelError: the model cannot be loaded.
        RunError: training went wrong, and the best adapter so far is kept; or another process
            trains into that folder.
        ResourceError: memory or disk do not suffice.
    """
    config = config or load_config()
    with claimed(config, force=force, resume=resume) as remark:
        data = read_run_data(config)
        run = prepare_run(config, data, World.join())
        passed_over = continue_run(run) if resume else ()
        for note in (
            remark,
            run.memory_remark,
            *data.notes,
            *(f"passed over: {problem}" for problem in passed_over),
        ):
            if note:
                warnings.warn(note, stacklevel=2)
        for event in run.events(should_stop):
            if on_event:
                on_event(event)
        if config.sparse.coder is not None and not (run.is_stopped or run.world.rank):
            fit_run_coder(run, run_sentences(run))
    summary = run.summary()
    scores = (summary["base_dev_score"], summary["best_dev_score"])
    step, scale = run.progress.best_step, run.best_scale
    return Trained(run.folder, *scores, step, scale, run.is_stopped, summary)


def evaluate_sts(
    encoder: EncodesTexts,
    data: str | Path = "hub",
    *,
    tasks: str | Sequence[str] | None = None,
    protocol: Protocol | None = None,
    resamples: int = 0,
) -> list[StsScore]:
    """Score an encoder on STS tasks; each distinct sentence is embedded once.

    Args:
        encoder: an `Encoder`, or anything with `encode(texts) -> (n, dim)`.
        data: `hub` (downloaded once), a folder of STS sets, or one file of scored pairs (.tsv,
            .csv, .jsonl).
        tasks: names of the sets, or one name; by default the seven of SentEval.
        protocol: `senteval` (the default; published numbers) or `mteb`; not for a file.
        resamples: draws of the bootstrap behind `score.estimate`; 0 for none.

    Returns:
        A score a task, in order: `score.task`, `score.spearman` in [-1, 1], `score.num_pairs`.

    Raises:
        UsageError: unknown tasks, or a protocol that does not belong there.
        DataError: there is no such file or folder, or it has faults; all of them.
    """
    found = sts_tasks(str(data), [tasks] if isinstance(tasks, str) else tasks, protocol)
    return sts.evaluate_sts(encoder, found, resamples=resamples)


def paraphrase(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    k: int | None = None,
    settings: ParaphraseSettings | None = None,
) -> list[Paraphrased]:
    """Say texts in other words with the encoder's own language model, the most similar first.

    Args:
        encoder: ranks by its vectors, whatever `settings.adapter_scale` is.
        texts: any number; one of blanks only has no paraphrases, equal ones have the same.
        k: distinct paraphrases of a text; by default what `settings` say, else 3.
        settings: how to draw: temperature, top_p, seed, template and more.

    Returns:
        A `Paraphrased` a text, in order: `.text`, `.paraphrases` (each with `.text` and
        `.similarity`, a cosine); fewer than k if no more were found in 4 k draws.

    Warns:
        UserWarning: the encoder saw only the beginning of texts that are too long for it.

    Raises:
        UsageError: settings that make no sense.
        DataError: texts that the model is too short for; all of them.
    """
    if isinstance(texts, str):
        raise UsageError("paraphrase takes a list of texts, not one string")
    settings = settings or ParaphraseSettings()
    paraphraser = Paraphraser(encoder, settings if k is None else replace(settings, k=k))
    paraphraser.check((f"text {number}", text) for number, text in enumerate(texts))
    found = paraphraser.paraphrase(texts)
    if paraphraser.num_cut:
        longest = encoder.settings.max_tokens
        what = f"similarities of {paraphraser.num_cut} texts are of their first {longest} tokens"
        warnings.warn(what, stacklevel=2)
    return found
