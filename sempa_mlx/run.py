"""One training run, put together: data, model, adapter, dev evaluation, run folder.

The folder is written as the run goes: settings first, metrics line by line, the adapter whenever a
better one is found. An interrupted run leaves the best adapter so far.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sempa_mlx import runtime
from sempa_mlx.config import SempaConfig, dump_config
from sempa_mlx.data.preferences import PreferenceReport, read_preferences
from sempa_mlx.data.records import StsTask
from sempa_mlx.data.sources import Source, dev_source, training_source
from sempa_mlx.data.sts_sets import load_dev_pairs
from sempa_mlx.encoder.encoder import Encoder, EncoderSettings
from sempa_mlx.errors import DataError, Problem, UsageError
from sempa_mlx.evaluation.sts import evaluate_sts
from sempa_mlx.files import write_text
from sempa_mlx.model.load import LoadedModel, load_model
from sempa_mlx.model.lora import attach, save_adapter
from sempa_mlx.model.prompts import tokenize_preferences
from sempa_mlx.model.scoring import Scorer, choose_scoring
from sempa_mlx.training.trainer import Evaluated, Event, StepDone, Trainer, count_parameters

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
CONFIG_COPY = "config.yaml"


@dataclass(slots=True)
class RunData:
    """What a run reads: rows and dev pairs, and where they came from. It needs no model."""

    train: Source
    report: PreferenceReport
    records: tuple[Any, ...]
    dev: Source
    dev_task: StsTask

    @property
    def notes(self) -> list[str]:
        """Remarks the user should see, such as a fallback to the demo data."""
        return [source.note for source in (self.train, self.dev) if source.note]


def read_run_data(config: SempaConfig) -> RunData:
    """Read training rows and dev pairs.

    Raises:
        DataError: a file is missing or malformed; all faults of a file at once.
    """
    train = training_source(config.data.train)
    data = read_preferences(
        train.path,
        template=config.data.template,
        system=config.data.system,
        limit=config.data.limit,
        skip_faulty=train.is_downloaded,
    )
    dev = dev_source(config.eval.data)
    pairs = load_dev_pairs(dev.path, config.eval.pairs)
    return RunData(train, data.report, data.records, dev, StsTask("dev", "dev", pairs))


@dataclass(slots=True)
class TrainingRun:
    """A run that is ready to go. Iterate over `events`, then read `summary`."""

    config: SempaConfig
    data: RunData
    loaded: LoadedModel
    trainer: Trainer
    scorer: Scorer
    num_rows: int
    num_too_long: int
    started: float = field(default_factory=time.perf_counter)
    scores: dict[int, float] = field(default_factory=dict)
    best_step: int = 0
    last_step: int = 0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output.path)

    def facts(self) -> dict[str, str]:
        """Return the header of a run: what is trained, on what, with what."""
        config, loaded, report = self.config, self.loaded, self.data.report
        machine = runtime.machine()
        trainable, total = count_parameters(loaded.model)
        dtype = str(loaded.dtype).removeprefix("mlx.core.")
        dropped = sum(count for _, count in report.dropped) + self.num_too_long
        return {
            "model": f"{loaded.location.name} ({loaded.location.origin}), {dtype}",
            "device": f"{machine.device}, {machine.name}, {machine.memory_gb:.0f} GB",
            "data": f"{self.data.train.label}: {self.num_rows} pairs ({dropped} dropped)",
            "dev": f"{self.data.dev.label}: {len(self.data.dev_task.pairs)} pairs, Spearman",
            "adapter": f"LoRA rank {config.lora.rank}, scale {config.lora.scale:g} "
            f"(alpha {config.lora.alpha:g}), {trainable:,} of {total:,} weights",
            "objective": f"DPO ({config.objective.loss}), beta {config.objective.beta:g}, "
            f"{self.scorer.path} scoring, {self.scorer.shared} shared prompt tokens",
            "steps": f"{self.trainer.num_steps} of {config.train.batch_size} pairs, peak learning "
            f"rate {config.train.learning_rate:g}, {config.train.schedule}",
            "output": str(self.folder),
        }

    def events(self) -> Iterator[Event]:
        """Train; write metrics and the best adapter as they come; yield every event."""
        encoder = Encoder(self.loaded, EncoderSettings(max_tokens=self.config.model.max_tokens))
        (self.folder / RESULTS_FILE).unlink(missing_ok=True)  # would vouch for an unfinished run
        write_text(self.folder / CONFIG_COPY, dump_config(self.config))
        encoder.save_settings(self.folder)
        with (self.folder / METRICS_FILE).open("w", encoding="utf-8") as log:
            for event in self.trainer.run(lambda: self._dev_score(encoder), self.config.eval):
                self._keep(event)
                log.write(json.dumps(_as_record(event)) + "\n")
                log.flush()
                yield event
        write_text(self.folder / RESULTS_FILE, json.dumps(self.summary(), indent=2) + "\n")

    def _dev_score(self, encoder: Encoder) -> float:
        return evaluate_sts(encoder, [self.data.dev_task])[0].spearman * 100

    def _keep(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.last_step = event.step
        if isinstance(event, Evaluated):
            self.scores[event.step] = event.score
            self.best_step = event.best_step
            if event.weights is not None:
                save_adapter(self.folder, event.weights, self.config.lora, self.loaded)

    def summary(self) -> dict[str, Any]:
        """Return the outcome: base and best dev score (Spearman x 100), steps, time, machine."""
        return {
            "base_dev_spearman": _defined(self.scores.get(0)),
            "best_dev_spearman": _defined(self.scores.get(self.best_step)),
            "best_step": self.best_step,
            "steps": self.last_step,
            "pairs": self.num_rows,
            "dev_scores": {str(step): _defined(score) for step, score in self.scores.items()},
            "seconds": round(time.perf_counter() - self.started, 1),
            "peak_memory_gb": round(runtime.peak_memory_gb(), 2),
            "machine": asdict(runtime.machine()),
            "versions": runtime.package_versions(),
            "model": {
                "name": self.loaded.location.name,
                "origin": self.loaded.location.origin,
                "revision": self.loaded.location.revision,
                "fingerprint": self.loaded.fingerprint,
            },
        }


def check_output(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder that holds something else than an earlier run, or a run without `force`.

    Raises:
        UsageError: the folder is taken.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is not a folder", state="nothing was started")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    is_run = (folder / METRICS_FILE).is_file() and (folder / CONFIG_COPY).is_file()
    if not is_run:
        raise UsageError(
            Problem(f"{folder} holds other files", fix="choose another with --adapter-path"),
            state="nothing was started",
        )
    if not force:
        raise UsageError(
            Problem(
                f"{folder} holds an earlier run",
                fix="add --force to replace it, or choose another with --adapter-path",
            ),
            state="nothing was started",
        )


def prepare_run(config: SempaConfig, data: RunData) -> TrainingRun:
    """Load the model, tokenise, attach the adapter, choose the scoring path.

    Raises:
        ModelError: the model cannot be loaded.
        DataError: no row fits `model.max_tokens`.
    """
    started = time.perf_counter()
    loaded = load_model(config.model.name, revision=config.model.revision, dtype=config.model.dtype)
    tokenized = tokenize_preferences(data.records, loaded.tokenizer, config.model.max_tokens)
    if not tokenized.rows:
        raise DataError(
            Problem(
                f"all {len(data.records)} rows are longer than {config.model.max_tokens} tokens",
                place=str(data.train.path),
                fix="raise model.max_tokens",
            ),
            state="nothing was trained",
        )
    attach(loaded.model, config.lora, config.train.seed)
    scorer = choose_scoring(loaded.model, tokenized.rows, loaded.dtype, config.train.scoring)
    trainer = Trainer(loaded.model, tokenized.rows, scorer, config.train, config.objective)
    return TrainingRun(
        config, data, loaded, trainer, scorer, len(tokenized.rows), tokenized.num_too_long, started
    )


def _defined(score: float | None) -> float | None:
    """Return None for NaN, the score of vectors that are all alike: JSON knows no NaN."""
    return None if score is None or math.isnan(score) else score


def _as_record(event: Event) -> dict[str, Any]:
    """Return an event as one line of metrics.jsonl."""
    if isinstance(event, StepDone):
        return {"step": event.step, **event.metrics}
    if isinstance(event, Evaluated):
        score = _defined(event.score)
        return {"step": event.step, "dev/spearman": score, "best_step": event.best_step}
    return {"step": event.step, "skipped_rows": event.rows}
