"""Values and gradients against float64 numpy and scipy in other forms; see `expected_*`."""

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit, logit, rel_entr

from sempa_mlx.config import ObjectiveConfig
from sempa_mlx.config_terms import PAIRWISE, REFERENCE_FREE, TERMS
from sempa_mlx.training.objectives import implicit_rewards, plackett_luce_nll
from sempa_mlx.training.pairwise import BATCHWISE, PAIR_LOSSES, Pairs

FEW = settings(max_examples=15, deadline=None, derandomize=True)
NAMES = sorted(PAIR_LOSSES)
WITHOUT_REFERENCE = ["cpo", "odds_ratio", "simpo"]
PAIR_BY_PAIR = sorted(PAIR_LOSSES.keys() - BATCHWISE)
# Of these a likelier chosen completion always lowers the loss, of the others it need not.
FALLING = ["sigmoid", "robust", "hinge", "bco_pair", "apo_zero", "aot", "aot_unpaired"]
FALLING += ["sigmoid_norm", "dpop", "simpo", "cpo", "odds_ratio"]
SETTINGS = {
    "defaults": {},
    "strong": {"beta": 2.0, "gamma": 0.5, "dpop_lambda": 5.0},
    "smoothed": {"beta": 0.5, "label_smoothing": 0.2, "gamma": 0.0},
}
# Sixty-fourths are exact in float32, and so are their sums: what is left to differ is the loss.
LOG_PROBABILITY = st.integers(-64 * 40, -1).map(lambda count: count / 64)
PAIR = st.tuples(*[LOG_PROBABILITY] * 4, st.integers(1, 12), st.integers(1, 12))
BATCH = st.lists(PAIR, min_size=1, max_size=6)


class Oracle(NamedTuple):
    """The same six columns in float64."""

    chosen: np.ndarray
    rejected: np.ndarray
    ref_chosen: np.ndarray
    ref_rejected: np.ndarray
    chosen_length: np.ndarray
    rejected_length: np.ndarray

    @property
    def a(self):
        return self.chosen - self.ref_chosen

    @property
    def b(self):
        return self.rejected - self.ref_rejected

    @property
    def d(self):
        return (self.chosen - self.rejected) - (self.ref_chosen - self.ref_rejected)

    @property
    def averaged(self):
        crossed = self.a * self.rejected_length - self.b * self.chosen_length
        return crossed / (self.chosen_length * self.rejected_length)


def cross_entropy(logits, smoothing):
    return -(1 - smoothing) * log_expit(logits) - smoothing * log_expit(-logits)


def expected_robust(p, s):
    straight, flipped = -log_expit(s.beta * p.d), -log_expit(-s.beta * p.d)
    e = s.label_smoothing
    return ((1 - e) * straight - e * flipped) / (1 - 2 * e)


def expected_exo(p, s):
    e, z = s.label_smoothing or 0.001, s.beta * p.d
    return rel_entr(expit(z), 1 - e) + rel_entr(expit(-z), e)


def expected_sppo(p, s):
    return p.a**2 - p.a / s.beta + p.b**2 + p.b / s.beta + 0.5 / s.beta**2


def expected_aot(p, s):
    margins, reference = sorted(p.chosen - p.rejected), sorted(p.ref_chosen - p.ref_rejected)
    gaps = [ours - theirs for ours, theirs in zip(margins, reference, strict=True)]
    return cross_entropy(s.beta * np.array(gaps), s.label_smoothing)


def expected_aot_unpaired(p, s):
    gaps = [high - low for high, low in zip(sorted(p.a), sorted(p.b), strict=True)]
    return cross_entropy(s.beta * np.array(gaps), s.label_smoothing)


def expected_discopop(p, s):
    z = s.beta * p.d
    blend = expit(20 * z)
    return (1 - blend) * -log_expit(z) + blend * np.exp(np.minimum(-z, 700))


