"""The weighted sum of terms over log-probabilities, against numpy."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy.special import logsumexp

from sempa_mlx.config import ObjectiveConfig
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.scoring import Scored
from sempa_mlx.training.terms import Objective, Totals, batch_totals, completion_lengths

BETA = 0.3


def scored(rows, candidates, seed):
    """Random log-probabilities, of which tails are a part."""
    random = np.random.default_rng(seed)
    sums = -20 * random.random((rows, candidates))
    return Scored(mx.array(sums.astype(np.float32)), mx.array((0.3 * sums).astype(np.float32)))


POLICY, REFERENCE = scored(5, 2, 0), scored(5, 2, 1)
LENGTHS = mx.array([[3.0, 5.0], [4.0, 4.0], [9.0, 2.0], [1.0, 1.0], [6.0, 7.0]])
TOTALS = Totals(pairs=5, chosen_tokens=23)


def value(loss, policy=POLICY, reference=REFERENCE, totals=TOTALS, **settings):
    objective = Objective(ObjectiveConfig(loss=loss, beta=BETA, **settings))
    return objective(policy, reference, LENGTHS, totals).item()


def arrays():
    return (np.array(each.sums, dtype=np.float64) for each in (POLICY, REFERENCE))


def dpo(margins):
    return np.log1p(np.exp(-BETA * margins)).mean()


def test_one_term_is_a_mean_over_pairs():
    policy, reference = arrays()
    ratios = policy - reference
    assert value("sigmoid") == pytest.approx(dpo(ratios[:, 0] - ratios[:, 1]), rel=1e-5)


def test_a_share_of_a_batch_is_divided_by_the_whole_batch():
    whole = value("sigmoid + 0.5 sft")
    half = value("sigmoid + 0.5 sft", totals=Totals(pairs=10, chosen_tokens=46))
    assert half == pytest.approx(whole / 2, rel=1e-6)


def test_terms_add_up_with_their_weights():
    parts = 0.8 * value("sigmoid") + 0.2 * value("bco_pair") + 1.5 * value("sft")
    assert value("0.8 sigmoid + 0.2 bco_pair + 1.5 sft") == pytest.approx(parts, rel=1e-6)


def test_the_sft_term_is_a_mean_over_chosen_tokens():
    policy, _ = arrays()
    assert value("sft") == pytest.approx(-policy[:, 0].sum() / 23, rel=1e-6)


def test_orpo_and_cpo_bring_their_sft_term():
    assert Objective(ObjectiveConfig(loss="2 orpo", beta=BETA)).weights == {
        "odds_ratio": pytest.approx(2 * BETA),
        "sft": 2.0,
    }
    assert Objective(ObjectiveConfig(loss="cpo + 0.5 sft")).weights == {"cpo": 1.0, "sft": 1.5}
    policy, _ = arrays()
    assert value("cpo") == pytest.approx(dpo(policy[:, 0] - policy[:, 1]) + value("sft"), rel=1e-5)


def test_tokens_beyond_the_shorter_completion_count_by_ld_alpha():
    policy, reference = arrays()
    kept = 1 - 0.75 * 0.3  # 0.3 of each sum is tail, and a quarter of it counts
    ratios = kept * (policy - reference)
    found = value("sigmoid", ld_alpha=0.25)
    assert found == pytest.approx(dpo(ratios[:, 0] - ratios[:, 1]), rel=1e-5)
    assert value("sigmoid", ld_alpha=1.0) == pytest.approx(value("sigmoid"), rel=1e-6)
    assert value("sft", ld_alpha=0.0) == value("sft"), "only preferences are desensitised"


def test_three_candidates_are_ranked_with_a_weight_on_the_second_place():
    policy, reference = scored(5, 3, 2), scored(5, 3, 3)
    scores = BETA * (np.array(policy.sums, np.float64) - np.array(reference.sums, np.float64))
    first = (logsumexp(scores, axis=1) - scores[:, 0]).mean()
    second = (logsumexp(scores[:, 1:], axis=1) - scores[:, 1]).mean()
    ranked = value("listwise", policy, reference, second_weight=0.25)
    assert ranked == pytest.approx(first + 0.25 * second, rel=1e-5)
    assert value("softmax", policy, reference) == pytest.approx(first, rel=1e-5)


def test_pairwise_losses_of_three_candidates_compare_best_and_worst():
    three, base = scored(5, 3, 2), scored(5, 3, 3)
    two, low = (Scored(each.sums[:, ::2], each.tails[:, ::2]) for each in (three, base))
    assert value("sigmoid", three, base) == pytest.approx(value("sigmoid", two, low), rel=1e-6)


def test_listwise_of_two_is_dpo():
    assert value("listwise") == value("softmax")
    assert value("listwise") == pytest.approx(value("sigmoid"), rel=1e-6)


def test_equal_models_cost_ln_2():
    assert value("sigmoid", reference=POLICY) == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "used", "needs", "batchwise"),
    [
        ("sigmoid", True, True, False),
        ("simpo", True, False, False),
        ("orpo + sft", True, False, False),
        ("cpo + ipo", True, True, False),
        ("embedding", False, False, False),
        ("embedding + 0.1 kl", False, False, False),
        ("sigmoid + 0.5 aot", True, True, True),
    ],
)
def test_an_objective_knows_what_it_needs(loss, used, needs, batchwise):
    objective = Objective(ObjectiveConfig(loss=loss))
    found = (objective.is_used, objective.needs_reference, objective.is_batchwise)
    assert found == (used, needs, batchwise)


def test_no_gradient_reaches_the_reference():
    objective = Objective(ObjectiveConfig(loss="sigmoid + ipo + listwise"))

    def loss(reference):
        return objective(POLICY, Scored(reference, REFERENCE.tails), LENGTHS, TOTALS)

    assert not np.array(mx.grad(loss)(REFERENCE.sums)).any()


def test_lengths_and_totals_count_tokens():
    rows = [TokenRow((1,), ((1, 2), (1, 2, 3))), TokenRow((1,), ((1,), (1,)))]
    assert completion_lengths(rows).tolist() == [[2.0, 3.0], [1.0, 1.0]]
    assert batch_totals(rows) == Totals(pairs=2, chosen_tokens=3)
