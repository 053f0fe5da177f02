import math
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.config import TrainConfig
from sempa_mlx.training.schedule import learning_rate, plan_steps

FEW = settings(max_examples=60, deadline=None, derandomize=True)


def rates(total, **changes):
    config = TrainConfig(learning_rate=1.0, **changes)
    return [learning_rate(step, total, config) for step in range(1, total + 1)]


def test_cosine_by_hand():
    """12 steps, 2 of them warm up: halves, then 0.5 (1 + cos(pi p)) at p = 0, 0.1, ..., 0.9."""
    found = rates(12, warmup=1 / 6, schedule="cosine")
    assert found[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert found[7] == pytest.approx(0.5)  # step 8: half way through the ten that are left
    assert found[11] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))  # 0.0245


def test_linear_by_hand():
    found = rates(12, warmup=1 / 6, schedule="linear")
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_constant_by_hand():
    assert rates(4, warmup=0.5, schedule="constant") == pytest.approx([0.5, 1.0, 1.0, 1.0])


def test_a_part_of_a_warm_up_step_counts_whole():
    """5 % of 30 steps is 1.5: two steps warm up."""
    assert rates(30, warmup=0.05, schedule="constant")[:3] == pytest.approx([0.5, 1.0, 1.0])


def test_without_warm_up_the_first_step_has_the_peak():
    assert rates(5, warmup=0.0, schedule="linear") == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_the_rate_is_in_units_of_the_peak():
    config = TrainConfig(learning_rate=3e-4, warmup=0.25, schedule="linear")
    assert learning_rate(1, 8, config) == pytest.approx(1.5e-4)


@FEW
@given(
    total=st.integers(1, 60),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_rates_rise_to_the_peak_fall_after_it_and_are_never_zero(total, warmup, schedule):
    found = rates(total, warmup=warmup, schedule=schedule)
    peak = found.index(max(found))
    assert found[peak] == pytest.approx(1.0)
    assert all(0 < rate <= 1 + 1e-12 for rate in found)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_every_epoch_uses_each_row_once_and_ends_in_a_partial_batch():
    plan = plan_steps(range(1, 10 + 1), TrainConfig(batch_size=4, epochs=3, seed=5))
    assert [len(batch) for batch in plan] == [4, 4, 2] * 3
    for epoch in range(3):
        rows = chain.from_iterable(plan[epoch * 3 : epoch * 3 + 3])
        assert sorted(rows) == list(range(10))


def test_iterations_cap_the_epochs_and_never_stretch_them():
    whole = plan_steps(range(1, 10 + 1), TrainConfig(batch_size=4, epochs=2))
    assert plan_steps(range(1, 10 + 1), TrainConfig(batch_size=4, epochs=2, iters=4)) == whole[:4]
    assert plan_steps(range(1, 10 + 1), TrainConfig(batch_size=4, epochs=2, iters=100)) == whole


def test_a_batch_larger_than_the_data_is_one_step_an_epoch():
    plan = plan_steps(range(1, 3 + 1), TrainConfig(batch_size=32, epochs=2))
    assert [sorted(batch) for batch in plan] == [[0, 1, 2], [0, 1, 2]]


def test_the_order_depends_on_seed_and_epoch_alone():
    def plan(**changes):
        return plan_steps(range(1, 64 + 1), TrainConfig(batch_size=16, **changes))

    assert plan(seed=1, epochs=2) == plan(seed=1, epochs=2, learning_rate=1.0, clip=0.5)
    assert plan(seed=1, epochs=2)[:4] == plan(seed=1)
    assert plan(seed=1, epochs=2)[4:] != plan(seed=1)
    assert plan(seed=1) != plan(seed=2)
    assert list(chain.from_iterable(plan(seed=1))) != list(range(64))