def expected_odds_ratio(p, _s):
    chosen, rejected = np.exp(p.chosen / p.chosen_length), np.exp(p.rejected / p.rejected_length)
    return -log_expit(logit(chosen) - logit(rejected))


EXPECTED = {
    "sigmoid": lambda p, s: cross_entropy(s.beta * p.d, s.label_smoothing),
    "robust": expected_robust,
    "hinge": lambda p, s: np.where(s.beta * p.d < 1, 1 - s.beta * p.d, 0),
    "ipo": lambda p, s: (p.averaged - 1 / (2 * s.beta)) ** 2,
    "exo_pair": expected_exo,
    "nca_pair": lambda p, s: (
        -(log_expit(s.beta * p.a) + (log_expit(-s.beta * p.a) + log_expit(-s.beta * p.b)) / 2)
    ),
    "bco_pair": lambda p, s: -log_expit(s.beta * p.a) - log_expit(-s.beta * p.b),
    "sppo_hard": expected_sppo,
    "apo_zero": lambda p, s: 1 + (np.tanh(s.beta * p.b / 2) - np.tanh(s.beta * p.a / 2)) / 2,
    "apo_down": lambda p, s: 1 + (np.tanh(s.beta * p.a / 2) - np.tanh(s.beta * p.d / 2)) / 2,
    "aot": expected_aot,
    "aot_unpaired": expected_aot_unpaired,
    "discopop": expected_discopop,
    "sigmoid_norm": lambda p, s: -log_expit(s.beta * p.averaged),
    "dpop": lambda p, s: -log_expit(s.beta * (p.d + s.dpop_lambda * np.where(p.a < 0, p.a, 0))),
    "simpo": lambda p, s: (
        -log_expit(s.beta * (p.chosen / p.chosen_length - p.rejected / p.rejected_length) - s.gamma)
    ),
    "cpo": lambda p, s: -log_expit(s.beta * (p.chosen - p.rejected)),
    "odds_ratio": expected_odds_ratio,
}


def pairs_of(columns):
    return Pairs(*(mx.array(np.asarray(column, np.float32)) for column in columns))


def loss_of(name, columns, **changes):
    return np.array(PAIR_LOSSES[name](pairs_of(columns), ObjectiveConfig(**changes)))


def expected_of(name, columns, **changes):
    exact = Oracle(*(np.asarray(column, np.float32).astype(float) for column in columns))
    return EXPECTED[name](exact, ObjectiveConfig(**changes))


def gradients_of(name, columns, **changes):
    """Return the gradients of the summed loss with respect to the four log-probabilities."""
    chosen_settings, pairs = ObjectiveConfig(**changes), pairs_of(columns)

    def total(*scores):
        return PAIR_LOSSES[name](Pairs(*scores, *pairs[4:]), chosen_settings).sum()

    return [np.array(part) for part in mx.grad(total, argnums=(0, 1, 2, 3))(*pairs[:4])]


def expected_gradients(name, columns, **changes):
    """Return central finite differences of the float64 sums over chosen and rejected."""
    columns = [np.asarray(column, np.float32).astype(float) for column in columns]
    slopes = np.zeros((2, len(columns[0])))
    step = 1e-5
    for side, place in np.ndindex(slopes.shape):
        totals = []
        for move in (step, -step):
            moved = [column.copy() for column in columns]
            moved[side][place] += move
            totals.append(EXPECTED[name](Oracle(*moved), ObjectiveConfig(**changes)))
        # Differences first: the other pairs cancel exactly instead of swamping this one.
        slopes[side, place] = (totals[0] - totals[1]).sum() / (2 * step)
    return slopes


