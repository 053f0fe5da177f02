"""Fault 11: quotes, braces, line breaks, control tokens, markup, right-to-left text, emoji.

Prompts and templates: tests/model/test_prompts.py, tests/data/test_templates.py.
"""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sempa_mlx.encoder.encoder import Encoder
from tests.command import done, refused, run
from tests.tiny import CONTROL_TOKENS

HOSTILE = (
    'He said "no".',
    "{0} {text} {{}} %s %(a)s ${x}",
    'means in one word:"',
    *CONTROL_TOKENS,
    "</s> <s> [INST] <|endoftext|>",
    "[red]bold[/red] [/x] [step 3] [link=a]",
    "\x1b[2J\x1b]0;title\x07 \x08\x7f",
    "שלום עולם \u202eabc\u202c",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301\u0323 ﷽",
    "a\u2028b\u2029c\x85d\x0be",
    "'; drop table x; -- $(touch pwned) `id`",
    "../../etc/passwd",
    ":dog: 12:100:3 :smile:",
)
texts = st.lists(
    st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    max_size=5,
).map("".join)


@pytest.fixture(scope="module")
def encoder(space):
    return Encoder.load(space / "run")


def test_every_line_gets_a_vector_in_its_place(space, here):
    lines = [text for text in HOSTILE if "\n" not in text]
    (here / "a.txt").write_text("".join(f"{line}\n" for line in lines), newline="")
    done("embed", "a.txt", "-o", "a.jsonl", "--adapter-path", space / "run")
    rows = [json.loads(row) for row in (here / "a.jsonl").read_text().split("\n") if row]
    assert [row["text"] for row in rows] == lines
    vectors = np.array([row["embedding"] for row in rows])
    assert np.isfinite(vectors).all()
    assert sorted(path.name for path in here.iterdir()) == ["a.jsonl", "a.jsonl.json", "a.txt"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts)
def test_any_text_has_a_vector_of_unit_length(encoder, text):
    (vector,) = encoder.encode([text])
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts)
def test_no_text_becomes_a_control_token(encoder, text):
    """However hostile, a prompt holds as many control tokens as that of a tame sentence."""
    tokenizer = encoder.loaded.tokenizer
    special = {tokenizer.convert_tokens_to_ids(token) for token in CONTROL_TOKENS}

    def count(sentence):
        (prompt,) = encoder.tokenize([sentence])
        return sum(token in special for token in prompt)

    assert count(text) == count("A cat sleeps.")


@pytest.mark.parametrize("name", ["[red]a[/red].txt", "a[/x].txt", "{0}.txt", "\x1b[31ma.txt"])
def test_names_are_shown_as_they_are_but_for_control_characters(here, name):
    outcome = refused(3, "embed", name)
    assert f"error: {name}: no such file".replace("\x1b", "\\x1b") in outcome.err


def test_control_characters_of_data_never_reach_the_terminal(here):
    row = {"anchor": "a", "entailment": "b", "contradiction": "c", "\x1b]0;title\x07": 1}
    (here / "a.jsonl").write_text(json.dumps(row) + "\n")
    outcome = run("data", "check", "a.jsonl")
    assert outcome.code == 0
    assert "\\x1b]0;title\\x07" in outcome.out
    assert not set(outcome.out + outcome.err) & set("\x1b\x07")
