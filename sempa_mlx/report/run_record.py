"""What a run folder tells, however much of it is there: settings, metrics, outcome, versions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sempa_mlx.config_file import Setting, read_settings
from sempa_mlx.config_resolve import SCHEMA
from sempa_mlx.encoder.settings import SETTINGS_FILE
from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.model.lora import CONFIG_FILE
from sempa_mlx.report.numbers import value_of
from sempa_mlx.run.folder import CHECKPOINTS, CONFIG_COPY, METRICS_FILE, RESULTS_FILE


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as its folder has it.

    Attributes:
        folder: as the user named it.
        settings: dotted key to value, as written in config.yaml; empty if it cannot be read.
        metrics: the lines of metrics.jsonl that are whole, in file order, each with a whole `step`.
        results: results.json; empty if the run did not finish.
        encoder: encoder.json; empty if there is none.
        has_adapter: an adapter lies in the folder.
        has_checkpoint: the run can be resumed.
        remarks: what is missing or broken, one sentence each.
    """

    folder: Path
    settings: Mapping[str, object]
    metrics: tuple[Mapping[str, Any], ...]
    results: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    has_adapter: bool = False
    has_checkpoint: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the folder's path."""
        return self.folder.name or self.folder.resolve().name

    def setting(self, key: str) -> str | None:
        """Return a setting as text, None if it is null or not there."""
        value = self.settings.get(key)
        return None if value is None else f"{value}"

    def number(self, key: str) -> float:
        """Return a setting that is a number, else NaN."""
        return value_of(self.settings, key)


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; parts that are missing or broken become remarks.

    Raises:
        UsageError: there is no such folder, or nothing in it is a run's.
    """
    if not folder.is_dir():
        raise UsageError(Problem("no such folder", str(folder)), state="no report was written")
    if not any((folder / name).is_file() for name in (METRICS_FILE, CONFIG_COPY)):
        what = f"no run: neither {METRICS_FILE} nor {CONFIG_COPY} is there"
        fix = "name the folder that `sempa-mlx train` wrote (--adapter-path)"
        raise UsageError(Problem(what, str(folder), fix=fix), state="no report was written")
    remarks: list[str] = []
    settings = _settings(folder / CONFIG_COPY, remarks)
    metrics = _metrics(folder / METRICS_FILE, remarks)
    unfinished = f"{RESULTS_FILE} is missing: the run has not finished."
    results = _document(folder / RESULTS_FILE, remarks, unfinished)
    encoder = _document(folder / SETTINGS_FILE, remarks, f"{SETTINGS_FILE} is missing.")
    has_adapter = (folder / CONFIG_FILE).is_file()
    if not has_adapter:
        remarks.append(f"{CONFIG_FILE} is missing: there is no adapter to measure.")
    checkpoints = folder / CHECKPOINTS
    has_checkpoint = checkpoints.is_dir() and any(checkpoints.iterdir())
    return RunRecord(
        *(folder, settings, tuple(metrics), results, encoder),
        *(has_adapter, has_checkpoint, tuple(remarks)),
    )


def _settings(path: Path, remarks: list[str]) -> dict[str, object]:
    entries = read_settings(path, path.name, SCHEMA)
    problems = [entry for entry in entries if isinstance(entry, Problem)]
    remarks += [f"{problem}." for problem in problems]
    return {entry.key: entry.value for entry in entries if isinstance(entry, Setting)}


def _metrics(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    text = _text(path, remarks, f"{path.name} is missing: there are no curves.")
    lines = text.split("\n")
    found: list[dict[str, Any]] = []
    broken = []
    for number, line in enumerate(lines, 1):
        record = _object(line)
        if record is not None and type(record.get("step")) is int:
            found.append(record)
        elif line.strip():
            broken.append(number)
    if broken == [len(lines)]:
        remarks.append(f"The last line of {path.name} is cut off, as by a run that was killed.")
    elif broken:
        which = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        remarks.append(f"{path.name}: broken lines are left out ({len(broken)}: {which}).")
    return found


def _document(path: Path, remarks: list[str], missing: str) -> dict[str, Any]:
    found = _object(text) if (text := _text(path, remarks, missing)) else {}
    if found is None:
        remarks.append(f"{path.name} is broken and left out.")
    return found or {}


def _text(path: Path, remarks: list[str], missing: str) -> str:
    if not path.is_file():
        remarks.append(missing)
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        remarks.append(f"{path.name} cannot be read: {error.strerror}.")
        return ""


def _object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a text is, or None."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
