import pytest
from hypothesis import given
from hypothesis import strategies as st

from sempa_mlx.config_terms import NO_AIM, TERMS, parse_terms

WEIGHTS = st.floats(1e-6, 1e6).map(lambda weight: float(repr(weight)))
SUMS = st.dictionaries(st.sampled_from(TERMS), WEIGHTS, min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("sigmoid", {"sigmoid": 1.0}),
        ("sigmoid + 0.5 embedding", {"sigmoid": 1.0, "embedding": 0.5}),
        ("0.8*sigmoid+.2 * bco_pair+sft", {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}),
        ("hinge+1e-2 kl", {"hinge": 1.0, "kl": 0.01}),
        ("1e+2hinge", {"hinge": 100.0}),
    ],
)
def test_a_sum_of_terms(text, weights):
    assert parse_terms(text) == weights


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "a sum of terms"),
        ("sigmoid +", "a sum of terms"),
        ("sigmoid, sft", "a sum of terms"),
        ("sigmoid - sft", "a sum of terms"),
        ("-1 sft", "a sum of terms"),
        ("sigmoit", "did you mean `sigmoid`"),
        ("dpo", "one of sigmoid, robust"),
        ("sft + sft", "`sft` once"),
        ("0 sft", "weight above 0"),
        ("1e999 sigmoid", "finite weight"),
        ("0.1 kl", "another term than `kl`"),
        ("uniformity + 2 code", "another term than `uniformity` and `code`"),
    ],
)
def test_what_is_no_sum_of_terms_says_why(text, fault):
    with pytest.raises(ValueError, match="a sum") as caught:
        parse_terms(text)
    assert fault in str(caught.value)


@given(SUMS)
def test_written_out_a_sum_reads_the_same(weights):
    if weights.keys() <= NO_AIM:
        weights = weights | {"sft": 1.0}
    text = " + ".join(f"{weight!r} {name}" for name, weight in weights.items())
    assert parse_terms(text) == weights
