"""The settings: where values come from, overrides, the round trip and the recipes."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sempa_mlx import config_recipes
from sempa_mlx.config import DataConfig, LoraConfig, OutputConfig, SempaConfig
from sempa_mlx.config_notes import write_commented
from sempa_mlx.config_recipes import list_recipes, recipe_path
from sempa_mlx.config_resolve import SCHEMA, dump_config, resolve_config
from sempa_mlx.errors import ConfigError

NAMES = (
    *("bridge", "demo", "listwise", "llama-3.2-1b", "paper-llama3-8b"),
    *("qwen3-0.6b", "sempa", "smollm2-135m", "smollm2-360m", "spod"),
)
RECIPES = ", ".join(NAMES)
KEYS = {f"{section}.{key}" for section, keys in SCHEMA.items() for key in keys}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- where values come from -------------------------------------------------------------------


def test_precedence_is_defaults_file_sets_flags():
    Path("my.yaml").write_text("train:\n  seed: 1\n  epochs: 2\n  clip: 2\n  warmup: 0.2\n")
    resolved = resolve_config(
        "my.yaml",
        sets=["train.seed=3", "train.epochs=4"],
        flags={"--seed": ("train.seed", 5), "--beta": ("objective.beta", 0.2)},
    )
    train = resolved.config.train
    assert (train.seed, train.epochs, train.clip, train.batch_size) == (5, 4, 2.0, 32)
    assert resolved.config.objective.beta == 0.2
    assert resolved.sources["train.seed"] == "--seed"
    assert resolved.sources["train.epochs"] == "--set"
    assert resolved.sources["train.warmup"] == "my.yaml:5"
    assert resolved.sources["train.batch_size"] == "default"
    assert resolved.sources["objective.beta"] == "--beta"
    assert set(resolved.sources) == KEYS


def test_without_a_source_the_file_here_wins_over_the_default_recipe(folder):
    assert resolve_config().origin == "built-in recipe smollm2-135m"
    (folder / "sempa.yaml").write_text("train:\n  seed: 7\n")
    resolved = resolve_config()
    assert (resolved.origin, resolved.config.train.seed) == ("./sempa.yaml", 7)
    assert resolved.sources["train.seed"] == "sempa.yaml:2"


def test_a_text_is_a_file_if_it_looks_like_one_or_exists(folder):
    (folder / "sub").mkdir()
    for name in ("a.yml", "sub/b", "plain"):
        Path(name).write_text("train:\n  seed: 9\n")
        assert resolve_config(name).config.train.seed == 9
    assert resolve_config(Path("plain")).origin == "./plain"
    assert resolve_config("sub/b").origin == "sub/b"
    (folder / "demo").mkdir()
    assert resolve_config("demo").origin == "built-in recipe demo"


@pytest.mark.parametrize(
    ("source", "what", "fix"),
    [
        (
            "smollm2",
            "smollm2: no such recipe, nor a file",
            "did you mean the recipe `smollm2-360m`?",
        ),
        ("dem.yaml", "dem.yaml: no such file", "did you mean the recipe `demo`?"),
        (Path("demo"), "demo: no such file", "did you mean the recipe `demo`?"),
        (
            "qqq",
            "qqq: no such recipe, nor a file",
            f"recipes: {RECIPES}",
        ),
    ],
)
def test_a_missing_source_names_the_recipes_beside_other_faults(source, what, fix):
    with pytest.raises(ConfigError) as caught:
        resolve_config(source, sets=["train.seed=-1"])
    missing, bad_set = caught.value.problems
    assert str(missing) == what
    assert missing.fix.startswith(fix)
    assert missing.fix.endswith(f"recipes: {RECIPES}")
    assert str(bad_set) == "--set train.seed: train.seed must be >= 0, got -1"


def test_a_set_is_split_at_the_first_equals_sign_and_read_as_yaml():
    resolved = resolve_config(
        sets=["data.train=a=b.jsonl", "lora.keys=[q_proj, v_proj]", "train.learning_rate=3e-4",
              "data.system=null", 'model.name="010"', "data.limit=010"],
    )  # fmt: skip
    assert resolved.config.data == DataConfig(train="a=b.jsonl", system=None, limit=10)
    assert resolved.config.lora.keys == ("q_proj", "v_proj")
    assert resolved.config.train.learning_rate == 3e-4
    assert resolved.config.model.name == "010"


@pytest.mark.parametrize(
    ("text", "first", "fix"),
    [
        ("train.seed", "--set train.seed: no `=`", "write `section.key=value`"),
        ("train.seed=", "--set train.seed: no value after `=`", "write `null` for no value"),
        ("seed=1", "--set seed: unknown section `seed`", "did you mean `train.seed`?"),
        ("dpo.beta=1", "--set dpo.beta: unknown section `dpo`", "did you mean `objective.beta`?"),
        ("lora={rank: 1}", "--set lora: `lora` is a section and must hold", "valid keys: alpha"),
        ("lora.a.b=1", "--set lora.a.b: unknown key `a.b` in section `lora`", "valid keys: alpha"),
        ("lora.keys=[a", "--set lora.keys: not valid YAML", ""),
        ("lora.keys=[*a]", "--set lora.keys: aliases (`*name`) are not read", ""),
        ("data.system=Be: kind", "--set data.system: data.system must be text", "put it in quotes"),
        (r'data.system="\uD800"', "--set data.system: half a surrogate pair is no text", ""),
    ],
)  # fmt: skip
def test_a_bad_set_names_itself(text, first, fix):
    with pytest.raises(ConfigError) as caught:
        resolve_config(sets=[text])
    (problem,) = caught.value.problems
    assert str(problem).startswith(first)
    assert problem.fix.startswith(fix)
    assert str(problem).isprintable()


def test_a_flag_that_is_no_text_is_a_fault():
    with pytest.raises(ConfigError) as caught:
        resolve_config(flags={"--data": ("data.train", "caf\udce9")})
    assert str(caught.value) == r'--data: data.train must be valid text, got "caf\udce9"'


def test_a_key_set_twice_is_refused():
    with pytest.raises(ConfigError, match=r"^--set train\.seed: given twice$"):
        resolve_config(sets=["train.seed=1", "train.seed=2"])


# --- the model of settings --------------------------------------------------------------------


def test_the_defaults_are_those_of_the_design():
    config = SempaConfig()
    assert (config.lora.rank, config.lora.alpha, config.lora.scale) == (8, 32.0, 4.0)
    assert (config.objective.beta, config.train.learning_rate) == (0.1, 1e-4)
    assert (config.eval.every, config.eval.pairs, config.output.path) == (10, 500, "adapters")


def test_settings_are_frozen_and_hashable():
    config = SempaConfig(lora=LoraConfig(keys=("a",)))
    with pytest.raises(ValidationError, match="frozen"):
        config.train.seed = 1
    assert hash(config) == hash(SempaConfig(lora=LoraConfig(keys=("a",))))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
overrides = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"name": texts, "revision": st.none() | texts}),
        "data": st.fixed_dictionaries({"system": st.none() | st.just("") | texts}),
        "lora": st.fixed_dictionaries(
            {
                "alpha": st.floats(0, exclude_min=True, allow_infinity=False),
                "layers": st.just(-1) | st.integers(1),
                "keys": st.none() | st.lists(texts, min_size=1, max_size=3),
            }
        ),
        "train": st.fixed_dictionaries(
            {"warmup": st.floats(0, 1, exclude_max=True), "seed": st.integers(0, 2**63 - 1)}
        ),
        "output": st.fixed_dictionaries(
            {"path": st.sampled_from(["1e-4", "010", "no", "~", "<<", "=", " a", "a: #b", "-"])}
        ),
    }
)  # fmt: skip
in_one_folder = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.unmeasured
@in_one_folder
@given(overrides)
def test_a_dumped_config_loads_to_an_equal_config(values):
    config = SempaConfig.model_validate(values)
    Path("dump.yaml").write_text(dump_config(config), encoding="utf-8", newline="")
    resolved = resolve_config("dump.yaml")
    assert resolved.config == config
    assert "default" not in resolved.sources.values()
    text = write_commented(config, dict.fromkeys(KEYS, "# a: [comment] 'behind"))
    Path("commented.yaml").write_text(text, encoding="utf-8", newline="")
    assert resolve_config("commented.yaml").config == config


# --- recipes ----------------------------------------------------------------------------------


def test_recipes_are_listed_by_name():
    assert list_recipes() == NAMES
    with pytest.raises(ConfigError, match=r"^\.\./demo: no such recipe$"):
        recipe_path("../demo")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_and_explains_every_key(name):
    resolved = resolve_config(name)
    assert set(resolved.sources) == KEYS
    assert all(source.startswith(f"{name}.yaml:") for source in resolved.sources.values())
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    keyed = [line for line in lines if line.startswith("  ")]
    assert len(keyed) == len(KEYS)
    assert all(re.search(r"\S +# \S", line) for line in keyed)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sempa",
         {"train.learning_rate": 3e-4, "data.limit": 4096, "eval.every": 8,
          "eval.patience": 5}),
        ("smollm2-135m",
         {"train.learning_rate": 1e-3, "data.limit": 4096, "eval.every": 8, "eval.patience": 5,
          "objective.loss": "embedding + 2 kl", "objective.kl_text": "general",
          "train.batch_size": 64}),
        ("listwise",
         {"train.learning_rate": 3e-4, "data.limit": 4096, "eval.every": 8, "eval.patience": 5,
          "objective.loss": "listwise", "data.candidates": 3, "objective.second_weight": 0.5}),
        ("bridge",
         {"train.learning_rate": 3e-4, "data.limit": 4096, "eval.every": 8, "eval.patience": 5,
          "objective.loss": "sigmoid + embedding", "eval.dial": (0.25, 0.5),
          "eval.dial_always": True}),
        ("smollm2-360m",
         {"train.learning_rate": 2e-4, "data.limit": 4096, "eval.every": 8, "eval.patience": 5,
          "model.name": "HuggingFaceTB/SmolLM2-360M-Instruct"}),
        ("qwen3-0.6b",
         {"train.learning_rate": 2e-4, "data.limit": 4096, "eval.every": 8, "eval.patience": 5,
          "model.name": "Qwen/Qwen3-0.6B"}),
        ("llama-3.2-1b",
         {"data.limit": 4096, "eval.every": 8, "eval.patience": 5,
          "model.name": "mlx-community/Llama-3.2-1B-Instruct-bf16"}),
        ("paper-llama3-8b",
         {"model.name": "meta-llama/Meta-Llama-3-8B", "model.dtype": "bfloat16",
          "model.max_tokens": 1024, "data.train": "nli", "train.batch_size": 256,
          "train.grad_checkpoint": True, "eval.every": 78, "eval.data": "stsb",
          "eval.pairs": None, "eval.patience": 4, "eval.dial": None}),
        ("demo",
         {"data.train": "demo", "eval.data": "demo", "train.learning_rate": 1e-3,
          "train.batch_size": 16, "train.iters": 16, "eval.every": 4,
          "objective.loss": "embedding + 2 kl", "objective.kl_text": "general",
          "objective.kl_tokens": 128,
          "eval.pairs": None, "output.path": "sempa-demo/run"}),
    ],
)  # fmt: skip
def test_a_recipe_differs_from_the_defaults_only_where_it_means_to(name, changes):
    base, recipe = SempaConfig().model_dump(), resolve_config(name).config.model_dump()
    found = {
        f"{section}.{key}": recipe[section][key]
        for section, keys in SCHEMA.items()
        for key in keys
        if recipe[section][key] != base[section][key]
    }
    assert found == changes


def test_the_recipe_of_the_paper_holds_its_numbers():
    """SemPA's script and ms-swift 3.10.1; the defaults here may move, this recipe may not."""
    config = resolve_config("paper-llama3-8b").config
    lora, train = config.lora, config.train
    assert (lora.kind, lora.rank, lora.alpha, lora.keys, lora.layers) == ("lora", 8, 32.0, None, -1)
    assert (config.objective.loss, config.objective.beta, lora.dropout) == ("sigmoid", 0.1, 0.0)
    assert (train.learning_rate, train.beta2, train.weight_decay, train.clip) == (
        1e-4,
        0.95,
        0.1,
        1,
    )
    assert (train.schedule, train.warmup, train.epochs) == ("cosine", 0.05, 1)
    assert (config.data.template, config.data.system) == ("P1", "You are a helpful assistant")


def test_an_installed_package_uses_its_own_recipes(tmp_path, monkeypatch):
    (tmp_path / "pkg" / "configs").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "beside.yaml").write_text("train: {seed: 1}")
    (tmp_path / "pkg" / "configs" / "inside.yaml").write_text("train: {seed: 2}")
    monkeypatch.setattr(config_recipes, "_PACKAGE", tmp_path / "pkg")
    assert list_recipes() == ("inside",)
    assert resolve_config("inside").config.train.seed == 2
    (tmp_path / "pkg" / "configs").rename(tmp_path / "gone")
    assert list_recipes() == ("beside",)


def test_the_output_may_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert OutputConfig(path="~/runs/a").path == f"{tmp_path}/runs/a"
    with pytest.raises(ValidationError, match="no home folder `~nosuchuser`"):
        OutputConfig(path="~nosuchuser/a")
