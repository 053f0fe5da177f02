"""Fault 18: unknown and doubled keys, wrong types, `.inf`, tabs, an empty file, a list.

Any YAML: tests/test_config_faults.py. What is dumped loads as it was: tests/test_config.py.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.command import done, refused, run

FAULTY = """train:
  sed: 3
  seed: many
  iters: 5
  iters: 6
  learning_rate: .inf
lora:
  rank: 1e-4
objektive:
  beta: 0.1
"""


def test_all_faults_of_a_file_come_at_once_with_their_lines(here):
    (here / "a.yaml").write_text(FAULTY)
    for command in (
        ["config", "validate", "a.yaml"],
        ["train", "-c", "a.yaml", "--adapter-path", "run"],
    ):
        outcome = refused(2, *command)
        places = [error.split(": ")[1] for error in outcome.errors]
        assert places == [f"a.yaml:{line}" for line in (2, 3, 5, 6, 8, 9)]
        assert "6 problems" in outcome.err
        assert "did you mean `seed`" in outcome.err
        assert "did you mean `objective`" in outcome.err
    assert [path.name for path in here.iterdir()] == ["a.yaml"]


@pytest.mark.parametrize(
    "content", ["", "# nothing\n", "- train\n", "train:\n\tseed: 3\n", "train: [", "3\n", "\0"]
)
def test_what_is_no_settings_file_is_refused(here, content):
    (here / "a.yaml").write_text(content)
    outcome = refused(2, "config", "validate", "a.yaml")
    assert outcome.errors[0].startswith("error: a.yaml")


def test_numbers_of_people_are_numbers(here):
    """YAML 1.1 takes 1e-4 for text."""
    (here / "a.yaml").write_text("train:\n  learning_rate: 1e-4\n")
    assert "no faults" in done("config", "validate", "a.yaml").out


pieces = st.sampled_from(
    [
        "train",
        "seed",
        "lora",
        "keys",
        ": ",
        ":\n  ",
        "\n",
        "- ",
        "[",
        "{",
        "}",
        "1e-4",
        ".inf",
        "\t",
        "&a ",
        "*a",
        "!!python/object:os.system ",
        "<<",
        "~",
        "'",
        "[red]",
    ]
)


@pytest.mark.unmeasured
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pieces | st.text(max_size=3), max_size=12).map("".join))
def test_any_text_is_settings_or_faults_with_places(here, text):
    (here / "any.yaml").write_bytes(text.encode())
    outcome = run("config", "validate", "any.yaml")
    assert outcome.code in (0, 2)
    assert bool(outcome.errors) == (outcome.code == 2)
    assert all(error.startswith("error: any.yaml") for error in outcome.errors)
    assert "this is a bug" not in outcome.err
