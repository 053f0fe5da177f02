import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sempa_mlx.encoder.sparse_lines import term_keys, write_code_lines
from tests.encoder.codes import drawn_codes


def lines(codes, texts, keys, first_id=0):
    handle = io.StringIO()
    write_code_lines(handle, texts, codes, keys, first_id)
    return [json.loads(line) for line in handle.getvalue().split("\n")[:-1]]


def test_a_line_by_hand():
    codes = csr_array(np.array([[0, 1.234, 0.004, 3], [0, 0, 0, 0]], dtype=np.float32))
    found = lines(codes, ["a 猫\u2028", ""], term_keys(4), first_id=7)
    assert found == [
        {"id": 7, "text": "a 猫\u2028", "vector": {"3": 300, "1": 123}},
        {"id": 8, "text": "", "vector": {}},
    ]
    assert list(found[0]["vector"]) == ["3", "1"], "the strongest first"


def test_weights_are_a_hundred_times_the_values():
    codes = drawn_codes()
    found = lines(codes, ["x"] * 30, term_keys(50))
    expected = np.rint(100 * codes.toarray().astype(np.float64))
    dense = np.zeros((30, 50))
    for row, line in enumerate(found):
        assert line["id"] == row
        for key, weight in line["vector"].items():
            assert isinstance(weight, int)
            assert weight > 0
            dense[row, int(key)] = weight
    np.testing.assert_array_equal(dense, expected)


def test_tokens_give_terms_without_white_space():
    names = [" cat", "cat", "\n", "", "\ufffd", "\ufffd", "#2", "a b", "two\twords", " "]
    keys = term_keys(len(names), names)
    assert keys == ("▁cat", "cat", "##2", "#3", "#4", "#5", "#2", "a▁b", "#8", "▁")


def test_a_blank_written_out_is_no_other_token():
    assert term_keys(3, [" a", "▁a", "b"]) == ("#0", "#1", "b")


@given(st.lists(st.text(st.sampled_from("ab #0123\n\u2581\ufffd"), max_size=3), max_size=12))
def test_no_two_latents_share_a_term(names):
    keys = term_keys(len(names), names)
    assert len(set(keys)) == len(names)
    assert all(key.split() == [key] for key in keys)


def test_names_must_be_as_many_as_latents():
    with pytest.raises(ValueError, match="2 names of 3 latents"):
        term_keys(3, ["a", "b"])
