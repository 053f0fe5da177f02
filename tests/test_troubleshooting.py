"""docs/troubleshooting.md shows messages as they are printed: each is made here."""

import re
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError

from sempa_mlx import blas, runtime
from sempa_mlx.commands import doctor
from sempa_mlx.training import memory
from tests.command import done, run, training, write_inputs
from tests.model.test_load import http_error
from tests.pages import ROOT
from tests.tiny import write_tiny_folder


def without_figures(text):
    """Leave out fingerprints, scores and sizes, which are other ones elsewhere."""
    text = re.sub(r"\(([0-9a-f]{16}|-?\d+\.\d\d)\)", "(…)", text)
    return re.sub(r"\d+\.\d GB", "… GB", text)


PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
SHOWN = [line for block in BLOCKS for line in without_figures(block).splitlines()]
FAULTY = '{"anchor": "a b", "entailment": "c", "contradiction": "d"}\nnot json\n{"anchor": "a"}\n'


def of(*sets, model="base", data="pairs.jsonl"):
    """Arguments of a tiny run, its files named as the page names them."""
    return training(None, *sets, model=model, data=data, dev="dev.tsv")


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Every line that these commands print, without the folder, fingerprints and scores."""
    space = write_inputs(tmp_path_factory.mktemp("space"))
    write_tiny_folder(space / "other", seed=5)
    write_tiny_folder(space / "windows", "gemma3_text")
    (space / "notes.txt").write_text("A cat.\n")
    (space / "bad.jsonl").write_text(FAULTY)
    lines = []

    def note(*words):
        outcome = run(*words)
        text = (outcome.err + outcome.out).replace(f"{space}/", "")
        text = without_figures(text)
        lines.extend(line.rstrip() for line in text.splitlines())

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(space)
        patch.setenv("HF_HUB_OFFLINE", "1")
        done(*of(), "--adapter-path", "adapters")
        note(*of(data="bad.jsonl"), "--adapter-path", "new")
        note(*of("model.max_tokens=16"), "--adapter-path", "new")
        note(*of(), "--adapter-path", "adapters")
        note(*of("train.seed=4"), "--adapter-path", "adapters", "--resume")
        note("train", "--resume", "--adapter-path", "nope")
        note("embed", "notes.txt", "--model", "other", "--adapter-path", "adapters")
        note(*of(model="Qwen/Qwen3-0.6B"), "--adapter-path", "new")
        note("embed", "notes.txt", "--model", "smollm-135m")
        note("train", "--model", "base", "--dry-run")
        note(*of(model="windows"), "--adapter-path", "plain")
        wild = ("train.clip=1e30", "train.epochs=9")
        note(*of(*wild), "--learning-rate", "1e30", "--iters", "9", "--adapter-path", "new")
        few = ("--learning-rate", "1e30", "--iters", "2", "--adapter-path", "adapters", "--force")
        note(*of(*wild), *few)
        (space / "sempa.yaml").write_text("train:\n  learning_rat: 1e-4\n")
        note("train")
        _note_what_machines_lack(patch, note)
    return lines


def _note_what_machines_lack(patch, note):
    """Gated models, a small memory, a slow BLAS, and a bug."""

    def refuse(*_args, **_options):
        raise http_error(GatedRepoError, 403)

    patch.setattr(huggingface_hub, "snapshot_download", refuse)
    note("embed", "notes.txt", "--model", "meta-llama/Meta-Llama-3-8B")
    patch.setattr(runtime, "matmul_gflops", lambda *_args, **_options: 4.0)
    patch.setattr(doctor, "preload_blas", lambda: None)
    note("doctor")
    patch.setattr(memory, "memory_limit_gb", lambda: 0.001)
    note(*of(), "--config", "demo", "--adapter-path", "none")


def test_every_message_of_the_page_is_printed(printed):
    from_elsewhere = ("UserWarning: ", "this is a bug; ")
    made = [line for line in SHOWN if not line.startswith(from_elsewhere)]
    assert len(made) > 30
    assert [line for line in made if line not in printed] == []


def test_messages_that_no_command_makes_are_those_of_the_source():
    source = ROOT.joinpath("sempa_mlx", "errors.py").read_text(encoding="utf-8")
    assert "this is a bug; " in source
    assert "--debug shows it here" in source
    warning = next(line for line in SHOWN if line.startswith("UserWarning: "))
    source = Path(blas.__file__).read_text(encoding="utf-8")
    assert warning.removeprefix("UserWarning: ") in source
