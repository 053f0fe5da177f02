"""Fault 2: a write, flush or rename that fails. The old content stays, and nothing half-written.

Every writer of the program is refused its k-th call, for every k. For checkpoints that is in
tests/training/test_checkpoint.py, for values of the reference in tests/training/
test_reference_store.py, for downloads in tests/data/test_sources.py.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sempa_mlx.encoder.coder_file import write_coder
from sempa_mlx.encoder.dense_search import read_dense
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.postprocess import fit_post, write_post
from sempa_mlx.encoder.quantised_store import quantise
from sempa_mlx.encoder.sparse_store import SparseStore, write_store
from sempa_mlx.encoder.store import embed_to_file
from sempa_mlx.encoder.vector_cache import raw_vectors
from sempa_mlx.errors import SempaError
from sempa_mlx.export.encoder_folder import export_encoder
from sempa_mlx.export.fuse import FusePlan, export_fused
from sempa_mlx.export.import_peft import import_peft
from sempa_mlx.export.mlx import export_mlx
from sempa_mlx.export.peft import export_peft
from sempa_mlx.export.sentence_transformers import export_sentence_transformers
from sempa_mlx.export.sparse_autoencoder import export_sparse_autoencoder
from sempa_mlx.files import write_text
from tests.command import done, files_below, metrics_of, refused, run, training
from tests.encoder.codes import drawn_coder, drawn_codes
from tests.faults.conftest import SETTINGS
from tests.faults.failing_files import BROKEN, FULL, Disk, temporaries
from tests.faults.test_01_killed_while_writing import count_calls

MANY = 60
TEXTS = (["A cat sleeps.", "Two dogs run."], ["A cat sleeps.", "", "A woman reads 17 books"])


@pytest.fixture(scope="module")
def encoder(space):
    return Encoder.load(space / "run")


def replacers(encoder):
    """What writes files in the place of others: by name, a function of (folder, turn)."""
    draw = np.random.default_rng(0).normal(size=(2, 8, 32)).astype(np.float32)

    def embed(name, file_format):
        return lambda folder, turn: embed_to_file(
            encoder, TEXTS[turn], folder / name, file_format=file_format
        )

    def store(file_format):
        def write(folder, turn):
            codes = SparseStore(drawn_codes(6 + turn), {"turn": turn}, ("a",) * (6 + turn))
            write_store(folder / f"codes.{file_format}", codes, file_format)

        return write

    return {
        "text": lambda folder, turn: write_text(folder / "report.html", str(turn) * 99),
        "vectors": embed("out.npy", "npy"),
        "lines": embed("out.jsonl", "jsonl"),
        "codes as npz": store("npz"),
        "codes as safetensors": store("safetensors"),
        "coder": lambda folder, turn: write_coder(
            folder / "coder.safetensors", drawn_coder("key", seed=turn)
        ),
        "map": lambda folder, turn: write_post(
            folder / "post.safetensors", fit_post(draw[turn], "abtt", 2, "key")
        ),
        "encoder settings": lambda folder, turn: encoder.with_scale(turn / 2).save_settings(folder),
    }


def exports(space, peft, coder):
    """What makes a new folder: by name, a function of its path."""
    adapter = space / "run"
    return {
        "mlx": lambda out: export_mlx(adapter, out),
        "peft": lambda out: export_peft(adapter, out),
        "fused": lambda out: export_fused(adapter, out, FusePlan("auto")),
        "encoder": lambda out: export_encoder(adapter, out),
        "sentence-transformers": lambda out: export_sentence_transformers(adapter, out),
        "sparse-autoencoder": lambda out: export_sparse_autoencoder(coder, out),
        "from peft": lambda out: import_peft(peft, out),
    }


REPLACERS = list(replacers(None))
EXPORTS = list(exports(*3 * [Path()]))


def refusals(folder, write, number):
    """Run a writer again and again, each time refused one call later; yield what it raised."""
    for k in range(1, MANY):
        with Disk(folder, k, number).watched() as disk:
            try:
                write()
            except SempaError as error:
                raised = error
            else:
                raised = None
        if not disk.has_failed:
            assert raised is None
            assert k > 3
            return
        yield raised
    pytest.fail(f"it asks the disk {MANY} times")


def assert_told(error, folder, number):
    (problem,) = error.problems
    assert str(folder) in str(problem)
    assert "GB free on this disk" in problem.evidence
    if os.strerror(number) in str(problem):  # mlx does not tell why
        assert error.exit_code == (4 if number == FULL else 1)
    else:
        assert "[write]" in str(problem)


@pytest.mark.parametrize("number", [FULL, BROKEN], ids=["full", "broken"])
@pytest.mark.parametrize("name", REPLACERS)
def test_what_is_replaced_is_as_it_was(encoder, tmp_path, name, number):
    write = replacers(encoder)[name]
    write(tmp_path, 0)
    before = files_below(tmp_path)
    for error in refusals(tmp_path, lambda: write(tmp_path, 1), number):
        assert_told(error, tmp_path, number)
        assert files_below(tmp_path) == before
    assert files_below(tmp_path) != before
    assert files_below(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("name", EXPORTS)
def test_of_a_new_folder_nothing_is_left(space, tmp_path, name):
    export_peft(space / "run", tmp_path / "peft", base=str(space / "base"))
    work = tmp_path / "work"
    work.mkdir()
    make = exports(space, tmp_path / "peft", drawn_coder("key"))[name]
    for error in refusals(work, lambda: make(work / "out"), FULL):
        assert_told(error, work, FULL)
        assert files_below(work) == {}
    assert [path.name for path in work.iterdir()] == ["out"]


def test_codes_of_a_byte_are_replaced_or_kept(encoder, tmp_path):
    path = tmp_path / "out.npy"
    embed_to_file(encoder, TEXTS[0], path, file_format="npy")
    quantise(read_dense(path), path, "int8")
    embed_to_file(encoder, TEXTS[1], path, file_format="npy")
    before = files_below(tmp_path)
    for error in refusals(tmp_path, lambda: quantise(read_dense(path), path, "int8"), FULL):
        assert_told(error, tmp_path, FULL)
        assert files_below(tmp_path) == before
    assert files_below(tmp_path) != before


def test_vectors_kept_for_later_are_whole_or_absent(encoder, tmp_path):
    def write():
        raw_vectors(encoder, TEXTS[1], folder=tmp_path)

    for error in refusals(tmp_path, write, FULL):
        assert_told(error, tmp_path, FULL)
        assert files_below(tmp_path) == {}
    assert len(files_below(tmp_path)) == 1


@pytest.mark.parametrize(
    ("share", "number"),
    [
        (0.6, FULL),
        *(
            pytest.param(share, number, marks=pytest.mark.slow)
            for share in (0.05, 0.2, 0.4, 0.75, 0.9, 1)
            for number in (FULL, BROKEN)
        ),
    ],
)
def test_a_run_whose_disk_fills_up_goes_on_to_the_same_end(space, tmp_path, share, number):
    """The disk refuses everything from the k-th call on; then there is room again."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    k = round(share * len(count_calls(space, whole)))
    command = [*training(space, *SETTINGS), "--adapter-path", folder]
    with Disk(folder, k, number, forever=True).watched():
        outcome = refused(4 if number == FULL else 1, *command)
    assert str(folder) in outcome.err
    assert "GB free" in outcome.err
    assert temporaries(folder) == []
    if list(folder.glob("checkpoints/step-*")):
        done("train", "--resume", "--adapter-path", folder)
    else:
        done(*command, "--force")
    for name in ("adapters.safetensors", "encoder.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    losses = [[line.get("loss") for line in metrics_of(each)] for each in (folder, whole)]
    assert losses[0] == losses[1]


LIMITED = """
import resource, signal, sys
import mlx_lm.utils
from sempa_mlx.__main__ import run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
run()
"""


@pytest.mark.unmeasured  # what it measures would not fit into its file
def test_a_limit_of_the_system_is_told_by_the_program(space, here):
    """No file may grow beyond 4 KiB: the shell's own `ulimit -f`."""
    (here / "long.txt").write_text("A cat sleeps.\n" * 200)
    arguments = ["embed", "long.txt", "--adapter-path", space / "run"]
    ended = subprocess.run(
        [sys.executable, "-c", f"import sempa_mlx{LIMITED}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 4, ended.stderr
    reason = os.strerror(errno.EFBIG)
    assert f"error: cannot write long.txt.npy: {reason}" in ended.stderr
    assert "make room" in ended.stderr
    assert [path.name for path in here.iterdir()] == ["long.txt"]


@pytest.mark.unmeasured
def test_the_program_starts_where_no_file_can_be_written():
    """The fast BLAS needs no disk, and mlx works without it."""
    ended = subprocess.run(
        ["bash", "-c", f"ulimit -f 1; {sys.executable} -m sempa_mlx config list --quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_a_full_disk_under_standard_input_is_no_bug(space, here, monkeypatch):
    (here / "spool").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(here / "spool"))
    arguments = ("embed", "-", "-o", "a.npy", "--adapter-path", space / "run")
    with Disk(here / "spool", 2).watched():
        outcome = run(*arguments, stdin=b"A cat sleeps.\n")
    assert outcome.code == 4
    assert os.strerror(FULL) in outcome.errors[0]
    assert not (here / "a.npy").exists()


def test_a_bug_on_a_full_disk_is_still_told(space, here, monkeypatch):
    def broken(*_given, **_options):
        raise ZeroDivisionError("division by zero")

    (here / "logs").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(here / "logs"))
    monkeypatch.setattr(Encoder, "encode_counted", broken)
    with Disk(here / "logs", 3, forever=True).watched():
        outcome = run("embed", space / "notes.txt", "-o", "a.npy", "--model", space / "base")
    assert outcome.code == 1
    assert outcome.errors == ["error: ZeroDivisionError: division by zero"]
    assert "this is a bug" in outcome.err
    assert "--debug" in outcome.err
