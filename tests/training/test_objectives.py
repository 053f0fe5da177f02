import itertools
import math
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.training.objectives import contrastive_nll, implicit_rewards, plackett_luce_nll

FEW = settings(max_examples=60, deadline=None, derandomize=True)
SCORE = st.floats(-20, 20, width=32)
ROWS = st.integers(2, 5).flatmap(
    lambda k: st.lists(st.lists(SCORE, min_size=k, max_size=k), min_size=1, max_size=4)
)


def nll(rows, depth=None):
    return np.array(plackett_luce_nll(mx.array(rows), depth)).tolist()


def oracle(scores, depth=None):
    """Minus the logarithm of the product of chances of taking the best of what is left."""
    worths = [math.exp(score) for score in scores]
    chance = 1.0
    for place in range(len(scores) - 1 if depth is None else depth):
        chance *= worths[place] / sum(worths[place:])
    return -math.log(chance)


def test_a_dpo_pair_by_hand():
    """Redo it with a pocket calculator.

    log pi - log pi_ref is 2 for the chosen and -1 for the rejected text; beta is 0.1.
    Rewards: 0.1 * 2 = 0.2 and 0.1 * -1 = -0.1; margin 0.3; sigmoid(0.3) = 1 / (1 + exp(-0.3)) =
    1 / (1 + 0.740818) = 0.574443; -ln 0.574443 = 0.554355.
    """
    policy, reference = mx.array([[-10.0, -13.0]]), mx.array([[-12.0, -12.0]])
    rewards = implicit_rewards(policy, reference, beta=0.1)
    np.testing.assert_allclose(np.array(rewards), [[0.2, -0.1]], atol=1e-6)
    assert plackett_luce_nll(rewards).item() == pytest.approx(0.554355, abs=1e-6)


def test_a_ranking_of_three_by_hand():
    """Worths exp(s) of 4, 2, 1: 4/7 for the first place, then 2/3: -ln(8/21) = 0.965081."""
    scores = [math.log(4), math.log(2), 0.0]
    assert nll([scores])[0] == pytest.approx(0.965081, abs=1e-6)
    assert nll([scores], depth=1)[0] == pytest.approx(-math.log(4 / 7), abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_equal_scores_give_the_logarithm_of_the_number_of_orders(count):
    rows = [[1.7] * count, [-30.0] * count]
    assert nll(rows) == pytest.approx([math.log(math.factorial(count))] * 2, abs=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_one_place_among_equal_scores_is_a_draw_among_all(count):
    assert nll([[0.0] * count], depth=1)[0] == pytest.approx(math.log(count), abs=1e-6)


@FEW
@given(rows=ROWS, data=st.data())
def test_values_equal_explicit_products(rows, data):
    depth = data.draw(st.none() | st.integers(1, len(rows[0]) - 1))
    expected = [oracle(row, depth) for row in rows]
    np.testing.assert_allclose(nll(rows, depth), expected, rtol=2e-5, atol=2e-5)


def test_the_chances_of_all_orders_add_up_to_one():
    scores = [0.3, -1.2, 0.9, 2.0]
    orders = list(itertools.permutations(scores))
    assert sum(math.exp(-value) for value in nll(orders)) == pytest.approx(1, abs=1e-5)


def test_the_last_place_decides_nothing():
    """K - 1 places fix the order: the factor of the last one is 1."""
    scores = [[0.4, -0.2, 1.1]]
    assert nll(scores, depth=3) == pytest.approx(nll(scores, depth=2), abs=1e-6)


def test_every_row_stands_for_itself():
    first, second = [0.1, 0.7, -2.0], [5.0, -1.0, 0.5]
    assert nll([first, second]) == pytest.approx([*nll([first]), *nll([second])], abs=1e-6)


@FEW
@given(rows=ROWS, shift=st.floats(-5, 5, width=32))
def test_a_shift_of_all_scores_changes_nothing(rows, shift):
    moved = [[score + shift for score in row] for row in rows]
    np.testing.assert_allclose(nll(moved), nll(rows), rtol=1e-4, atol=1e-4)


@FEW
@given(chosen=SCORE, rejected=SCORE)
def test_swapping_a_pair_turns_the_margin_round(chosen, rejected):
    """-log sigmoid(-m) - -log sigmoid(m) = m."""
    straight, swapped = nll([[chosen, rejected], [rejected, chosen]])
    assert swapped - straight == pytest.approx(chosen - rejected, abs=1e-4)


@FEW
@given(margin=st.floats(-15, 15, width=32))
def test_the_gradient_of_a_pair_is_closed_form(margin):
    """d/ds_chosen = -sigmoid(-margin), d/ds_rejected = +sigmoid(-margin)."""
    grad = mx.grad(lambda scores: plackett_luce_nll(scores).sum())(mx.array([[margin, 0.0]]))
    expected = 1 / (1 + math.exp(margin))
    np.testing.assert_allclose(np.array(grad), [[-expected, expected]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("depth", [None, 1, 2])
def test_the_gradient_equals_finite_differences(depth):
    scores = np.array([[0.3, -0.8, 1.1, 0.2], [2.0, 0.1, -1.0, 0.4]])
    grad = mx.grad(lambda values: plackett_luce_nll(values, depth).sum())(mx.array(scores))
    numeric = np.zeros_like(scores)
    step = 1e-5
    for place in np.ndindex(scores.shape):
        up, down = scores.copy(), scores.copy()
        up[place] += step
        down[place] -= step
        total_up = sum(oracle(row, depth) for row in up)
        total_down = sum(oracle(row, depth) for row in down)
        numeric[place] = (total_up - total_down) / (2 * step)
    np.testing.assert_allclose(np.array(grad), numeric, atol=1e-5)


@pytest.mark.parametrize("row", [[1e4, -1e4], [-1e4, 1e4], [3e4, 0.0, -3e4], [-1e30, 1e30]])
def test_extreme_scores_stay_finite(row):
    value, grad = mx.value_and_grad(lambda scores: plackett_luce_nll(scores).sum())(mx.array([row]))
    assert math.isfinite(value.item())
    assert value.item() >= 0
    assert np.isfinite(np.array(grad)).all()


def test_no_gradient_reaches_the_reference():
    policy, reference = mx.array([[-3.0, -4.0]]), mx.array([[-3.5, -3.5]])

    def loss(policy, reference):
        return plackett_luce_nll(implicit_rewards(policy, reference, 0.5)).sum()

    of_policy, of_reference = mx.grad(loss, argnums=(0, 1))(policy, reference)
    assert np.abs(np.array(of_policy)).min() > 0.1
    np.testing.assert_array_equal(np.array(of_reference), np.zeros((1, 2)))


@FEW
@given(st.integers(1, 4), st.integers(1, 3), st.data())
def test_a_contrast_is_with_all_that_is_neither_its_own_nor_taken_out(anchors, candidates, data):
    shape = (anchors, anchors * candidates)
    cells = shape[0] * shape[1]
    draw = partial(st.lists, min_size=cells, max_size=cells)
    scores = np.array(data.draw(draw(SCORE)), dtype=np.float32).reshape(shape)
    out = np.array(data.draw(draw(st.booleans()))).reshape(shape)
    expected = []
    for row, own in enumerate(range(0, shape[1], candidates)):
        others = [j for j in range(shape[1]) if j != own and not out[row, j]]
        expected.append(oracle([scores[row, own], *scores[row, others]], depth=1))
    found = contrastive_nll(mx.array(scores), candidates, mx.array(out))
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5, atol=1e-5)
