"""Checkpoints: all that a run needs to go on, in a folder that is whole or not there at all.

Every file is flushed and read back, and a manifest, written last, seals them with their sizes and
SHA-256: `mx.load` takes flipped bytes without a word. No pickle, and no pointer to the latest.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import mlx.core as mx

from sempa_mlx import __version__
from sempa_mlx.errors import ModelError, Problem, RunError
from sempa_mlx.training.step_folders import (
    INTACT,
    newest_first,
    prune,
    refuse_link,
    remove_leftovers,
    staged,
    step_folder,
    step_of,
)

FORMAT = 1
ADAPTER_FILE = "adapter.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
BEST_FILE = "best.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
CONTENT_FILES = (ADAPTER_FILE, OPTIMIZER_FILE, STATE_FILE)  # BEST_FILE only if it says more


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """All that a run needs to go on after `step`.

    Attributes:
        step: optimizer steps done, at least 0.
        adapter: trainable tensors by name, of any dtype but float64.
        optimizer: flattened optimizer state by name, likewise.
        best: the adapter of the best step so far, likewise; empty if that is this step's.
        state: the trainer's own state: plain JSON (NaN allowed), so lists rather than tuples.
        identity: hashes of what the checkpoint belongs to (config, data, base, template), by name.
    """

    step: int
    adapter: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    best: dict[str, mx.array]
    state: dict[str, Any]
    identity: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The newest valid checkpoint, if any, and what is wrong with newer ones."""

    checkpoint: Checkpoint | None
    skipped: tuple[Problem, ...]


class Difference(NamedTuple):
    """A value that a checkpoint and a run do not share; None where there is none."""

    name: str
    found: str | None
    wanted: str | None


