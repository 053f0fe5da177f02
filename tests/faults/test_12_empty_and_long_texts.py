"""Fault 12: empty lines, blanks, and a sentence of 100,000 characters.

Cutting and its rules: tests/model/test_prompts.py, tests/encoder/test_encoder.py.
"""

import numpy as np

from sempa_mlx.encoder.encoder import Encoder
from tests.command import done

LONG = "word " * 20_000


def test_each_gets_a_vector_and_what_is_cut_is_counted_once(space, here):
    (here / "a.txt").write_text(f"\n   \nA cat sleeps.\n{LONG}\n\n{LONG}\n")
    outcome = done("embed", "a.txt", "--adapter-path", space / "run")
    vectors = np.load("a.txt.npy")
    assert vectors.shape == (6, 32)
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(vectors[0], vectors[4])
    np.testing.assert_array_equal(vectors[3], vectors[5])
    assert not np.array_equal(vectors[0], vectors[2])
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("warning")]
    assert "2 " in warning


def test_the_end_of_the_prompt_survives_the_cut(space):
    encoder = Encoder.load(space / "run")
    empty, cut = encoder.tokenize(["", LONG])
    assert len(cut) <= encoder.settings.max_tokens
    tail = encoder.loaded.tokenizer.encode(' means in one word:"', add_special_tokens=False)
    assert list(empty[-len(tail) :]) == list(cut[-len(tail) :]) == tail