def drawn(seed, count=40, spread=4.0):
    """Draw log-probabilities of completions of 1 to 12 tokens and of a reference nearby."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 13, (2, count)).astype(float)
    policy = -lengths * rng.uniform(0.05, 4, (2, count))
    reference = np.minimum(policy + spread * rng.standard_normal((2, count)), -0.01)
    return [*policy, *reference, *lengths]


def swapped(columns):
    return [columns[place] for place in (1, 0, 3, 2, 5, 4)]


def like_reference(columns):
    return [*columns[2:4], *columns[2:]]


def test_the_table_holds_every_pairwise_term_and_the_parts_of_the_reference_free_ones():
    assert PAIR_LOSSES.keys() == {*PAIRWISE, "simpo", "cpo", "odds_ratio"}
    assert PAIR_LOSSES.keys() - set(TERMS) == {"odds_ratio"}  # the part of `orpo`
    assert {"simpo", "cpo"} == {*REFERENCE_FREE} - {"orpo"}
    assert PAIR_LOSSES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("name", NAMES)
@FEW
@given(batch=BATCH)
def test_values_equal_another_form_in_float64(name, changes, batch):
    columns = list(zip(*batch, strict=True))
    value = loss_of(name, columns, **changes)
    assert value.dtype == np.float32
    assert value.shape == (len(batch),)
    expected = expected_of(name, columns, **changes)
    np.testing.assert_allclose(value, expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name, changes):
    columns = drawn(seed=len(name))
    ours = np.stack(gradients_of(name, columns, **changes)[:2])
    expected = expected_gradients(name, columns, **changes)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-5)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_nats_apart_values_and_gradients_are_finite_and_right(name, beta):
    far, near = -1e4, -8.0
    columns = [
        [far, near, far, near, near, near],
        [near, far, near, far, near, near],
        [near - 1, near - 1, far - 1, near - 1, near - 1, far],
        [near - 1, near - 1, near - 1, far - 1, far, near - 1],
        [20.0] * 6,
        [40.0] * 6,
    ]
    changes = {"beta": beta, "label_smoothing": 0.125}
    expected = expected_of(name, columns, **changes)
    np.testing.assert_allclose(loss_of(name, columns, **changes), expected, rtol=2e-6, atol=1e-6)
    if name not in BATCHWISE:  # equal margins: no one gradient of a sort
        ours = np.stack(gradients_of(name, columns, **changes)[:2])
        slopes = expected_gradients(name, columns, **changes)
        np.testing.assert_allclose(ours, slopes, rtol=1e-3, atol=1e-3)
    assert all(np.isfinite(part).all() for part in gradients_of(name, columns, **changes))


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        # Ratios a = 2 and b = -1, so d = 3 and beta d = 0.3; 4 and 2 tokens. Smoothing by
        # log s(-z) = log s(z) - z.
        ("sigmoid", {}, 0.554355),  # ln(1 + e^-0.3) = ln 1.740818
        ("sigmoid", {"label_smoothing": 0.25}, 0.629355),  # + 0.25 * 0.3
        ("robust", {"label_smoothing": 0.25}, 0.404355),  # - 0.25 / 0.5 * 0.3
        ("hinge", {}, 0.7),
        ("ipo", {}, 16.0),  # 2/4 + 1/2 - 5 = -4
        ("sppo_hard", {}, 25.0),  # (2 - 5)^2 + (-1 + 5)^2
        ("sigmoid_norm", {}, 0.644397),  # ln(1 + e^-0.1) = ln 1.904837
        ("dpop", {}, 0.554355),  # a > 0: no penalty
        # The policy alone: -10 and -13; by token -2.5 and -6.5.
        ("cpo", {}, 0.554355),
        ("simpo", {"beta": 0.5, "gamma": 2.0}, 0.693147),  # 0.5 * 4 - 2 = 0
    ],
)
def test_a_pair_by_hand(name, changes, expected):
    columns = [[-10.0], [-13.0], [-12.0], [-12.0], [4.0], [2.0]]
    assert loss_of(name, columns, **changes)[0] == pytest.approx(expected, abs=2e-6)


def test_odds_by_hand():
    """Chances of 1/2 and 1/5 by token are odds of 1 and 1/4: -ln(4/5) = 0.223144."""
    columns = [[3 * math.log(0.5)], [2 * math.log(0.2)], [0.0], [0.0], [3.0], [2.0]]
    assert loss_of("odds_ratio", columns)[0] == pytest.approx(0.223144, abs=1e-6)


def test_the_penalty_of_dpop_is_inside_the_sigmoid_and_weighted_with_beta():
    """a = -1, b = -3, d = 2, penalty 50 * 1: ln(1 + e^(0.1 * 48)) = 4.808196.

    Outside the sigmoid it would be ln(1 + e^-0.2) + 50 = 50.598139, with beta 5.598139, and inside
    but not weighted ln(1 + e^(50 - 0.2)) = 49.8.
    """
    columns = [[-11.0], [-13.0], [-10.0], [-10.0], [4.0], [4.0]]
    value = loss_of("dpop", columns)[0]
    assert value == pytest.approx(4.808196, abs=1e-5)
    assert min(abs(value - wrong) for wrong in (50.598139, 5.598139, 49.8)) > 0.5
    # The slope is -beta s(4.8) (1 + lambda); outside it would be -beta s(-0.2) - lambda = -50.05.
    assert gradients_of("dpop", columns)[0][0] == pytest.approx(-5.058370, abs=1e-5)


def test_dpop_without_a_penalty_is_dpo():
    columns = drawn(1)
    value = loss_of("dpop", columns, dpop_lambda=0.0)
    np.testing.assert_array_equal(value, loss_of("sigmoid", columns))
    likelier = np.array(columns[0]) > np.array(columns[2])
    assert 0 < likelier.sum() < len(likelier)
    same = loss_of("dpop", columns) == loss_of("sigmoid", columns)
    np.testing.assert_array_equal(same, likelier)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_a_policy_like_the_reference_has_known_losses(beta):
    ln2, e = math.log(2), 0.001
    known = {
        "sigmoid": ln2,
        "robust": ln2,
        "hinge": 1,
        "ipo": 1 / (4 * beta**2),
        "exo_pair": 0.5 * math.log(0.25 / (e * (1 - e))),
        "nca_pair": 2 * ln2,
        "bco_pair": 2 * ln2,
        "sppo_hard": 1 / (2 * beta**2),
        "apo_zero": 1,
        "apo_down": 1,
        "aot": ln2,
        "discopop": 0.5 * ln2 + 0.5,
        "sigmoid_norm": ln2,
        "dpop": ln2,
    }
    columns = like_reference(drawn(2))
    for name, expected in known.items():
        value = loss_of(name, columns, beta=beta)
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)
    assert known.keys() == {*PAIRWISE} - {"aot_unpaired"}
    np.testing.assert_allclose(loss_of("aot_unpaired", columns, beta=beta), ln2, rtol=1e-6)


def test_where_the_first_step_pushes():
    """Slopes by (beta a, beta b) at the start: only some losses raise what is chosen."""
    columns = like_reference(drawn(3, count=1))
    slopes = {
        "sigmoid": (-0.5, 0.5),
        "dpop": (-0.5, 0.5),  # no penalty yet
        "hinge": (-1, 1),
        "nca_pair": (-0.25, 0.25),
        "bco_pair": (-0.5, 0.5),
        "apo_zero": (-0.25, 0.25),
        "apo_down": (0.0, 0.25),
    }
    for name, expected in slopes.items():
        chosen, rejected = gradients_of(name, columns, beta=2.0)[:2]
        assert (chosen[0] / 2, rejected[0] / 2) == pytest.approx(expected, abs=1e-6), name
    columns[1] = columns[1] - 5.0
    assert gradients_of("apo_down", columns, beta=2.0)[0][0] > 0.4  # beta (0.25 - s'(10))


@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_without_smoothing_sigmoid_is_plackett_luce_of_two(beta):
    columns = drawn(4)
    policy, reference = (mx.array(np.stack(columns[at : at + 2], axis=1)) for at in (0, 2))
    expected = plackett_luce_nll(implicit_rewards(policy, reference, beta))
    value = loss_of("sigmoid", columns, beta=beta)
    np.testing.assert_allclose(value, np.array(expected), rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("name", ["sigmoid", "robust", "sigmoid_norm", *WITHOUT_REFERENCE])
def test_a_swap_turns_the_margin_round(name):
    """-log s(-z) = -log s(z) + z: once apart by z, of which the averaged losses see less."""
    columns = drawn(5)
    exact = Oracle(*columns)
    by_token = exact.chosen / exact.chosen_length, exact.rejected / exact.rejected_length
    margins = {
        "sigmoid_norm": 0.1 * exact.averaged,
        "simpo": 0.1 * (by_token[0] - by_token[1]),
        "cpo": 0.1 * (exact.chosen - exact.rejected),
        "odds_ratio": logit(np.exp(by_token[0])) - logit(np.exp(by_token[1])),
    }
    margin = margins.get(name, 0.1 * exact.d)
    change = loss_of(name, swapped(columns), gamma=0.0) - loss_of(name, columns, gamma=0.0)
    np.testing.assert_allclose(change, margin, atol=2e-5)


def test_smoothing_near_a_half_no_longer_knows_which_was_chosen():
    columns, half = drawn(6), {"label_smoothing": 0.4999999}
    for name in ("sigmoid", "exo_pair"):
        straight = loss_of(name, columns, **half)
        np.testing.assert_allclose(straight, loss_of(name, swapped(columns), **half), atol=2e-6)
        assert np.ptp(straight) > 0.1


@pytest.mark.parametrize("smoothing", [0.1, 0.3, 0.45])
def test_robust_averages_to_dpo_over_flipped_labels(smoothing):
    columns, noise = drawn(7), {"label_smoothing": smoothing, "beta": 2.0}
    kept = loss_of("robust", columns, **noise)
    flipped = loss_of("robust", swapped(columns), **noise)
    mean = (1 - smoothing) * kept + smoothing * flipped
    np.testing.assert_allclose(mean, loss_of("sigmoid", columns, beta=2.0), rtol=1e-5, atol=1e-5)
    assert kept.min() < 0


def test_exo_is_a_divergence_with_its_minimum_where_the_policy_is_as_sure_as_the_label():
    smoothing, beta = 0.2, 0.5
    best = math.log(0.8 / 0.2) / beta
    columns = [[best - 9.0, best - 8.0, best - 10.0], *[[-9.0] * 3] * 3, *[[5.0] * 3] * 2]
    at_best, above, below = loss_of("exo_pair", columns, beta=beta, label_smoothing=smoothing)
    assert at_best == pytest.approx(0, abs=1e-7)
    assert min(above, below) > 0.01


def test_no_smoothing_means_a_thousandth_for_exo():
    columns = drawn(8)
    thousandth = loss_of("exo_pair", columns, label_smoothing=0.001)
    np.testing.assert_array_equal(loss_of("exo_pair", columns), thousandth)


@pytest.mark.parametrize("name", FALLING)
@pytest.mark.parametrize("rise", [0.25, 4.0])
def test_a_likelier_chosen_completion_lowers_the_loss(name, rise):
    columns = drawn(9, spread=1.0)
    columns[0] = columns[0] - rise
    higher = [columns[0] + rise, *columns[1:]]
    before, after = loss_of(name, columns), loss_of(name, higher)
    assert (after < before).all()


@pytest.mark.parametrize("name", sorted({*NAMES} - {*WITHOUT_REFERENCE}))
def test_no_gradient_reaches_the_reference(name):
    chosen, rejected, *reference = gradients_of(name, drawn(10), label_smoothing=0.1)
    assert min(np.abs(chosen).max(), np.abs(rejected).max()) > 1e-3
    np.testing.assert_array_equal(reference, np.zeros((2, 40)))


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_reference_free_losses_ignore_the_reference(name):
    columns = drawn(11)
    without = [*columns[:2], *[np.zeros(40)] * 2, *columns[4:]]
    np.testing.assert_array_equal(loss_of(name, columns), loss_of(name, without))


@pytest.mark.parametrize("name", PAIR_BY_PAIR)
def test_every_pair_stands_for_itself(name):
    columns = drawn(12, count=5)
    alone = [loss_of(name, [column[[place]] for column in columns])[0] for place in range(5)]
    np.testing.assert_allclose(loss_of(name, columns), alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(BATCHWISE))
def test_batchwise_losses_couple_the_pairs_of_a_batch_whatever_their_order(name):
    columns = drawn(13, count=6)
    order = np.random.default_rng(0).permutation(6)
    shuffled = [column[order] for column in columns]
    np.testing.assert_array_equal(loss_of(name, columns), loss_of(name, shuffled))
    alone = [loss_of(name, [column[[place]] for column in columns])[0] for place in range(6)]
    np.testing.assert_allclose(alone, loss_of("sigmoid", columns), rtol=1e-5)
    assert np.abs(np.sort(alone) - np.sort(loss_of(name, columns))).max() > 0.01


def test_quantiles_by_hand():
    """Sorted policy margins 1, 3 against sorted reference margins 0, 5: gaps of 1 and -2."""
    columns = [[-1.0, -1.0], [-4.0, -2.0], [-1.0, -6.0], [-1.0, -11.0], [2.0, 2.0], [2.0, 2.0]]
    expected = [math.log1p(math.exp(-1)), math.log1p(math.exp(2))]
    np.testing.assert_allclose(loss_of("aot", columns, beta=1.0), expected, rtol=1e-6)
    # Ratios: chosen 0 and 5, rejected -3 and 9: gaps of 3 and -4.
    expected = [math.log1p(math.exp(-3)), math.log1p(math.exp(4))]
    np.testing.assert_allclose(loss_of("aot_unpaired", columns, beta=1.0), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["ipo", "sigmoid_norm", "simpo", "odds_ratio"])
def test_averaging_losses_see_tokens_and_not_totals(name):
    columns = drawn(14)
    longer = [*(3 * column for column in columns[:4]), *(3 * column for column in columns[4:])]
    np.testing.assert_allclose(loss_of(name, columns), loss_of(name, longer), rtol=1e-5)
    summing = [*columns[:4], np.ones(40), np.ones(40)]
    if name == "sigmoid_norm":
        np.testing.assert_array_equal(loss_of(name, summing), loss_of("sigmoid", summing))
    if name == "simpo":
        value = loss_of(name, summing, gamma=0.0)
        np.testing.assert_array_equal(value, loss_of("cpo", summing))


@pytest.mark.parametrize("mean", [-1e-4, -1e-6, -1e-9, 0.0, 1e-7])
def test_odds_of_completions_the_policy_is_sure_of_stay_finite(mean):
    """Up to 1 - p = 1e-6 the odds are right; beyond they stand still, the slope does not vanish."""
    columns = [[mean], [-0.5], [0.0], [0.0], [1.0], [1.0]]
    odds = math.log(math.exp(mean) / -math.expm1(min(mean, -1e-6))) - logit(math.exp(-0.5))
    expected = math.log1p(math.exp(odds))
    sure_is_rejected = loss_of("odds_ratio", swapped(columns))[0]
    assert sure_is_rejected == pytest.approx(expected, rel=1e-5)
    chosen, rejected = gradients_of("odds_ratio", swapped(columns))[:2]
    assert np.isfinite([chosen, rejected]).all()
    assert rejected[0] > 0.99
    assert np.isfinite(gradients_of("odds_ratio", columns)[0]).all()
