"""Other programs read what we write. Slow to start, so marked `interop`."""

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.config import LoraConfig
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import adapter_weights, attach, save_adapter
from tests.command import done
from tests.tiny import move_adapter, write_tiny_folder

pytestmark = [pytest.mark.interop, pytest.mark.unmeasured]
PROMPT = "A cat sleeps"
TOKENS = 12
LORA = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, an adapter that changes nothing, one that changes much, and the exports of both."""
    folder = tmp_path_factory.mktemp("interop")
    write_tiny_folder(folder / "base")
    for name, size in (("fresh", 0.0), ("strong", 0.5)):
        loaded = adapted(folder, size)
        save_adapter(folder / f"{name}-run", adapter_weights(loaded.model), LORA, loaded)
        run = ["--adapter-path", folder / f"{name}-run", "--out", folder / name]
        done("export", "--to", "mlx", *run)
    return folder


def adapted(folder, size):
    loaded = load_model(str(folder / "base"))
    attach(loaded.model, LORA, seed=1)
    move_adapter(loaded.model, size)
    loaded.model.eval()
    return loaded


def mlx_lm(folder, adapter=None):
    """What `python -m mlx_lm generate` says, greedily."""
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(folder / "base")]
    command += ["--prompt", PROMPT, "--ignore-chat-template", "--temp", "0"]
    command += ["--max-tokens", str(TOKENS)]
    if adapter:
        command += ["--adapter-path", str(folder / adapter)]
    found = subprocess.run(command, capture_output=True, check=False, timeout=250)
    assert found.returncode == 0, found.stderr.decode()
    return found.stdout.decode().split("==========\n")[1].strip()


def ours(loaded):
    """What the model in this process says, greedily, one whole forward pass a token."""
    tokens = loaded.tokenizer.encode(PROMPT)
    start = len(tokens)
    for _ in range(TOKENS):
        best = int(np.argmax(np.array(loaded.model(mx.array([tokens])))[0, -1]))
        if best == loaded.tokenizer.eos_token_id:
            break
        tokens.append(best)
    # mlx-lm's streaming decoder leaves out a leading blank.
    return loaded.tokenizer.decode(tokens[start:]).strip()


@pytest.fixture(scope="module")
def said_by_base(folder):
    return mlx_lm(folder)


def test_an_adapter_speaks_through_mlx_lm_as_it_does_here(folder, said_by_base):
    said = mlx_lm(folder, "strong")
    assert said == ours(adapted(folder, 0.5))
    assert said != said_by_base


def test_an_adapter_that_does_nothing_changes_nothing(folder, said_by_base):
    assert mlx_lm(folder, "fresh") == said_by_base == ours(load_model(str(folder / "base")))
    assert said_by_base