class _Manifest(NamedTuple):
    step: int
    identity: dict[str, str]
    files: dict[str, tuple[int, str]]  # bytes, sha256


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint whole or not at all, then remove old ones; return its folder.

    One of the same step is replaced. Of the steps up to this one the newest `keep` stay, later
    ones are left alone. An old one that cannot be removed waits for the next save.

    Args:
        folder: the run's `checkpoints` folder; made if need be.
        checkpoint: what to save.
        keep: how many to keep, at least 1.

    Raises:
        ResourceError: the disk is full or cannot be written to.
        RunError: the disk is broken, or what was read back is not what was written.
        UsageError: the folder is a symbolic link.
        TypeError: the state is no plain JSON.
    """
    if keep < 1 or checkpoint.step < 0:
        raise ValueError(f"cannot keep {keep} checkpoints up to step {checkpoint.step}")
    state = _exact_json(checkpoint.state)
    target = step_folder(folder, checkpoint.step)
    with staged(target) as stage:
        _write_arrays(stage / ADAPTER_FILE, checkpoint.adapter)
        _write_arrays(stage / OPTIMIZER_FILE, checkpoint.optimizer)
        if checkpoint.best:
            _write_arrays(stage / BEST_FILE, checkpoint.best)
        _write(stage / STATE_FILE, lambda file: file.write(state))
        manifest = _seal(_describe(stage, checkpoint))
        _write(stage / MANIFEST_FILE, lambda file: file.write(manifest), to_platter=True)
    prune(folder, checkpoint.step, keep)
    return target


def latest_checkpoint(folder: Path) -> Found:
    """Load the newest valid checkpoint; remove what interrupted saves have left.

    Raises:
        ModelError: the folder cannot be read. One that does not exist has no checkpoints.
        UsageError: the folder is a symbolic link.
    """
    try:
        refuse_link(folder)
        remove_leftovers(folder)
        paths = newest_first(folder)
    except FileNotFoundError:
        return Found(None, ())
    except OSError as error:
        raise ModelError(_problem(folder, error)) from error
    skipped: list[Problem] = []
    for path in paths:
        try:
            return Found(load_checkpoint(path), tuple(skipped))
        except ModelError as error:
            skipped += error.problems
    return Found(None, tuple(skipped))


def load_checkpoint(path: Path) -> Checkpoint:
    """Load one checkpoint, bit for bit as it was saved.

    Raises:
        ModelError: files are missing, changed or unreadable; every fault is named.
    """
    try:
        manifest, problems = _inspect(path)
        if problems or manifest is None:
            raise ModelError(problems, state="nothing was loaded")
        adapter: Any = mx.load(str(path / ADAPTER_FILE))
        optimizer: Any = mx.load(str(path / OPTIMIZER_FILE))
        best: Any = mx.load(str(path / BEST_FILE)) if BEST_FILE in manifest.files else {}
        mx.eval(adapter, optimizer, best)  # mx.load is lazy, and the files may be pruned meanwhile
        state = json.loads((path / STATE_FILE).read_bytes())
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(_problem(path, error), state="nothing was loaded") from error
    return Checkpoint(manifest.step, adapter, optimizer, best, state, manifest.identity)


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[Difference]:
    """List by name where two identities differ, or one lacks a value of the other."""
    both = [Difference(name, found.get(name), wanted.get(name)) for name in {*found, *wanted}]
    return sorted(one for one in both if one.found != one.wanted)


# Writing


def _write(path: Path, write: Callable[[BinaryIO], object], *, to_platter: bool = False) -> None:
    with path.open("xb") as file:
        write(file)
        file.flush()
        if to_platter and sys.platform == "darwin":
            # There fsync stops at the drive's cache. This empties it, of the data of the files
            # before as well; not every drive can.
            with suppress(OSError):
                fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
        os.fsync(file.fileno())


def _write_arrays(path: Path, arrays: dict[str, mx.array]) -> None:
    # Given a Python file, not a path, mlx lets the OSError through, which tells why.
    _write(path, lambda file: mx.save_safetensors(file, arrays, metadata={"format": "mlx"}))
    try:
        there: Any = mx.load(str(path))
    except RuntimeError as error:
        raise RunError(_problem(path, error), state=INTACT) from error
    if _shapes(there) != _shapes(arrays):
        problem = Problem("read back, the tensors are not those that were written", str(path))
        raise RunError(problem, state=INTACT)


def _shapes(arrays: dict[str, mx.array]) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
    return {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}


def _exact_json(state: dict[str, Any]) -> bytes:
    """Render as JSON, unless it would come back as something else."""
    text = _json(state)
    if repr(json.loads(text)) != repr(state):  # == takes 1 for 1.0 and tells NaN from itself
        raise TypeError("the state holds tuples, keys that are no strings, or numbers of numpy")
    return text


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


# The manifest


def _describe(stage: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": checkpoint.step,
        "versions": {"sempa-mlx": __version__, "mlx": version("mlx")},
        "identity": checkpoint.identity,
        "files": {
            name: {"bytes": (stage / name).stat().st_size, "sha256": _sha256(stage / name)}
            for name in (*CONTENT_FILES, *([BEST_FILE] if checkpoint.best else []))
        },
    }


def _seal(manifest: dict[str, Any]) -> bytes:
    """Render a manifest with its own SHA-256 as the last entry."""
    return _json(manifest | {"sha256": hashlib.sha256(_json(manifest)).hexdigest()})


def _inspect(path: Path) -> tuple[_Manifest | None, list[Problem]]:
    """Read the manifest and check every file against it; name all faults."""
    if path.is_symlink() or not path.is_dir():
        return None, [Problem("no checkpoint folder", str(path))]
    manifest, problems = None, []
    try:
        manifest = _read_manifest(path)
    except (OSError, ValueError) as error:
        problems.append(_problem(path / MANIFEST_FILE, error))
    for name in manifest.files if manifest else CONTENT_FILES:
        try:
            _check_file(path / name, manifest.files[name] if manifest else None)
        except (OSError, ValueError) as error:
            problems.append(_problem(path / name, error))
    return manifest, problems


def _read_manifest(path: Path) -> _Manifest:
    """Read the manifest; raise ValueError if it is not, byte for byte, one that was written."""
    content = (path / MANIFEST_FILE).read_bytes()
    try:
        raw = json.loads(content)
        layout = raw["format"]
        if layout == FORMAT:
            files = {
                name: (raw["files"][name]["bytes"], raw["files"][name]["sha256"])
                for name in (*CONTENT_FILES, *({BEST_FILE} & raw["files"].keys()))
            }
            manifest = _Manifest(raw["step"], raw["identity"], files)
            del raw["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("is no complete manifest") from error
    if layout != FORMAT:
        raise ValueError(f"has format {layout}; this version reads {FORMAT}")
    if _seal(raw) != content:
        raise ValueError("has changed since it was written")
    if step_of(path) not in (None, manifest.step):
        raise ValueError(f"is of step {manifest.step}, not of the one the folder is named after")
    return manifest


def _check_file(path: Path, expected: tuple[int, str] | None) -> None:
    """Raise ValueError if a file is not the one of the manifest, as far as that is known."""
    if path.is_symlink():
        raise ValueError("is a symbolic link")
    size = path.stat().st_size
    if expected is None:
        return
    if size != expected[0]:
        raise ValueError(f"has {size} bytes; {expected[0]} were written")
    if _sha256(path) != expected[1]:
        raise ValueError("has changed since it was written (sha256)")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem(path: Path, error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError):
        return Problem("missing", str(path))
    if isinstance(error, OSError):
        return Problem(f"unreadable ({error.strerror})", str(path))
    return Problem(str(error), str(path))
