"""Checkpoints under every fault that a disk, a kill or a stray byte can bring."""

import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sempa_mlx.errors import ModelError, ResourceError, RunError, UsageError
from sempa_mlx.training.checkpoint import (
    Checkpoint,
    Difference,
    differences,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from tests.processes import ended_process

CONTENT = ["adapter.safetensors", "best.safetensors", "optimizer.safetensors", "state.json"]
FILES = [*CONTENT, "manifest.json"]
IDENTITY = {"config": "c0ffee", "data": "da7a"}


def make(step, **changes):
    """A checkpoint whose every value tells its step."""
    fields = {
        "adapter": {"layers.0.lora_a": mx.full((3, 4), step + 0.1)},
        "optimizer": {
            "step": mx.array(step, mx.uint64),
            "layers.0.lora_a.m": mx.full((3, 4), step, mx.bfloat16),
        },
        "best": {"layers.0.lora_a": mx.full((3, 4), step + 0.2)},
        "state": {"best_score": 0.1 * step, "best_step": step},
        "identity": IDENTITY,
    }
    return Checkpoint(step, **(fields | changes))


def bits(arrays):
    """Names, dtypes, shapes and bytes: what `==` would forgive, NaN and -0.0, included."""
    return {
        name: (array.dtype, array.shape, bytes(memoryview(array.reshape(-1).view(mx.uint8))))
        for name, array in arrays.items()
    }


def content(checkpoint):
    arrays = bits(checkpoint.adapter), bits(checkpoint.optimizer)
    return checkpoint.step, *arrays, repr(checkpoint.state), checkpoint.identity


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def latest_step(folder):
    found = latest_checkpoint(folder).checkpoint
    return None if found is None else found.step


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """These tests ask when what is flushed, which is as true without waiting for it."""
    monkeypatch.setattr(os, "fsync", os.fstat)  # an open descriptor it must be


# What is saved comes back


def test_every_bit_comes_back(tmp_path):
    saved = make(
        7,
        adapter={"a": mx.array([[1.5, -0.0], [float("nan"), float("inf")]]), "b": mx.zeros((2, 0))},
        optimizer={
            "step": mx.array(2**63 - 1, mx.uint64) * 2 + 1,
            "learning_rate": mx.array(0.1, mx.float32),
            "m": mx.array([1.0, 3e38, 1e-40], mx.bfloat16),
            "v": mx.arange(6, dtype=mx.float16).reshape(2, 3).T,
            "i": mx.array([-1], mx.int8),
            "bool": mx.array([True, False]),
        },
    )
    path = save_checkpoint(tmp_path / "run" / "checkpoints", saved, keep=1)
    assert path == tmp_path / "run" / "checkpoints" / "step-000007"
    assert content(load_checkpoint(path)) == content(saved)
    assert content(latest_checkpoint(path.parent).checkpoint) == content(saved)


def test_empty_parts_come_back(tmp_path):
    saved = Checkpoint(0, {}, {}, {}, {}, {})
    assert content(load_checkpoint(save_checkpoint(tmp_path, saved, 1))) == content(saved)


def test_loaded_arrays_outlive_their_files(tmp_path):
    loaded = load_checkpoint(save_checkpoint(tmp_path, make(1), 1))
    for file in (tmp_path / "step-000001").glob("*.safetensors"):
        file.write_bytes(b"\xff" * file.stat().st_size)
    assert content(loaded) == content(make(1))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6
)


@given(st.dictionaries(st.text(), JSON, max_size=3))
@example({"lone surrogate": "\ud800", "long": 10**300, "small": 5e-324, "nan": float("nan")})
@settings(max_examples=25, deadline=None)
def test_state_comes_back_exactly(tmp_path_factory, state):
    folder = tmp_path_factory.getbasetemp() / "states"
    loaded = load_checkpoint(save_checkpoint(folder, make(1, state=state), 1))
    assert repr(loaded.state) == repr(state)


