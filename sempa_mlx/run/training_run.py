"""A training run that goes on: events out, and everything it leaves in its folder.

Settings are written first, metrics line by line, the adapter whenever a better one is found, and a
checkpoint from time to time: a run that is stopped leaves the best adapter so far, and can go on.
"""

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import mlx.core as mx

from sempa_mlx import runtime
from sempa_mlx.config import SempaConfig
from sempa_mlx.config_resolve import dump_config
from sempa_mlx.encoder.coder_file import CODER_FILE
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.errors import ResourceError
from sempa_mlx.files import write_text
from sempa_mlx.memory import out_of_memory
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.lora import save_adapter, trained_weights
from sempa_mlx.model.scoring import Scorer
from sempa_mlx.run.folder import CHECKPOINTS, CONFIG_COPY, METRICS_FILE, RESULTS_FILE
from sempa_mlx.run.inputs import RunData
from sempa_mlx.run.joint_coder import JointCoder, write_joint_coder
from sempa_mlx.run.records import as_record, defined
from sempa_mlx.run.selection import DevEvaluation, best_scale
from sempa_mlx.run.terms import describe_terms
from sempa_mlx.run.trackers import Tracker, numbers, tracking
from sempa_mlx.training.checkpoint import Checkpoint, save_checkpoint
from sempa_mlx.training.events import DialSearched, Evaluated, Event, StepDone, StepSkipped
from sempa_mlx.training.memory import SMALLER
from sempa_mlx.training.step_folders import newest_first
from sempa_mlx.training.trainer import Progress, Trainer, count_parameters, micro_batch_tokens
from sempa_mlx.world import World


