import functools
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.errors import UsageError
from sempa_mlx.model import completions, scoring
from sempa_mlx.model.completions import TokenRow, score_plain
from sempa_mlx.model.forward import GROUPED_MASK_RANK, PLAIN_MASK_RANK
from sempa_mlx.model.scoring import Scorer, choose_scoring, score_states
from tests.tiny import MISFITS, WINDOW, tiny_model

model_of = functools.cache(tiny_model)
ROWS = [
    TokenRow((1, 2, 3, 4, 5), ((6, 7), (8, 9, 10))),
    TokenRow((1, 2, 9), ((11,), (12, 13))),
    TokenRow((1, 2, 9, 9, 9, 9, 9), ((5, 5), (6,))),
    TokenRow((1, 2, 7, 7), ((20, 21, 22, 23), (24,))),
]


@pytest.mark.parametrize(
    ("kind", "mask_rank"),
    [
        ("llama", PLAIN_MASK_RANK),
        ("qwen2", PLAIN_MASK_RANK),
        ("qwen3", PLAIN_MASK_RANK),
        ("gemma2", GROUPED_MASK_RANK),
    ],
)
@pytest.mark.parametrize("wanted", ["auto", "shared"])
def test_models_that_fit_share(kind, mask_rank, wanted):
    scorer = choose_scoring(model_of(kind), ROWS, mx.float32, wanted)
    assert scorer == Scorer(shared=2, mask_rank=mask_rank)
    assert scorer.path == "shared"
    expected = np.array(score_plain(model_of(kind), ROWS))
    np.testing.assert_allclose(np.array(scorer(model_of(kind), ROWS).sums), expected, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wanted", ["plain", "shared"])
def test_tails_are_what_lies_beyond_the_shortest_completion(wanted, training):
    model = model_of("llama")
    cut = [
        TokenRow(
            row.prompt, tuple(each[: min(map(len, row.completions))] for each in row.completions)
        )
        for row in ROWS
    ]
    whole, heads = (np.array(score_plain(model, rows)) for rows in (ROWS, cut))
    scorer = choose_scoring(model, ROWS, mx.float32, wanted)
    found = score_states(model, scorer.states(model, ROWS), training=training)
    np.testing.assert_allclose(np.array(found.sums), whole, atol=1e-4)
    np.testing.assert_allclose(np.array(found.tails), whole - heads, atol=1e-4)
    assert np.count_nonzero(np.array(found.tails)) == 4


@pytest.mark.parametrize("kind", MISFITS)
def test_misfits_take_the_plain_path(kind):
    scorer = choose_scoring(model_of(kind), ROWS, mx.float32)
    assert scorer == Scorer(shared=0, mask_rank=None)
    assert scorer.path == "plain"
    expected = np.array(score_plain(model_of(kind), ROWS))
    np.testing.assert_array_equal(np.array(scorer(model_of(kind), ROWS).sums), expected)


@pytest.mark.parametrize("kind", MISFITS)
def test_sharing_that_is_asked_for_and_cannot_be_is_an_error(kind):
    with pytest.raises(UsageError, match=r"train\.scoring: plain"):
        choose_scoring(model_of(kind), ROWS, mx.float32, "shared")


def test_plain_on_demand_runs_nothing():
    assert choose_scoring(None, ROWS, mx.float32, "plain") == Scorer(0, None)


def test_windows_wider_than_the_rows_share():
    short = [TokenRow((1, 2), ((3, 4), (5,))), TokenRow((1, 3), ((6,), (7,)))]
    longest = 2 + 2
    assert longest <= WINDOW
    assert choose_scoring(model_of("gemma3_text"), short, mx.float32).path == "shared"


def test_the_longest_row_decides_even_when_it_comes_last():
    short = TokenRow((1, 2), ((3,), (5,)))
    long = TokenRow((1, 2, 3, 4), ((6, 7, 8, 9), (7,)))
    model = model_of("gemma3_text")
    assert choose_scoring(model, [short, short], mx.float32).path == "shared"
    assert choose_scoring(model, [short, short, short, long], mx.float32).path == "plain"


def test_long_prompts_and_long_completions_of_different_rows_count_together():
    """Rows of one batch are padded to a common length, which the window has to hold."""
    long_prompt = TokenRow((1, 2, 3, 4, 5), ((6,), (7,)))
    long_answer = TokenRow((1, 2, 3), ((6, 7, 8, 9), (7,)))
    short = TokenRow((1, 2), ((6,), (7,)))
    model = model_of("gemma3_text")
    assert choose_scoring(model, [long_prompt, short], mx.float32).path == "shared"
    assert choose_scoring(model, [long_prompt, long_answer, short], mx.float32).path == "plain"


def test_the_longest_prompt_counts_whatever_its_tokens_are():
    long_prompt = TokenRow((1, 2, 3, 4, 5, 6), ((6,), (7,)))
    short = TokenRow((1, 9), ((6,), (7,)))
    model = model_of("gemma3_text")
    assert choose_scoring(model, [short, long_prompt], mx.float32).path == "plain"


@pytest.mark.parametrize(("share", "path"), [(0.5, "shared"), (2.0, "plain")])
def test_what_may_differ_grows_with_the_scored_tokens_of_a_row(monkeypatch, share, path):
    rows = [TokenRow((1, 2, 3), ((4,) * 8, (5,) * 8)), TokenRow((1, 2, 6), ((7,) * 8, (8,) * 8))]
    allowed = scoring.TOLERANCE[mx.float32] * 16
    right = scoring.score_shared
    monkeypatch.setattr(scoring, "score_shared", lambda *args: right(*args) + share * allowed)
    assert choose_scoring(model_of("llama"), rows, mx.float32).path == path


def test_scores_that_are_wrong_only_beside_longer_prompts_are_found(monkeypatch):
    """The longest prompt with the longest completions may hide what padding does to the others."""
    longest = TokenRow((1, 2, 3, 4, 5, 6, 7, 8), ((6, 7, 8, 9), (7,)))
    short = TokenRow((1, 2, 9), ((6,), (7, 8)))
    hidden = completions._after_prompts

    def sees_pads(*args):
        past = hidden(*args)
        return replace(past, visible=mx.ones_like(past.visible))

    monkeypatch.setattr(completions, "_after_prompts", sees_pads)
    assert choose_scoring(model_of("llama"), [longest], mx.float32).path == "shared"
    assert choose_scoring(model_of("llama"), [longest, short], mx.float32).path == "plain"


def test_silently_wrong_scores_are_found(monkeypatch):
    """A path that runs but gives other numbers than the model must not be taken."""
    right = scoring.score_shared
    monkeypatch.setattr(scoring, "score_shared", lambda *args: right(*args) + 0.01)
    assert choose_scoring(model_of("llama"), ROWS, mx.float32).path == "plain"


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_rounding_of_half_precision_is_allowed_for(dtype):
    model = tiny_model("llama")
    model.set_dtype(dtype)
    assert choose_scoring(model, ROWS, dtype).path == "shared"


def test_token_counts_of_the_shared_path():
    scorer = Scorer(shared=2, mask_rank=4)
    assert scorer.own_tokens(ROWS[0]) == (5 - 2) + (2 - 1) + (3 - 1)
    assert scorer.own_tokens(ROWS[1]) == (3 - 2) + 1 + (2 - 1)  # one token at least is run
    assert scorer.tokens(ROWS[:2]) == 2 + 6 + 3


def test_token_counts_of_the_plain_path():
    scorer = Scorer(shared=0, mask_rank=None)
    assert scorer.own_tokens(ROWS[0]) == (5 + 2) + (5 + 3)
    assert scorer.tokens(ROWS[:2]) == 15 + (3 + 1) + (3 + 2)


def test_token_counts_with_three_candidates():
    row = TokenRow((1, 2, 3), ((4,), (5, 6), (7, 8, 9)))
    assert Scorer(shared=1, mask_rank=4).own_tokens(row) == 2 + 1 + 1 + 2
    assert Scorer(shared=0, mask_rank=None).own_tokens(row) == 3 * 3 + 6