@pytest.mark.parametrize(
    "value", [(1, 2), {1: 2}, {1}, b"x", mx.array(1), Path("x"), {"deep": [{"er": (1,)}]}]
)
def test_a_state_that_json_would_change_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "checkpoints", make(1, state={"x": value}), 1)
    assert names(tmp_path) == []


def test_a_step_before_the_first_and_keeping_none_are_refused(tmp_path):
    for step, keep in ((-1, 1), (1, 0)):
        with pytest.raises(ValueError, match="cannot keep"):
            save_checkpoint(tmp_path, make(step), keep)
    assert names(tmp_path) == []


def test_tensors_that_mlx_cannot_write_leave_nothing(tmp_path):
    save_checkpoint(tmp_path, make(1), 2)
    with pytest.raises(RuntimeError, match="invalid dtype"):
        save_checkpoint(tmp_path, make(2, adapter={"a": mx.array(1.0, mx.float64)}), 2)
    assert names(tmp_path) == ["step-000001"]


def test_other_readers_find_what_the_manifest_tells(tmp_path):
    path = save_checkpoint(tmp_path, make(400), 1)
    assert names(path) == sorted(FILES)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["identity"]) == (1, 400, IDENTITY)
    assert {"sempa-mlx", "mlx"} <= manifest["versions"].keys()
    written = {name: (path / name).read_bytes() for name in CONTENT}
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in written.items()
    }
    tensors = safetensors.numpy.load(written["adapter.safetensors"])
    assert {name: array.shape for name, array in tensors.items()} == {"layers.0.lora_a": (3, 4)}
    assert json.loads(written["state.json"]) == {"best_score": 40.0, "best_step": 400}


# Which one is the latest


def test_no_folder_has_no_checkpoints(tmp_path):
    found = latest_checkpoint(tmp_path / "nowhere")
    assert (found.checkpoint, found.skipped) == (None, ())
    assert names(tmp_path) == []


def test_the_latest_is_the_highest_step_and_not_the_last_word_of_the_alphabet(tmp_path):
    for step in (999_999, 1_000_000, 5):
        save_checkpoint(tmp_path, make(step), 9)
    assert latest_step(tmp_path) == 1_000_000
    assert names(tmp_path) == ["step-000005", "step-1000000", "step-999999"]


def test_other_names_are_no_checkpoints_and_stay(tmp_path):
    strangers = ["step-5", "step-000009.bak", "step-٠٠٠٠٠٩", ".tmp-mine", ".tmp-step-1-x", "notes"]
    for name in strangers:
        (tmp_path / name).mkdir()
    save_checkpoint(tmp_path, make(3), 1)
    found = latest_checkpoint(tmp_path)
    assert (found.checkpoint.step, found.skipped) == (3, ())
    assert names(tmp_path) == sorted([*strangers, "step-000003"])


def test_a_file_and_a_link_under_a_checkpoints_name_are_skipped(tmp_path):
    path = save_checkpoint(tmp_path, make(1), 1)
    (tmp_path / "step-000002").write_text("x")
    (tmp_path / "step-000003").symlink_to(path)
    found = latest_checkpoint(tmp_path)
    assert found.checkpoint.step == 1
    assert [(Path(p.place).name, p.what) for p in found.skipped] == [
        ("step-000003", "no checkpoint folder"),
        ("step-000002", "no checkpoint folder"),
    ]


def test_a_linked_folder_is_refused(tmp_path):
    save_checkpoint(tmp_path / "real", make(1), 1)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(UsageError, match="symbolic link"):
        save_checkpoint(tmp_path / "link", make(2), 1)
    with pytest.raises(UsageError, match="symbolic link"):
        latest_checkpoint(tmp_path / "link")
    assert names(tmp_path / "real") == ["step-000001"]


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="file: unreadable"):
        latest_checkpoint(tmp_path / "file")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ResourceError, match="cannot write the checkpoint"):
            save_checkpoint(folder, make(1), 1)