@dataclass(slots=True)
class TrainingRun:
    """A run that is ready to go. Iterate over `events`, then read `summary`."""

    config: SempaConfig
    data: RunData
    loaded: LoadedModel
    encoder: Encoder
    trainer: Trainer
    scorer: Scorer
    evaluation: DevEvaluation
    identity: dict[str, str]
    lines: Sequence[int]
    num_too_long: int
    expected_peak_gb: float
    memory_remark: str
    world: World = field(default_factory=World)
    coder: JointCoder | None = None
    started: float = field(default_factory=time.perf_counter)
    scores: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, mx.array] = field(default_factory=dict)
    dial: dict[float, float] = field(default_factory=dict)
    num_lines: int = 0
    is_stopped: bool = False

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output.path)

    @property
    def num_rows(self) -> int:
        """How many rows are trained on; `lines` says where each stands in its file."""
        return len(self.lines)

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self.trainer.progress

    def facts(self) -> dict[str, str]:
        """Return the header of a run: what is trained, on what, with what."""
        config, loaded, report = self.config, self.loaded, self.data.report
        terms = describe_terms(config, self.scorer, self.encoder.settings.method)
        machine = runtime.machine()
        trainable, total = count_parameters(loaded.model)
        dtype = runtime.dtype_name(loaded.dtype)
        dropped = sum(count for _, count in report.dropped) + self.num_too_long
        kind = {"lora": "LoRA", "dora": "DoRA", "rslora": "rsLoRA"}[config.lora.kind]
        commit = f" at {loaded.location.revision[:12]}" if loaded.location.revision else ""
        return {
            "model": f"{loaded.location.name} ({loaded.location.origin}{commit}), {dtype}",
            "device": f"{machine.device}, {machine.name}, {machine.memory_gb:.0f} GB",
            "data": f"{self.data.train.label}: {self.num_rows} pairs ({dropped} dropped)",
            "dev": self._dev(),
            "prompts": terms["prompts"],
            "adapter": f"{kind} rank {config.lora.rank}, scale {config.lora.scale:g} "
            f"(alpha {config.lora.alpha:g}), {trainable:,} of {total:,} weights",
            "objective": terms["objective"],
            "steps": f"{self.trainer.num_steps} of {config.train.batch_size} pairs, peak learning "
            f"rate {config.train.learning_rate:g}, {config.train.schedule}",
            "memory": f"about {self.expected_peak_gb:.1f} GB at the peak of a step",
            "output": str(self.folder),
        }

    def _dev(self) -> str:
        """Name what the run is evaluated on."""
        data, rows = self.data, self.evaluation.num_rows
        found = f"{data.dev.label}: {len(data.dev_task.pairs)} pairs, Spearman"
        if data.dev_rows is None:
            return found
        return f"{found}; {data.dev_rows.label}: {rows} rows ({data.num_dev_rows - rows} dropped)"

    def events(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train; write what comes; yield every event.

        `should_stop` is asked after each: then a checkpoint is written, `is_stopped` set, and no
        more events come.

        Raises:
            RunError: training diverged, or a self-check failed.
            ResourceError: memory or disk do not suffice. Earlier checkpoints are kept.
        """
        try:
            yield from self._events(should_stop)
        except (MemoryError, RuntimeError) as error:
            shortage = self._shortage(error)
            if shortage is None:
                raise
            raise shortage from error

    def _events(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        settings = self.config.model_dump(mode="json")
        tracker = None if self.world.rank else self.config.output.report_to
        with self._log() as log, tracking(tracker, self.folder, settings) as track:
            for event in self.trainer.run(self.evaluation, self.config.eval):
                if isinstance(event, StepSkipped):
                    event = replace(event, rows=[self.lines[row] for row in event.rows])
                self._keep(event, log, track)
                yield event
                self.is_stopped = self.world.any(should_stop())
                if self.is_stopped or self._is_due(event):
                    self.save()
                if self.is_stopped:
                    return
            if self._can_dial():
                found = self._search_dial()
                self._keep(found, log, track)
                yield found
        if not self.world.rank:
            write_text(self.folder / RESULTS_FILE, json.dumps(self.summary(), indent=2) + "\n")

    def _shortage(self, error: Exception) -> ResourceError | None:
        """Return what to do about a shortage of memory; None if the error is no such thing."""
        fewer = max(micro_batch_tokens(self.config.train) // 2, 64)
        folder = shlex.quote(str(self.folder))
        again = f"sempa-mlx train --resume --adapter-path {folder}"
        found = self.folder / CHECKPOINTS
        steps = newest_first(found) if found.is_dir() else []
        return out_of_memory(
            error,
            f"not enough memory in step {self.progress.step + 1}",
            fix=f"{SMALLER}; such as: {again} --set train.micro_batch_tokens={fewer}",
            state=f"kept: {steps[0]}" if steps else "there is no checkpoint yet",
        )

    def _log(self) -> Any:  # noqa: ANN401 - a file, or nothing for processes that write nothing
        """Open the metrics: behind the lines that belong to the steps done, if any."""
        if self.world.rank:
            return nullcontext()
        (self.folder / RESULTS_FILE).unlink(missing_ok=True)  # would vouch for an unfinished run
        write_text(self.folder / CONFIG_COPY, dump_config(self.config))
        path = self.folder / METRICS_FILE
        lines = path.read_text(encoding="utf-8").splitlines(True) if self.num_lines else []
        write_text(path, "".join(lines[: self.num_lines]))
        if self.num_lines:
            self._put_best_back()
        else:  # a new run: what an earlier one left is not its past
            shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
            (self.folder / CODER_FILE).unlink(missing_ok=True)
            self.encoder.save_settings(self.folder)
        return path.open("a", encoding="utf-8")

    def _keep(self, event: Event, log: IO[str] | None, track: Tracker) -> None:
        """Remember what an event says; the process that has the log writes it down."""
        self._remember(event)
        if log is None:
            return
        if isinstance(event, Evaluated) and event.weights is not None:
            self._save_best(event.weights, event.score.scale)
        if isinstance(event, DialSearched):
            self.encoder.with_scale(event.scale).save_settings(self.folder)
        record = as_record(event)
        track(numbers(record), self.progress.step)
        log.write(json.dumps(record) + "\n")
        log.flush()

    def _save_best(self, weights: dict[str, mx.array], scale: float) -> None:
        """Write the adapter, which the model has on, with its scale and coder."""
        save_adapter(self.folder, weights, self.config.lora, self.loaded)
        self.encoder.with_scale(scale).save_settings(self.folder)
        if self.coder is not None:
            path, k = self.folder / CODER_FILE, self.config.sparse.k
            write_joint_coder(path, self.coder, self.encoder, k, self.num_rows)

    def _put_best_back(self) -> None:
        """Write the best adapter as the checkpoint has it: the folder's may be of a later step."""
        model, now = self.loaded.model, trained_weights(self.loaded.model)
        model.load_weights(list(self.best_weights.items()), strict=False)
        self._save_best(self.best_weights, self.progress.best_scale)
        model.load_weights(list(now.items()), strict=False)

    def _remember(self, event: Event) -> None:
        self.num_lines += 1
        if isinstance(event, DialSearched):
            self.dial = event.scores
        if isinstance(event, Evaluated):
            self.scores[str(event.step)] = event.score.value
            if event.weights is not None:
                self.best_weights = event.weights

    def _is_due(self, event: Event) -> bool:
        every = self.config.output.save_every
        if every is None:
            return isinstance(event, Evaluated) and event.step > 0
        return isinstance(event, StepDone | StepSkipped) and event.step % every == 0

    def save(self) -> None:
        """Write a checkpoint: what it takes to continue from here, bit for bit."""
        if self.world.rank:
            return
        state = {
            "progress": asdict(self.progress),
            "scores": {step: defined(score) for step, score in self.scores.items()},
            "seconds": time.perf_counter() - self.started,
            "num_lines": self.num_lines,
        }
        checkpoint = Checkpoint(
            self.progress.step,
            trained_weights(self.loaded.model),
            self.trainer.optimizer_state(),
            {} if self.progress.best_step == self.progress.step else self.best_weights,
            state,
            self.identity,
        )
        save_checkpoint(self.folder / CHECKPOINTS, checkpoint, self.config.output.keep)

    def _can_dial(self) -> bool:
        settings = self.config.eval
        return bool(settings.dial and settings.metric == "spearman" and self.progress.best_step)

    def _search_dial(self) -> DialSearched:
        """Try the kept adapter at other scales."""
        progress = self.progress
        found = {progress.best_scale: progress.best_score}
        if not self.config.eval.dial_always:
            self.loaded.model.load_weights(list(self.best_weights.items()), strict=False)
            found |= self.evaluation.spearman(self.config.eval.dial or ())
        return DialSearched(progress.best_step, best_scale(found), found)

    def summary(self) -> dict[str, Any]:
        """Return the outcome: base and best dev score, steps, time, machine."""
        progress = self.progress
        return {
            "metric": self.config.eval.metric,
            "base_dev_score": defined(self.scores.get("0")),
            "best_dev_score": defined(self.dial.get(self.best_scale, progress.best_score)),
            "best_step": progress.best_step,
            "best_scale": self.best_scale,
            "steps": progress.step,
            "pairs": self.num_rows,
            "dev_scores": {step: defined(score) for step, score in self.scores.items()},
            "dial": {f"{scale:g}": defined(score) for scale, score in self.dial.items()},
            "seconds": round(time.perf_counter() - self.started, 1),
            "expected_peak_gb": round(self.expected_peak_gb, 2),
            "peak_memory_gb": round(runtime.peak_memory_gb(), 2),
            "peak_process_gb": round(runtime.peak_process_gb(), 2),
            "machine": asdict(runtime.machine()),
            "versions": runtime.package_versions(),
            "model": {
                "name": self.loaded.location.name,
                "origin": self.loaded.location.origin,
                "revision": self.loaded.location.revision,
                "fingerprint": self.loaded.fingerprint,
            },
            "data": {
                name: {"name": source.label, "revision": source.revision}
                for name, source in (("train", self.data.train), ("dev", self.data.dev))
            },
        }

    @property
    def best_scale(self) -> float:
        """The scale of the adapter with the best dev score."""
        return best_scale(self.dial) if self.dial else self.progress.best_scale
