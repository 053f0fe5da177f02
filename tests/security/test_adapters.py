"""Patterns in PEFT's config: tried against every layer's name, so they have to be quick."""

import json

import pytest

from sempa_mlx.errors import ModelError
from sempa_mlx.export.peft_config import read_peft_config


def config_with(folder, pattern):
    rows = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {pattern: 4}}
    (folder / "adapter_config.json").write_text(json.dumps(rows))
    (folder / "adapter_model.safetensors").touch()
    return folder


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(a|a)*b", "(a?){30}", "a?" * 30 + "a" * 30, "(a|a)" * 4, "a*a*a*", "x" * 501],
)
def test_a_pattern_that_could_take_for_ever_is_refused(tmp_path, pattern):
    with pytest.raises(ModelError, match="could take for ever to match"):
        read_peft_config(config_with(tmp_path, pattern))


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "^model.layers.0.self_attn.q_proj",
        r"model\.layers\.[0-9]+\.mlp\.(up|gate|down)_proj",
        r".*layers\.(0|1|2|3)\..*",
        r"(?:q|k)_proj",
    ],
)
def test_patterns_as_people_write_them_are_read(tmp_path, pattern):
    config, faults = read_peft_config(config_with(tmp_path, pattern))
    assert (dict(config.ranks.patterns), faults) == ({pattern: 4.0}, [])