# Damage


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for step in (1, 2):
        save_checkpoint(folder, make(step), 2)
    return folder


@contextmanager
def damaged(path, data):
    """Give a file another content for a while."""
    before = path.read_bytes()
    assert data != before
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def assert_falls_back(folder, file, data):
    """With this content in a file of step 2, step 1 is used, and that file is blamed."""
    path = folder / "step-000002" / file
    with damaged(path, data):
        found = latest_checkpoint(folder)
    assert content(found.checkpoint) == content(make(1))
    assert [problem.place for problem in found.skipped] == [str(path)]
    assert all(problem.what for problem in found.skipped)
    assert latest_step(folder) == 2


@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_any_flipped_byte_is_noticed(two_checkpoints, file, where, flip):
    data = bytearray((two_checkpoints / "step-000002" / file).read_bytes())
    data[int(where * len(data))] ^= flip
    assert_falls_back(two_checkpoints, file, bytes(data))


@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None)
def test_any_truncation_is_noticed(two_checkpoints, file, where):
    data = (two_checkpoints / "step-000002" / file).read_bytes()
    assert_falls_back(two_checkpoints, file, data[: int(where * len(data))])


@pytest.mark.parametrize("file", FILES)
def test_more_bytes_are_noticed(two_checkpoints, file):
    data = (two_checkpoints / "step-000002" / file).read_bytes()
    assert_falls_back(two_checkpoints, file, data + b"\n")
    assert_falls_back(two_checkpoints, file, bytes(len(data)))


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_noticed(tmp_path, file):
    for step in (1, 2):
        save_checkpoint(tmp_path, make(step), 2)
    (tmp_path / "step-000002" / file).unlink()
    found = latest_checkpoint(tmp_path)
    assert found.checkpoint.step == 1
    assert [str(p) for p in found.skipped] == [f"{tmp_path}/step-000002/{file}: missing"]


def test_all_faults_are_told_at_once(tmp_path):
    path = save_checkpoint(tmp_path, make(1), 1)
    (path / "adapter.safetensors").unlink()
    (path / "optimizer.safetensors").write_bytes(b"x")
    (path / "best.safetensors").unlink()
    (path / "state.json").write_text((path / "state.json").read_text().replace("1", "2"))
    with pytest.raises(ModelError) as error:
        load_checkpoint(path)
    told = {Path(problem.place).name: problem.what for problem in error.value.problems}
    assert told.keys() == set(CONTENT)
    assert told["adapter.safetensors"] == "missing"
    assert told["optimizer.safetensors"].startswith("has 1 bytes; ")
    assert told["state.json"] == "has changed since it was written (sha256)"
    assert (error.value.exit_code, error.value.state) == (1, "nothing was loaded")


def test_when_none_is_valid_all_reasons_are_told(tmp_path):
    for step in (1, 2):
        (save_checkpoint(tmp_path, make(step), 2) / "manifest.json").unlink()
    found = latest_checkpoint(tmp_path)
    assert found.checkpoint is None
    assert [Path(p.place).parent.name for p in found.skipped] == ["step-000002", "step-000001"]


def test_linked_content_and_folders_for_files_are_faults(tmp_path):
    path = save_checkpoint(tmp_path / "a", make(1), 1)
    (path / "state.json").rename(tmp_path / "state.json")
    (path / "state.json").symlink_to(tmp_path / "state.json")
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()
    with pytest.raises(ModelError) as error:
        load_checkpoint(path)
    told = [(Path(problem.place).name, problem.what) for problem in error.value.problems]
    assert told == [
        ("manifest.json", "unreadable (Is a directory)"),
        ("state.json", "is a symbolic link"),
    ]


