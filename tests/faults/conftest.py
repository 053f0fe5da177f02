"""What the fault tests share: a tiny model, its data, and a finished run that nobody changes."""

import pytest

from tests.command import SENTENCES, done, training, write_inputs
from tests.tiny import write_tiny_folder

SETTINGS = ("output.save_every=1", "eval.dial=null")


@pytest.fixture(scope="session")
def space(tmp_path_factory):
    """Models, data, texts and a finished run of three steps; tests write elsewhere."""
    folder = write_inputs(tmp_path_factory.mktemp("faults"), num_hidden_layers=1)
    write_tiny_folder(folder / "other", seed=5, num_hidden_layers=1)
    (folder / "notes.txt").write_text("".join(f"{text}\n" for text in SENTENCES))
    done(*training(folder, *SETTINGS), "--adapter-path", folder / "run")
    return folder
