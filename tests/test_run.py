"""A training run from the command line to the last file of its folder."""

import json
import math
import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import yaml

from sempa_mlx import runtime
from sempa_mlx.config_resolve import resolve_config
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings, read_settings
from sempa_mlx.errors import UsageError
from sempa_mlx.evaluation.sts import evaluate_sts
from sempa_mlx.model.lora import adapter_weights
from sempa_mlx.run.folder import check_output
from sempa_mlx.run.inputs import read_run_data
from sempa_mlx.world import World
from tests.command import (
    done,
    files_below,
    metrics_of,
    prepared,
    refused,
    results_of,
    run_settings,
    training,
    write_inputs,
)
from tests.pool import pool_share
from tests.tiny import CONTROL_TOKENS, write_tiny_folder

RUN_FILES = [
    "adapter_config.json",
    "adapters.safetensors",
    "checkpoints",
    "config.yaml",
    "encoder.json",
    "metrics.jsonl",
    "results.json",
]
STEP_KEYS = {
    "step",
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "pairs_per_second",
    "peak_memory_gb",
}
EVALUATION_KEYS = {
    "step",
    "dev/spearman",
    "dev/uniformity",
    "dev/average_cosine",
    "dev/isotropy",
    "best_step",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs):
    """A finished run and what it said."""
    folder = inputs / "run"
    return folder, done(*training(inputs), "--adapter-path", folder)


def test_the_folder_of_a_run_is_complete(finished):
    folder, outcome = finished
    assert sorted(path.name for path in folder.iterdir()) == RUN_FILES
    assert str(folder) in outcome.out
    assert "sempa-mlx embed FILE.txt --adapter-path" in outcome.err


def test_the_adapter_file_holds_lora_tensors_and_nothing_else(finished):
    weights = mx.load(str(finished[0] / "adapters.safetensors"))
    leaves = {name.rpartition(".")[2] for name in weights}
    assert leaves == {"lora_a", "lora_b"}
    assert len(weights) == 3 * 7 * 2  # blocks, linear layers, tensors
    assert all(np.isfinite(np.array(value)).all() for value in weights.values())


def test_metrics_are_a_line_each_under_trl_names(finished):
    lines = metrics_of(finished[0])
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "dev/spearman" in line]
    assert [line["step"] for line in lines if "dial" not in line] == [0, 1, 1, 2, 2, 3, 3]
    assert all(line.keys() == STEP_KEYS for line in steps)
    assert all(line.keys() == EVALUATION_KEYS for line in evaluations)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert steps[2]["loss"] < 0.3
    assert steps[0]["learning_rate"] == pytest.approx(0.01)


def test_results_agree_with_the_metrics(finished):
    folder, _ = finished
    results = results_of(folder)
    scores = {
        str(line["step"]): line["dev/spearman"]
        for line in metrics_of(folder)
        if "dev/spearman" in line
    }
    assert results["dev_scores"] == scores
    assert results["base_dev_score"] == scores["0"]
    best = max(scores, key=lambda step: scores[step])
    assert results["best_step"] == int(best)
    assert results["best_dev_score"] == scores[best]
    assert (results["steps"], results["pairs"]) == (3, 12)
    assert results["versions"]["sempa-mlx"]
    assert results["machine"]["device"]
    local = {"train": "pairs.jsonl", "dev": "dev.tsv"}
    assert results["data"] == {n: {"name": f, "revision": None} for n, f in local.items()}


def test_the_adapter_that_is_kept_scores_what_the_results_say(finished, inputs):
    """Loading the folder afresh gives the best dev score again: the right weights were kept."""
    folder, _ = finished
    results = results_of(folder)
    config = resolve_config(folder / "config.yaml").config
    task = read_run_data(config).dev_task
    found = evaluate_sts(Encoder.load(folder), [task])[0].spearman * 100
    assert found == pytest.approx(results["best_dev_score"], abs=0.01)
    base = Encoder.load(folder, settings=EncoderSettings(adapter_scale=0.0))
    found = evaluate_sts(base, [task])[0].spearman * 100
    assert found == pytest.approx(results["base_dev_score"], abs=0.01)


def test_the_settings_of_a_run_can_be_used_again(finished, inputs):
    folder, _ = finished
    config = resolve_config(folder / "config.yaml").config
    assert config.train.iters == 3
    assert config.train.learning_rate == 0.01
    assert config.output.path == str(folder)
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["name"] == str(
        inputs / "base"
    )
    assert read_settings(folder) == EncoderSettings(layer=-1)