def sealed(manifest):
    """A manifest as anybody could write it who knows the rule."""

    def text(value):
        return (json.dumps(value, indent=2) + "\n").encode()

    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return text({**body, "sha256": hashlib.sha256(text(body)).hexdigest()})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": 2}, "has format 2; this version reads 1"),
        ({"files": {}}, "is no complete manifest"),
        ({"files": 3}, "is no complete manifest"),
        ({"step": 3}, "is of step 3, not of the one the folder is named after"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path, change, fault):
    path = save_checkpoint(tmp_path, make(2), 1) / "manifest.json"
    manifest = json.loads(path.read_text())
    assert sealed(manifest) == path.read_bytes()
    path.write_bytes(sealed(manifest | change))
    with pytest.raises(ModelError) as error:
        load_checkpoint(path.parent)
    assert [str(problem) for problem in error.value.problems] == [f"{path}: {fault}"]


def test_a_file_that_is_no_safetensors_is_told_even_if_it_is_in_the_manifest(tmp_path):
    path = save_checkpoint(tmp_path, make(2), 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "adapter.safetensors").write_bytes(b"junk")
    entry = {"bytes": 4, "sha256": hashlib.sha256(b"junk").hexdigest()}
    manifest["files"]["adapter.safetensors"] = entry
    (path / "manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(ModelError, match="step-000002: "):
        load_checkpoint(path)


def test_a_copy_under_any_name_loads_but_not_under_that_of_another_step(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints", make(2), 1)
    shutil.copytree(path, tmp_path / "mine")
    assert content(load_checkpoint(tmp_path / "mine")) == content(make(2))
    path.rename(tmp_path / "step-000003")
    with pytest.raises(ModelError, match="is of step 2"):
        load_checkpoint(tmp_path / "step-000003")
    with pytest.raises(ModelError, match="no checkpoint folder"):
        load_checkpoint(path)


# The disk refuses


class Disk:
    """Counts what is asked of the disk; from the k-th call on it fails, once or for good."""

    def __init__(self, monkeypatch, fail_at=0, number=errno.ENOSPC, *, forever=False):
        self.calls, self.fail_at, self.number, self.forever = [], fail_at, number, forever
        for name in ("fsync", "rename", "mkdir"):
            monkeypatch.setattr(os, name, self.watched(name, getattr(os, name)))
        opened = Path.open

        def open_watched(path, mode="r", *rest, **options):
            file = opened(path, mode, *rest, **options)
            return WatchedFile(file, self) if mode == "xb" else file

        monkeypatch.setattr(Path, "open", open_watched)

    @property
    def has_failed(self):
        return 0 < self.fail_at <= len(self.calls)

    def count(self, name):
        self.calls.append(name)
        number = len(self.calls)
        if self.fail_at and (number == self.fail_at or (self.forever and number > self.fail_at)):
            raise OSError(self.number, os.strerror(self.number))

    def watched(self, name, call):
        def watched_call(*given, **options):
            self.count(name)
            return call(*given, **options)

        return watched_call


class WatchedFile:
    """A file whose failing write leaves half of the bytes."""

    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        try:
            self.disk.count("write")
        except OSError:
            self.file.write(bytes(data)[: len(data) // 2])
            raise
        return self.file.write(data)


@pytest.mark.parametrize(
    ("step", "number", "forever"),
    [
        pytest.param(2, errno.ENOSPC, True, id="a new step, full for good"),
        pytest.param(2, errno.EIO, False, id="a new step, one failure"),
        pytest.param(1, errno.ENOSPC, False, id="the same step, full for a moment"),
        pytest.param(1, errno.EIO, True, id="the same step, failures for good"),
    ],
)
def test_whatever_the_disk_refuses_a_valid_checkpoint_stays(tmp_path, step, number, forever):
    """The k-th call fails, for every k until there are no more calls."""
    state = {"try": "second"}
    refused = set()
    for k in range(1, 100):
        folder = tmp_path / str(k)
        save_checkpoint(folder, make(1), 1)
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = Disk(monkeypatch, k, number, forever=forever)
            try:
                save_checkpoint(folder, make(step, state=state), 1)
            except (ResourceError, RunError) as error:
                failure = error
                refused.add(disk.calls[k - 1])
            else:
                failure = None
        found = latest_checkpoint(folder)
        assert found.skipped == ()
        assert content(found.checkpoint) in (content(make(1)), content(make(step, state=state)))
        assert [name for name in names(folder) if name.startswith(".")] == []
        if failure is None:
            assert found.checkpoint.state == state
        else:
            (problem,) = failure.problems
            assert problem.place == str(folder / f"step-{step:06d}")
            assert os.strerror(number) in problem.what
            assert problem.evidence.endswith(" GB free on this disk")
            assert ("make room" in problem.fix) == (number == errno.ENOSPC)
            assert failure.exit_code == (4 if number == errno.ENOSPC else 1)
            assert failure.state == "earlier checkpoints are intact"
        save_checkpoint(folder, make(3), 1)
        assert names(folder) == ["step-000003"]
        assert latest_step(folder) == 3
        if not disk.has_failed:
            break
    assert not disk.has_failed
    assert refused == {"mkdir", "write", "fsync", "rename"}


def test_a_refused_first_save_leaves_an_empty_folder(tmp_path, monkeypatch):
    Disk(monkeypatch, 5, forever=True)
    with pytest.raises(ResourceError):
        save_checkpoint(tmp_path / "checkpoints", make(1), 1)
    assert names(tmp_path / "checkpoints") == []


@contextmanager
def largest_file(size):
    """Have the system itself refuse files above a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_of_the_system_is_told_wherever_it_strikes(tmp_path):
    big = make(2, adapter={"a": mx.zeros((5000,))})
    save_checkpoint(tmp_path, make(1), 1)
    for size in (0, 1, 7, 8, 100, 200, 4096, 20_000):  # mlx buffers nothing above 8 KiB
        with largest_file(size), pytest.raises(ResourceError) as error:
            save_checkpoint(tmp_path, big, 1)
        assert os.strerror(errno.EFBIG) in str(error.value)
        assert names(tmp_path) == ["step-000001"]
    with largest_file(30_000):
        save_checkpoint(tmp_path, big, 1)
    assert content(latest_checkpoint(tmp_path).checkpoint) == content(big)


@pytest.mark.parametrize(
    "written",
    [
        lambda file, arrays: mx.save_safetensors(file, dict(list(arrays.items())[1:])),
        lambda file, arrays: mx.save_safetensors(file, {n: a[None] for n, a in arrays.items()}),
        lambda file, arrays: mx.save_safetensors(
            file, {n: a.astype(mx.int32) for n, a in arrays.items()}
        ),
        lambda file, _arrays: file.write(b"junk"),
    ],
    ids=["a tensor less", "another shape", "another dtype", "junk"],
)
def test_what_reads_back_otherwise_is_an_error(tmp_path, monkeypatch, written):
    save_checkpoint(tmp_path, make(1), 1)
    save = mx.save_safetensors

    def save_wrongly(file, arrays, metadata):
        monkeypatch.setattr(mx, "save_safetensors", save)
        written(file, arrays)

    monkeypatch.setattr(mx, "save_safetensors", save_wrongly)
    with pytest.raises(RunError, match=r"adapter\.safetensors: ") as error:
        save_checkpoint(tmp_path, make(2), 1)
    assert error.value.state == "earlier checkpoints are intact"
    assert names(tmp_path) == ["step-000001"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_no_half(tmp_path, monkeypatch, stop):
    save_checkpoint(tmp_path, make(1), 1)

    def interrupt(*_given, **_options):
        raise stop

    monkeypatch.setattr(mx, "save_safetensors", interrupt)
    with pytest.raises(stop):
        save_checkpoint(tmp_path, make(2), 1)
    assert names(tmp_path) == ["step-000001"]


# The order of things, on which a power cut depends


def trace(folder, checkpoint, keep, monkeypatch):
    """Save, and list what was flushed, renamed and deleted, by name and in order."""
    events = []
    fsync, rename, unlink = os.fsync, os.rename, os.unlink

    def name_of(descriptor):
        there = os.fstat(descriptor)
        inside = [*folder.parent.rglob("*"), folder.parent]
        name = next(p for p in inside if p.stat().st_ino == there.st_ino).name
        return name + "/" * stat.S_ISDIR(there.st_mode)

    def traced_fsync(descriptor):
        events.append(f"fsync {name_of(descriptor)}")
        fsync(descriptor)

    def traced_rename(old, new):
        events.append(f"rename {Path(old).name} {Path(new).name}")
        rename(old, new)

    def traced_unlink(path, **options):
        events.append("unlink")
        unlink(path, **options)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", traced_rename)
    monkeypatch.setattr(os, "unlink", traced_unlink)
    save_checkpoint(folder, checkpoint, keep)
    return events


def test_all_is_flushed_before_the_rename_and_pruned_after_it(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, make(1), 1)
    stage = f".tmp-step-000002-{os.getpid()}"
    doomed = f".tmp-step-000001-{os.getpid()}"
    assert trace(folder, make(2), 1, monkeypatch) == [
        "fsync adapter.safetensors",
        "fsync optimizer.safetensors",
        "fsync best.safetensors",
        "fsync state.json",
        "fsync manifest.json",
        f"fsync {stage}/",
        f"rename {stage} step-000002",
        "fsync checkpoints/",
        f"rename step-000001 {doomed}",
        *5 * ["unlink"],
    ]


def test_what_is_flushed_is_all_of_a_file(tmp_path, monkeypatch):
    sizes = {}

    def note(descriptor):
        found = os.fstat(descriptor)
        sizes[found.st_ino] = found.st_size

    monkeypatch.setattr(os, "fsync", note)
    path = save_checkpoint(tmp_path, make(1), 1)
    for file in path.iterdir():
        assert sizes[file.stat().st_ino] == file.stat().st_size > 0


def test_the_same_step_is_moved_aside_and_only_then_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, make(1), 1)
    stage = f".tmp-step-000001-{os.getpid()}"
    assert trace(folder, make(1), 1, monkeypatch)[6:] == [
        "rename step-000001 step-000001-old",
        f"rename {stage} step-000001",
        "fsync checkpoints/",
        f"rename step-000001-old .tmp-step-000001-old-{os.getpid()}",
        *5 * ["unlink"],
    ]


def test_a_new_folder_is_flushed_into_the_run(tmp_path, monkeypatch):
    events = trace(tmp_path / "run" / "checkpoints", make(1), 1, monkeypatch)
    assert events[0] == "fsync run/"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_cannot_flush_folders_will_do(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    save_checkpoint(tmp_path / "checkpoints", make(1), 1)
    assert latest_step(tmp_path / "checkpoints") == 1


def test_a_disk_that_fails_to_flush_a_folder_will_not_do(tmp_path, monkeypatch):
    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=os.strerror(errno.EIO)):
        save_checkpoint(tmp_path, make(1), 1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("is_able", [True, False])
def test_on_a_mac_the_manifest_reaches_the_platter(tmp_path, monkeypatch, is_able):
    asked = []

    def full_fsync(descriptor, command):
        asked.append((os.fstat(descriptor).st_size, command))
        if not is_able:
            raise OSError(errno.ENOTSUP, "not that drive")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full_fsync)
    path = save_checkpoint(tmp_path, make(1), 1)
    assert asked == [((path / "manifest.json").stat().st_size, 51)]
    assert latest_step(tmp_path) == 1


# Kills

KILLED = """
import os, signal, sys
from pathlib import Path
import sempa_mlx
import mlx.core as mx
from sempa_mlx.training.checkpoint import Checkpoint, save_checkpoint

folder, step, left = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def deadly(call):
    def wrapped(*given, **options):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*given, **options)
    return wrapped

for name in ("fsync", "rename", "rmdir"):
    setattr(os, name, deadly(getattr(os, name)))
adapter = {"layers.0.lora_a": mx.zeros((3, 4))}
save_checkpoint(folder, Checkpoint(step, adapter, {}, {}, {"try": "second"}, {}), keep=1)
"""


@pytest.mark.parametrize("step", [2, 1], ids=["a new step", "the same step again"])
def test_a_kill_at_any_moment_leaves_a_valid_checkpoint(tmp_path, step):
    """Killed at the k-th call, for every k until the save ends."""
    survivors = []
    for k in range(1, 40):
        folder = tmp_path / str(k)
        save_checkpoint(folder, make(1), 1)
        command = [sys.executable, "-c", KILLED, str(folder), str(step), str(k)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        found = latest_checkpoint(folder)
        assert found.skipped == ()
        survivors.append(found.checkpoint.state.get("try", "first"))
        if survivors[-1] == "first":
            assert content(found.checkpoint) == content(make(1))
        assert [name for name in names(folder) if name.startswith(".")] == []
        save_checkpoint(folder, make(3), 1)
        assert names(folder) == ["step-000003"]
        if ended.returncode == 0:
            break
    assert ended.returncode == 0
    # First always the old one, from the rename on always the new one.
    assert survivors == sorted(survivors)
    assert {"first", "second"} == set(survivors)
    assert len(survivors) >= 10


def test_leftovers_of_ended_processes_and_our_own_are_removed(tmp_path):
    save_checkpoint(tmp_path, make(1), 1)
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            alive = f".tmp-step-000003-{other.pid}"
            for clean in (latest_checkpoint, lambda folder: save_checkpoint(folder, make(1), 1)):
                leftovers = [
                    f".tmp-step-000002-{ended_process()}",
                    f".tmp-step-000002-old-{ended_process()}",
                    f".tmp-step-000002-{os.getpid()}",
                    f".tmp-step-000002-{10**30}",
                    alive,
                ]
                for name in leftovers:
                    (tmp_path / name).mkdir(exist_ok=True)
                    (tmp_path / name / "adapter.safetensors").write_text("half")
                clean(tmp_path)
                assert names(tmp_path) == [alive, "step-000001"]
        finally:
            other.kill()


def test_somebody_elses_process_may_still_be_at_it(tmp_path, monkeypatch):
    theirs = [f".tmp-step-00000{step}-1" for step in range(5)]
    for name in (*theirs, *(f".tmp-step-00000{step}-2" for step in range(5))):
        (tmp_path / name).mkdir()

    def answer(process, _signal):
        raise PermissionError if process == 1 else ProcessLookupError

    monkeypatch.setattr(os, "kill", answer)
    latest_checkpoint(tmp_path)
    assert names(tmp_path) == theirs


# The same step again


def test_the_same_step_is_replaced(tmp_path):
    save_checkpoint(tmp_path, make(1), 3)
    save_checkpoint(tmp_path, make(2), 3)
    again = make(2, state={"again": True})
    save_checkpoint(tmp_path, again, 3)
    assert names(tmp_path) == ["step-000001", "step-000002"]
    assert content(latest_checkpoint(tmp_path).checkpoint) == content(again)


def test_one_moved_aside_moves_back_if_its_replacement_cannot_be_placed(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, make(1), 1)
    rename = os.rename

    def refuse(old, new):
        if Path(old).name.startswith(".tmp-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(old, new)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(RunError):
        save_checkpoint(tmp_path, make(1, state={"which": "new"}), 1)
    assert names(tmp_path) == ["step-000001"]
    assert content(latest_checkpoint(tmp_path).checkpoint) == content(make(1))


@pytest.mark.parametrize("damage", ["file", "link", "no manifest"])
def test_whatever_stands_in_its_place_is_replaced(tmp_path, damage):
    target = tmp_path / "checkpoints" / "step-000002"
    if damage == "no manifest":
        (save_checkpoint(target.parent, make(2), 1) / "manifest.json").unlink()
    else:
        (tmp_path / "elsewhere").mkdir()
        target.parent.mkdir()
        target.write_text("x") if damage == "file" else target.symlink_to(tmp_path / "elsewhere")
    save_checkpoint(target.parent, make(2), 1)
    assert names(target.parent) == ["step-000002"]
    assert not target.is_symlink()
    assert latest_step(target.parent) == 2
    assert damage != "link" or names(tmp_path) == ["checkpoints", "elsewhere"]


def test_one_moved_aside_is_used_only_where_there_is_no_better(tmp_path):
    old = save_checkpoint(tmp_path, make(2, state={"which": "old"}), 1)
    old.rename(tmp_path / "step-000002-old")
    assert latest_checkpoint(tmp_path).checkpoint.state == {"which": "old"}
    shutil.copytree(tmp_path / "step-000002-old", tmp_path / "kept")
    new = save_checkpoint(tmp_path, make(2, state={"which": "new"}), 1)
    assert names(tmp_path) == ["kept", "step-000002"]
    (tmp_path / "kept").rename(tmp_path / "step-000002-old")
    assert latest_checkpoint(tmp_path).checkpoint.state == {"which": "new"}
    (new / "state.json").unlink()
    found = latest_checkpoint(tmp_path)
    assert found.checkpoint.state == {"which": "old"}
    assert [problem.place for problem in found.skipped] == [str(new / "state.json")]
    save_checkpoint(tmp_path, make(2), 1)
    assert names(tmp_path) == ["step-000002"]


# Pruning


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(tmp_path, keep):
    for step in range(10, 90, 10):
        save_checkpoint(tmp_path, make(step), keep)
        first = max(10, step - 10 * (keep - 1))
        assert names(tmp_path) == [f"step-{kept:06d}" for kept in range(first, step + 10, 10)]


def test_later_steps_and_what_is_no_checkpoint_are_not_pruned(tmp_path):
    for step in (100, 200, 400):
        save_checkpoint(tmp_path, make(step), 9)
    (tmp_path / "notes.txt").write_text("x")
    save_checkpoint(tmp_path, make(300), 1)
    assert names(tmp_path) == ["notes.txt", "step-000300", "step-000400"]


def test_what_cannot_be_removed_waits_for_the_next_save(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, make(1), 1)
    rename = os.rename

    def refuse(old, new):
        if Path(old).name == "step-000001":
            raise PermissionError(errno.EACCES, "no")
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        save_checkpoint(tmp_path, make(2), 1)
    assert names(tmp_path) == ["step-000001", "step-000002"]
    save_checkpoint(tmp_path, make(3), 1)
    assert names(tmp_path) == ["step-000003"]


# Identity


def test_the_same_identity_has_no_differences():
    assert differences(IDENTITY, dict(reversed(IDENTITY.items()))) == []
    assert differences({}, {}) == []


def test_differences_are_listed_by_name_with_both_values():
    found = {"template": "t", "config": "1", "base": "b"}
    wanted = {"data": "d", "base": "b", "config": "2"}
    assert differences(found, wanted) == [
        Difference("config", found="1", wanted="2"),
        Difference("data", found=None, wanted="d"),
        Difference("template", found="t", wanted=None),
    ]


TEXTS = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["", "1", "2"]))


@given(TEXTS, TEXTS)
def test_differences_of_the_other_side_are_the_same_mirrored(found, wanted):
    there, back = differences(found, wanted), differences(wanted, found)
    assert [(name, one, other) for name, other, one in back] == there
    assert (there == []) == (found == wanted)


def test_the_best_adapter_is_kept_only_where_it_is_another(tmp_path):
    """As in checkpoints of before it was kept at all."""
    path = save_checkpoint(tmp_path, make(3, best={}), 1)
    assert names(path) == sorted({*FILES} - {"best.safetensors"})
    assert load_checkpoint(path).best == {}
    (path / "best.safetensors").write_bytes(b"of somebody else")
    assert load_checkpoint(path).best == {}
