"""What `train --dry-run` tells before any weight is read."""

import gc
import json
import shutil

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from sempa_mlx import runtime
from sempa_mlx.errors import ModelError
from sempa_mlx.evaluation.sts import distinct_sentences
from sempa_mlx.model.gguf import read_gguf
from sempa_mlx.model.gguf_shapes import read_shapes
from sempa_mlx.model.load import load_folder, load_model
from sempa_mlx.run.estimate import estimate_run
from sempa_mlx.run.inputs import read_run_data
from sempa_mlx.run.prepare import tokenize_rows
from sempa_mlx.training.trainer import count_parameters
from tests.command import (
    done,
    prepared,
    refused,
    run_settings,
    training,
    write_inputs,
    write_triplets,
)
from tests.tiny import write_tiny_folder
from tests.tiny_gguf import all_metadata, random_tensors, write_gguf

WIDE = {"hidden_size": 256, "intermediate_size": 768, "head_dim": 64}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"), **WIDE)
    write_triplets(folder / "many.jsonl", 64)
    return folder


@pytest.fixture(autouse=True)
def rate(monkeypatch):
    monkeypatch.setattr(runtime, "matmul_gflops", lambda *_args, **_options: 100.0)


def estimated(folder, *sets, model=None):
    config = run_settings(folder, *sets, data=folder / "many.jsonl", model=model)
    return estimate_run(config, read_run_data(config))


def test_no_weight_is_read(inputs):
    size = (inputs / "base" / "model.safetensors").stat().st_size
    estimated(inputs)  # what is computed once
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    estimated(inputs)
    assert mx.get_peak_memory() - before < size / 2


def test_only_small_files_are_fetched_from_the_hub(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs / "base", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    asked = []

    def fetch(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    here, there = estimated(inputs), estimated(inputs, model="owner/model")
    ((name, _, patterns),) = asked
    assert name == "owner/model"
    assert not [pattern for pattern in patterns if "safetensors" in pattern]
    assert (there.memory_gb, there.operations) == (here.memory_gb, here.operations)


def test_endless_blocks_are_not_built(inputs, tmp_path):
    shutil.copytree(inputs / "base", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    with pytest.raises(ModelError, match="1000000000 blocks in the config"):
        load_folder(tmp_path, weights=False)


def test_operations_are_those_of_the_loaded_model(inputs):
    """Each pair forward and backward, its reference once; the dev set at the start, at the end,
    and at three scales of the adapter."""
    sets = ("train.batch_size=64", "train.micro_batch_tokens=100000", "eval.every=50")
    found, run = estimated(inputs, *sets), prepared(inputs, *sets, data=inputs / "many.jsonl")
    model, rows = run.loaded.model, tokenize_rows(run.config, run.data.records, run.loaded, "").rows
    trained, total = count_parameters(model)
    matrices = sum(
        module.weight.size
        for block in model.layers
        for name, module in block.named_modules()
        if name.endswith("linear")  # inside the adapter's layers
    )
    head = model.model.embed_tokens.weight.size
    tokens = run.scorer.tokens(rows)
    scored = sum(len(ids) for row in rows for ids in row.completions)
    dev = run.encoder.tokenize(distinct_sentences([run.data.dev_task]))
    assert found.steps == 1
    assert (found.tokens, found.rows, found.trained) == (tokens, 64, trained)
    assert found.total == total - trained
    assert found.operations == pytest.approx(
        (4 * matrices + 6 * trained) * tokens
        + 4 * head * scored
        + 2 * matrices * tokens
        + 2 * head * scored
        + 5 * 2 * matrices * sum(map(len, dev))
    )
    assert found.seconds == pytest.approx(found.operations / (0.4 * 100e9))


HELD = ("objective.loss=embedding + 2 kl", "objective.kl_text=general", "objective.kl_tokens=64")


def test_terms_that_read_no_completions_count_what_they_read(inputs):
    """Sentences in the prompt they are embedded with, and the text of the KL term."""
    sets = ("train.batch_size=16", "train.micro_batch_tokens=9999")
    found, run = (
        estimated(inputs, *sets, *HELD),
        prepared(inputs, *sets, data=inputs / "many.jsonl"),
    )
    texts = [text for row in run.data.records for text in (row.anchor, *row.candidates)]
    assert found.steps == 4
    assert found.tokens == sum(map(len, run.encoder.tokenize(texts))) + 4 * 64
    assert found.shared_tokens == 0
    few = estimated(inputs, *sets, *HELD[:2], "objective.kl_tokens=8")
    assert few.memory_gb == found.memory_gb  # the sentences' pass is the larger
    many = estimated(inputs, *sets, *HELD[:2], "objective.kl_tokens=8192")
    assert many.memory_gb > found.memory_gb


def test_work_grows_with_what_is_asked_for(inputs):
    plain = estimated(inputs)
    assert estimated(inputs, "train.epochs=2").tokens == 2 * plain.tokens
    for setting in (
        "train.grad_checkpoint=true",
        "train.scoring=plain",
        "objective.loss=sigmoid + embedding",
        "objective.loss=sigmoid + kl",
        "eval.dial_always=true",
    ):
        assert estimated(inputs, setting).operations > plain.operations
    online = ("train.epochs=2", "train.reference=online")
    assert estimated(inputs, *online).operations > estimated(inputs, online[0]).operations
    assert estimated(inputs, "objective.loss=simpo").operations < plain.operations
    assert estimated(inputs, "train.micro_batch_tokens=256").memory_gb < plain.memory_gb


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("train.grad_checkpoint=true",),
        ("train.scoring=plain",),
        ("objective.loss=embedding",),
        ("objective.loss=sigmoid + 0.1 kl",),
    ],
    ids=str,
)
def test_memory_is_near_to_what_trying_finds(inputs, sets):
    found = estimated(inputs, *sets).memory_gb
    tried = prepared(inputs, *sets, data=inputs / "many.jsonl").expected_peak_gb
    assert 0.6 < found / tried < 1.6


def test_a_header_says_what_the_whole_file_says(tmp_path):
    path, cut = tmp_path / "a.gguf", tmp_path / "cut.gguf"
    write_gguf(path, all_metadata(), random_tensors(untied=True), "Q8_0")
    whole, header = read_gguf(path), read_shapes(path)
    assert header.metadata.keys() == whole.metadata.keys()
    assert header.metadata["tokenizer.ggml.merges"] == whole.metadata["tokenizer.ggml.merges"]
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    shapes = {name: value.shape for name, value in header.tensors.items()}
    assert shapes["output.weight"] == (340, 64)
    assert shapes.keys() == {n for n in whole.tensors if n.endswith(".weight")}
    cut.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    assert read_shapes(cut).tensors.keys() == header.tensors.keys()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"PK\x03\x04",
        b"GGUF\x01\x00\x00\x00",
        b"GGUF\x03\x00\x00\x00" + 16 * b"\x01" + 40 * b"\xff",
    ],
)
def test_a_file_that_is_no_gguf_is_refused(tmp_path, content):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        read_shapes(path)