def test_the_same_settings_give_the_same_adapter_to_the_bit(finished, inputs, tmp_path):
    folder, _ = finished
    done("train", "-c", folder / "config.yaml", "--adapter-path", tmp_path / "again")
    first = (folder / "adapters.safetensors").read_bytes()
    assert (tmp_path / "again" / "adapters.safetensors").read_bytes() == first


def test_another_seed_gives_another_start_of_the_adapter(inputs, tmp_path):
    """The start is what an untrained adapter holds; order and dropout have tests of their own."""

    def start(seed):
        model = prepared(inputs, f"train.seed={seed}").loaded.model
        return np.array(adapter_weights(model)["model.layers.0.mlp.up_proj.lora_a"])

    np.testing.assert_array_equal(start(7), start(7))
    assert not np.array_equal(start(7), start(8))


def test_json_mode_prints_the_results_and_nothing_else(inputs, tmp_path):
    outcome = done("--json", *training(inputs), "--adapter-path", tmp_path / "run")
    stored = results_of(tmp_path / "run")
    assert outcome.document.pop("output") == str(tmp_path / "run")
    assert outcome.document["dev_scores"] == stored["dev_scores"]
    assert outcome.err == ""


def test_quiet_mode_says_the_outcome_only(inputs, tmp_path):
    outcome = done(*training(inputs), "--quiet", "--adapter-path", tmp_path / "run")
    assert len(outcome.out.splitlines()) == 1
    assert outcome.err == ""


def test_a_dry_run_starts_nothing(inputs, tmp_path):
    outcome = done(*training(inputs), "--dry-run", "--adapter-path", tmp_path / "run")
    assert "nothing was started" in outcome.err
    assert list(tmp_path.iterdir()) == []
    document = done("--json", *training(inputs), "--dry-run").document
    assert (document["steps"], document["dev_pairs"]) == (3, 12)


def test_a_dev_set_without_an_order_gives_no_score_rather_than_a_wrong_one(inputs, tmp_path):
    flat, folder = tmp_path / "flat.tsv", tmp_path / "run"
    flat.write_text("3\tA man\tA woman\n3\tA cat\tA dog\n3\tTwo\tThree\n")
    document = done("--json", *training(inputs, dev=flat), "--adapter-path", folder).document
    assert document["best_step"] == 0
    assert document["dev_scores"] == {"0": None, "1": None, "2": None, "3": None}
    strict = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, **strict)
    assert json.loads((folder / "results.json").read_text(), **strict)["base_dev_score"] is None
    outcome = done(*training(inputs, dev=flat), "--adapter-path", folder, "--force")
    assert "no step beat the base on dev (undefined)" in outcome.out


