"""A faulty settings file: every fault at once, each with its line and a way out."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sempa_mlx.config import SempaConfig
from sempa_mlx.config_resolve import resolve_config
from sempa_mlx.errors import ConfigError, Problem


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def faults(text: str | bytes, **overrides) -> tuple[Problem, ...]:
    """Return the problems of a file `my.yaml` with this content."""
    Path("my.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        resolve_config("my.yaml", **overrides)
    assert caught.value.state == "nothing was started"
    assert caught.value.exit_code == 2
    return caught.value.problems


def config_of(text: str) -> SempaConfig:
    Path("my.yaml").write_text(text, encoding="utf-8")
    return resolve_config("my.yaml").config


def test_all_faults_of_all_layers_come_at_once_in_order():
    problems = faults(
        "train:\n  learning_rate: -1.0\n  epochs: 2\n  epochs: 3\noutput:\n  pat: 0.1\n",
        sets=["lora.rank=0"],
        flags={"--beta": ("objective.beta", 0)},
    )
    assert [str(problem) for problem in problems] == [
        "my.yaml:2: train.learning_rate must be > 0, got -1.0",
        "my.yaml:4: duplicated key `train.epochs`, first on line 3",
        "my.yaml:6: unknown key `pat` in section `output`",
        "--set lora.rank: lora.rank must be >= 1, got 0",
        "--beta: objective.beta must be > 0, got 0",
    ]
    assert problems[2].evidence == "     6 |   pat: 0.1"
    assert problems[2].fix == "did you mean `path`? valid keys: keep, path, report_to, save_every"


def test_a_bad_value_is_a_fault_even_if_a_flag_covers_it():
    (problem,) = faults("train:\n  seed: x\n", flags={"--seed": ("train.seed", 1)})
    assert problem.place == "my.yaml:2"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("train.epochs: 3.0", "a whole number, got 3.0"),
        ("train.epochs: true", "a whole number, got true"),
        ("train.epochs: '3'", 'a whole number, got "3"'),
        ("train.epochs: null", "a whole number, got null"),
        ("train.epochs: 1_000", 'a whole number, got "1_000"'),
        ("train.epochs: 3:20", 'a whole number, got "3:20"'),
        ("train.seed: 9223372036854775808", "< 9223372036854775808, got 9223372036854775808"),
        ("train.clip: .inf", "a finite number, got Infinity"),
        ("train.clip: .nan", "a finite number, got NaN"),
        ("train.clip: 1e999", "a finite number, got Infinity"),
        ("train.clip: true", "a number, got true"),
        ("train.warmup: 1", "< 1, got 1"),
        ("train.beta2: 0", "> 0, got 0"),
        ("train.micro_batch_tokens: 63", ">= 64, got 63"),
        ("model.max_tokens: 15", ">= 16, got 15"),
        ("model.name: ''", 'text that is not empty, got ""'),
        ("model.name: 3", "text, got 3"),
        ("model.name: 2026-01-01", None),
        ("model.name: no", None),
        ("model.dtype: float23", "'auto', 'float32', 'bfloat16' or 'float16', got \"float23\""),
        ("lora.layers: 0", "-1 (all blocks) or >= 1 (the last ones), got 0"),
        ("lora.keys: q_proj", 'a list, got "q_proj"'),
        ("lora.keys: []", "null or a list of at least one, got []"),
        ("lora.dropout: -0.1", ">= 0, got -0.1"),
        ("data.limit: 0", ">= 1, got 0"),
        ("eval.pairs: 1", ">= 2, got 1"),
    ],
)
def test_types_and_ranges(line, what):
    key, value = line.split(": ", 1)
    section, name = key.split(".")
    text = f"{section}:\n  {name}: {value}\n"
    if what is None:
        assert getattr(getattr(config_of(text), section), name) == value
        return
    (problem,) = faults(text)
    assert str(problem) == f"my.yaml:2: {key} must be {what}"


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("train: {warmup: '0.1'}", "leave out the quotes"),
        ("train: {warmup: some}", ""),
        ("model: {name: 010}", "put it in quotes"),
        ("model: {dtype: float23}", "did you mean `float32`?"),
        ("model: {dtype: zzz}", ""),
    ],
)
def test_the_fix_fits_the_fault(line, fix):
    assert [problem.fix for problem in faults(line)] == [fix]


def test_each_bad_list_item_is_named():
    assert [str(problem) for problem in faults("lora:\n  keys: ['', q, 3]\n")] == [
        'my.yaml:2: lora.keys[0] must be text that is not empty, got ""',
        "my.yaml:2: lora.keys[2] must be text, got 3",
    ]


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("objectives: {beta: 1}", "unknown section `objectives`", "did you mean `objective`?"),
        ("beta: 1", "unknown section `beta`", "did you mean `objective.beta`?"),
        ("zzz: 1", "unknown section `zzz`", "valid sections: data, eval, lora, model, objective"),
        ("train: {beta: 1}", "unknown key `beta` in section `train`", "did you mean `objective.b"),
        ("train: {<<: {seed: 1}}", "unknown key `<<` in section `train`", "valid keys: batch_size"),
        ("train:", "`train` is a section and must hold settings", "valid keys: batch_size"),
        ("train: 3", "`train` is a section and must hold settings", "valid keys: batch_size"),
        ("train: {}", "`train` is a section and must hold settings", "valid keys: batch_size"),
        ("train: {seed: 1, ? [a, b] : 2}", "a key must be one word", ""),
        ("- train", "expected sections at the top level", "write `section:`"),
        ("train", "expected sections at the top level", "write `section:`"),
        ("null", "expected sections at the top level", "write `section:`"),
        ("!!map {train: {seed: 1}}", "tags (`!name`) are not read", "write `section:`"),
        ("train: {seed: !!int '1'}", "tags (`!name`) are not read", "write the value out"),
        ("train: {seed: !!python/name:os.system ''}", "tags (`!name`) are not read", "write the"),
        ("train: &a {seed: 1}\nlora: *a", "aliases (`*name`) are not read", "write the value out"),
        ("lora: {keys: [&a q, *a]}", "aliases (`*name`) are not read", "write the value out"),
        ("train: {seed: 1}\ntrain: {clip: 1}", "duplicated key `train`, first on line 1", "keep"),
        ("train:\n\tseed: 1", "not valid YAML: while scanning for the next token", "indent with"),
        ("train: [a\n\n", "not valid YAML: while parsing a flow sequence, expected ','", ""),
        ("lora: {}\n---\nlora: {}", "not valid YAML: expected a single document", ""),
        ("a: " + "[" * 5000, "not valid YAML: more than 16 levels", ""),
        ('data: {system: "\\UFFFFFFFF"}', "not valid YAML: no such character", ""),
        ("data:\n  system: \x07\n", "not valid YAML: a control character", ""),
    ],
)  # fmt: skip
def test_what_is_no_settings_file_says_why(text, what, fix):
    (problem,) = faults(text)
    assert problem.what.startswith(what)
    assert problem.fix.startswith(fix)
    line = int(problem.place.removeprefix("my.yaml:"))
    assert problem.evidence.startswith(f"{line:>6} | ")
    assert len(problem.evidence) > len("     1 | ")
    assert problem.evidence.isprintable()


@pytest.mark.parametrize("text", ["", "\n\n", "# train:\n#   seed: 1\n", "{}", "---\n", "\ufeff"])
def test_a_file_without_settings_is_a_fault(text):
    assert [str(problem) for problem in faults(text)] == ["my.yaml: no settings in the file"]


def test_unreadable_files(folder):
    (bad,) = faults(b"train:\n  seed: 1\n  # caf\xe9\n")
    assert str(bad) == "my.yaml:3: not UTF-8 text"
    (large,) = faults(b"#" * ((1 << 20) + 1))
    assert str(large) == "my.yaml: larger than 1 MiB, so not a settings file"
    (folder / "x.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"^x\.yaml: cannot be read: Is a directory$"):
        resolve_config("x.yaml")


def test_a_long_line_is_cut_in_the_evidence():
    (problem,) = faults("train:\n  sede: " + "x" * 1000)
    assert len(problem.evidence) == len("     2 | ") + 120


def test_byte_order_mark_and_crlf_are_read():
    Path("my.yaml").write_bytes(b"\xef\xbb\xbftrain:\r\n  seed: 4\r\n  clip: 2\r\n")
    resolved = resolve_config("my.yaml")
    assert (resolved.config.train.seed, resolved.sources["train.clip"]) == (4, "my.yaml:3")


def test_reading_leaves_yaml_itself_as_it_was():
    config_of("train: {learning_rate: 1e-4}")
    assert yaml.safe_load("[1e-4, 010, no]") == ["1e-4", 8, False]


yaml_like = st.lists(
    st.sampled_from(["train", "seed", "lora", "keys", ": ", ":\n  ", "\n", "- ", "[", "]", "{", "}",
        "'", '"', "\\u", "\\UFFFFFFFF", "!", "&a ", "*a", "|\n", "> ", "%YAML 1.2\n", "---\n",
        "...\n", "\t", "? ", "#", "@", "1e400", "9" * 700, "\x85", "\u2028", "<<", "\x00", ", ",
        "=", "..", "~"])
    | st.text(max_size=3),
    max_size=14,
).map("".join)  # fmt: skip


@pytest.mark.unmeasured
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(yaml_like)
def test_any_text_loads_or_is_a_config_error_with_places(text):
    Path("any.yaml").write_bytes(text.encode())
    problems: tuple[Problem, ...] = ()
    loaded = None
    try:
        loaded = resolve_config("any.yaml", sets=[f"data.system={text}"])
    except ConfigError as error:
        problems = error.problems
    assert isinstance(loaded and loaded.config, SempaConfig) != bool(problems)
    for problem in problems:
        assert re.match(r"any\.yaml(:\d+)?$|--set data\.system$", problem.place)
        assert (str(problem) + problem.evidence + problem.fix).isprintable()