def test_metadata_that_sizes_no_model_is_refused(inputs, tmp_path):
    metadata = all_metadata()
    del metadata["llama.block_count"]
    write_gguf(tmp_path / "a.gguf", metadata, random_tensors())
    with pytest.raises(ModelError, match=r"does not size a model \('llama\.block_count'\)"):
        estimated(inputs, model=tmp_path / "a.gguf")


def test_a_gguf_file_is_estimated_as_it_will_be_loaded(inputs, tmp_path):
    write_gguf(tmp_path / "a.gguf", all_metadata(), random_tensors(), "Q4_0")
    found = estimated(inputs, model=tmp_path / "a.gguf")
    loaded = load_model(str(tmp_path / "a.gguf"))
    assert found.total == sum(v.size for _, v in tree_flatten(loaded.model.parameters()))


def test_the_plan_is_printed_and_nothing_is_started(inputs, tmp_path):
    outcome = done(*training(inputs), "--dry-run", "--adapter-path", tmp_path / "run")
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert lines["data"].endswith("12 rows read, 12 kept")
    assert lines["steps"].startswith("3 of 4 pairs")
    assert "GB at the peak of a step" in lines["memory"]
    assert "40% of 100 GFLOP/s" in lines["time"]
    assert outcome.err.endswith("nothing was started\n")
    assert list(tmp_path.iterdir()) == []


def test_the_plan_as_a_document(inputs):
    document = done("--json", *training(inputs), "--dry-run").document
    assert (document["steps"], document["dev_pairs"]) == (3, 12)
    assert document["sources"]["train.iters"] == "--iters"
    estimate = document["estimate"]
    assert estimate["seconds"] == pytest.approx(estimate["operations"] / 40e9)


def test_faults_of_the_model_are_found_without_loading(inputs):
    refused(1, *training(inputs, model=inputs / "nowhere"), "--dry-run")
    outcome = refused(1, *training(inputs, "lora.keys=[self_attn.x]"), "--dry-run")
    assert "`self_attn.x` is no linear layer" in outcome.err


def test_mixtures_of_experts_are_not_estimated(inputs, tmp_path):
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_theta": 1e4}
    write_tiny_folder(tmp_path / "base", "mixtral", **experts)
    found = done(*training(inputs, model=tmp_path / "base"), "--dry-run").out
    assert found.count("not estimated for mixtures of experts") == 2


def test_too_little_memory_is_told(inputs, monkeypatch):
    monkeypatch.setattr(runtime, "memory_limit_gb", lambda: 0.001)
    assert "this process may take 0.0 GB" in done(*training(inputs), "--dry-run").err
    assert json.loads(done(*training(inputs), "--dry-run", "--json").out)["estimate"]["memory_gb"]


def test_blocks_computed_again_save_memory_where_sentences_and_text_are_read(inputs):
    def peak(*more):
        """The expected peak above what earlier tests hold."""
        gc.collect()
        held = mx.get_active_memory() / runtime.GB
        sets = (*HELD, "train.batch_size=16", "train.micro_batch_tokens=9999", *more)
        return prepared(inputs, *sets, data=inputs / "many.jsonl").expected_peak_gb - held

    assert peak("train.grad_checkpoint=true") < 0.9 * peak()