def test_a_run_that_is_there_is_kept_unless_forced(finished, inputs, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    before = files_below(tmp_path)
    outcome = refused(2, *training(inputs), "--adapter-path", tmp_path / "run")
    assert "--force to replace it" in outcome.err
    assert files_below(tmp_path) == before
    done(*training(inputs), "--adapter-path", tmp_path / "run", "--force", "--seed", 3)
    assert files_below(tmp_path) != before


def test_a_folder_of_other_things_is_never_taken(inputs, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("precious")
    before = files_below(tmp_path)
    for force in ([], ["--force"]):
        outcome = refused(2, *training(inputs), "--adapter-path", tmp_path / "photos", *force)
        assert "holds other files" in outcome.err
        assert "nothing was started" in outcome.err
    assert files_below(tmp_path) == before


def test_output_through_a_link_or_onto_a_file_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("text")
    for name in ("link", "file"):
        with pytest.raises(UsageError, match="is not a folder"):
            check_output(tmp_path / name, force=True)


def test_an_empty_folder_may_be_used(tmp_path):
    check_output(tmp_path)
    check_output(tmp_path / "new")


def test_rows_that_do_not_fit_are_left_out_and_counted(inputs, tmp_path):
    long = {"anchor": "word " * 200, "entailment": "a", "contradiction": "b"}
    rows = (inputs / "pairs.jsonl").read_text() + json.dumps(long) + "\n"
    (tmp_path / "rows.jsonl").write_text(rows)
    ready = prepared(inputs, "model.max_tokens=200", data=tmp_path / "rows.jsonl")
    assert (ready.num_rows, ready.num_too_long) == (12, 1)
    assert "12 pairs (1 dropped)" in ready.facts()["data"]
    assert ready.scorer.path == "shared"


def test_the_header_names_prompts_and_the_commit_of_a_hub_model(inputs):
    ready = prepared(inputs, "data.template=P3")
    assert ready.facts()["prompts"] == "P3 in the chat template to train, prompteol to embed"
    assert " at " not in ready.facts()["model"]
    ready.loaded.location = replace(ready.loaded.location, revision="0123456789abcdef")
    assert " at 0123456789ab)" in ready.facts()["model"]


def test_an_interrupted_run_keeps_its_best_adapter(inputs, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("of an earlier run, now being replaced")
    ready = prepared(inputs, f"output.path={tmp_path / 'run'}")
    events = ready.events()
    next(events)  # the base is evaluated
    next(events)
    events.close()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        name for name in RUN_FILES if name not in ("checkpoints", "results.json")
    ]
    assert len(metrics_of(tmp_path / "run")) == 2
    kept = mx.load(str(tmp_path / "run" / "adapters.safetensors"))
    assert kept.keys() == adapter_weights(ready.loaded.model).keys()
    assert all(not np.array(kept[name]).any() for name in kept if name.endswith("lora_b"))


def test_the_kl_term_holds_the_model_to_the_packaged_text(inputs, tmp_path):
    folder = tmp_path / "run"
    done(
        *training(inputs, "objective.loss=embedding + 2 kl", "objective.kl_text=general"),
        *("--adapter-path", folder),
    )
    losses = [line["loss/kl"] for line in metrics_of(folder) if "loss/kl" in line]
    assert losses[0] == 0.0
    assert min(losses[1:]) > 0


def test_the_packaged_text_is_read_only_where_a_term_needs_it(inputs):
    needs = ("objective.loss=sigmoid + 0.1 kl", "objective.kl_text=general")
    assert len(read_run_data(run_settings(inputs, *needs)).kl_text.splitlines()) > 100
    assert read_run_data(run_settings(inputs, *needs[1:])).kl_text == ""


def test_the_header_names_what_the_terms_read(inputs):
    dpo, held, both = (
        prepared(inputs, f"objective.loss={loss}", *sets).facts()
        for loss, sets in (
            ("sigmoid", ()),
            ("embedding + 2 kl", ["objective.kl_text=general"]),
            ("embedding + 2 kl", ()),
        )
    )
    assert dpo["objective"].startswith("sigmoid, beta 0.1, shared scoring, ")
    assert (held["prompts"], held["objective"]) == ("prompteol to embed", "embedding + 2 kl")
    assert both["prompts"] == dpo["prompts"]
    assert both["objective"].startswith("embedding + 2 kl, shared scoring, ")


def test_answers_that_would_only_train_embeddings_are_remarked_on(inputs, tmp_path):
    rows = [{"prompt": f"Say {word}", "chosen": word, "rejected": "no"} for word in ("hi", "ho")]
    path = tmp_path / "trl.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def notes(loss, data=path):
        return read_run_data(run_settings(inputs, f"objective.loss={loss}", data=data)).notes

    (note,) = notes("embedding + 2 kl")
    assert note.startswith("trl.jsonl: rows of form trl are prompts and answers; ")
    assert note.endswith("--config sempa")
    assert notes("sigmoid + embedding") == notes("sft + kl") == []
    assert notes("embedding + 2 kl", inputs / "pairs.jsonl") == []


def test_training_keeps_mlxs_large_pool(inputs):
    prepared(inputs)
    assert pool_share() == pytest.approx(runtime.POOL, rel=1e-6)


def test_a_new_run_leaves_no_coder_of_an_earlier_one(inputs, tmp_path):
    folder = tmp_path / "run"
    done(*training(inputs), "--adapter-path", folder)
    (folder / "coder.safetensors").write_bytes(b"of before")
    done(*training(inputs), "--adapter-path", folder, "--force")
    assert not (folder / "coder.safetensors").exists()


def test_names_of_control_tokens_stay_text_in_the_text_that_is_held(inputs, tmp_path):
    """The end token alone would be one token, which is too few to predict anything."""
    (tmp_path / "text.txt").write_text(CONTROL_TOKENS[0])
    sets = ("objective.loss=embedding + 2 kl", f"objective.kl_text={tmp_path / 'text.txt'}")
    run = prepared(inputs, *sets)
    term = run.trainer._terms["kl"]
    ((piece,),) = term._parts_of([0], World(), 0)
    assert len(piece) > 1


def test_a_model_whose_settings_have_other_names_trains(inputs, tmp_path):
    names = {"n_ctx": 512, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 512}
    write_tiny_folder(tmp_path / "gpt2", "gpt2", layer_norm_epsilon=1e-5, **names)
    done(*training(inputs, model=tmp_path / "gpt2"), "--adapter-path", tmp_path / "run")
    assert Encoder.load(tmp_path / "run").encode(["A cat"]).shape == (1, 32)
