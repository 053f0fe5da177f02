"""Gradients over micro-batches, also where the loss couples the pairs of a batch."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from sempa_mlx.config import LoraConfig, ObjectiveConfig, TrainConfig
from sempa_mlx.config_terms import SENTENCE_TERMS, TERMS
from sempa_mlx.model.lora import adapter_weights, attach
from sempa_mlx.model.scoring import choose_scoring
from sempa_mlx.training.optimizer import AdapterOptimizer
from sempa_mlx.training.preference_term import PreferenceTerm
from sempa_mlx.training.reference import Reference
from sempa_mlx.world import World
from tests.arrays import as_numpy, assert_close, assert_equal
from tests.tiny import make_rows, move_adapter, tiny_model

LOSSES = [name for name in TERMS if name not in (*SENTENCE_TERMS, "kl")]


def made(loss, *, tokens=100_000, noise=0.0, candidates=None, count=8, **settings):
    """A tiny model with an adapter that has moved by `noise`, and the term on it."""
    ranked = any(word in loss for word in ("listwise", "softmax"))
    rows = make_rows(count, candidates or (3 if ranked else 2), seed=4)
    model = tiny_model("llama", num_hidden_layers=1)
    attach(model, LoraConfig(rank=4, alpha=8.0), seed=1)
    scorer = choose_scoring(model, rows, mx.float32)
    move_adapter(model, noise)
    objective = ObjectiveConfig(loss=loss, **settings)
    reference = Reference(model, scorer, rows)
    return model, PreferenceTerm(model, rows, scorer, reference, objective, tokens)


@pytest.mark.parametrize("loss", ["sigmoid + 0.3 sft", "aot", "aot_unpaired + ipo", "listwise"])
def test_how_a_batch_is_cut_does_not_change_its_gradient(loss):
    _, whole = made(loss, noise=0.3)
    _, cut = made(loss, noise=0.3, tokens=64)
    expected = whole.contribution(range(8), World(), 0)
    found = cut.contribution(range(8), World(), 0)
    assert len(cut._micro_batches(range(8))) > 2
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_allclose(sorted(found.logps), sorted(expected.logps), atol=1e-4)
    assert_close(found.gradients, expected.gradients, share=1e-4)


def test_sorting_inside_micro_batches_would_be_another_loss():
    """What the two passes of `aot` are for."""
    _, term = made("aot", noise=0.3)
    whole = term.contribution(range(8), World(), 0).loss
    halves = [term.contribution(part, World(), 0).loss for part in (range(4), range(4, 8))]
    assert abs(np.mean(halves) - whole) > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_twenty_steps_lower_every_loss(loss):
    model, term = made(loss, beta=0.5, gamma=0.5)
    optimizer = AdapterOptimizer(TrainConfig(learning_rate=0.005))
    losses = []
    for step in range(21):
        found = term.contribution(range(8), World(), step)
        losses.append(found.loss)
        optimizer.update(model, found.gradients, 0.005)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.05 * abs(losses[0])
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "aot", "0.5 sigmoid + sft"])
def test_the_expected_loss_is_that_of_an_adapter_that_does_nothing(loss):
    _, fresh = made(loss, tokens=64)
    found = fresh.contribution(range(8), World(), 0)
    assert found.expected_loss == pytest.approx(found.loss, abs=1e-4)
    _, moved = made(loss, tokens=64, noise=0.3)
    found = moved.contribution(range(8), World(), 0)
    assert abs(found.expected_loss - found.loss) > 0.01


def test_without_a_reference_nothing_is_expected_and_none_is_computed():
    _, term = made("simpo + sft")
    found = term.contribution(range(8), World(), 0)
    assert found.expected_loss is None
    assert term._reference.num_computed == 0
    rewards, logps = np.array(found.rewards), np.array(found.logps)
    np.testing.assert_allclose(rewards, 0.1 * logps, rtol=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "aot + sft"])
def test_measuring_gives_the_loss_without_training(loss):
    model, term = made(loss, tokens=64, noise=0.3)
    before = as_numpy(adapter_weights(model))
    found = term.measure()
    contribution = term.contribution(range(8), World(), 0)
    assert found["eval/loss"] == pytest.approx(contribution.loss, rel=1e-5)
    rewards = np.array(contribution.rewards)
    assert found["eval/accuracies"] == pytest.approx((rewards[:, 0] > rewards[:, 1]).mean())
    assert found["eval/accuracies"] > 0
    assert term.measure(is_base=True)["eval/accuracies"] == 0, "rounding prefers nothing"
    assert_equal(adapter_weights(model), before)


def test_processes_share_a_batch():
    _, term = made("sigmoid + 0.5 sft", noise=0.3)
    whole = term.contribution(range(7), World(), 0)
    parts = [term.contribution(range(7), World(rank, 2), 0) for rank in (0, 1)]
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss, rel=1e-5)
    assert [len(part.rewards) for part in parts] == [4, 3]
    total = tree_map(mx.add, *(part.gradients for part in parts))
    assert_close(total, whole.gradients, share=1e-4)


def test_a_process_may_have_nothing_to_do():
    for loss in ("sigmoid", "aot"):
        _, term = made(loss)
        found = term.contribution([3], World(1, 2), 0)
        assert (found.loss, found.gradients, found.rewards) == (0.0, {}, [])


def test_the_largest_pass_is_found():
    _, term = made("sigmoid", tokens=64)
    found = term.largest_pass([range(4), range(4, 8)])
    tokens = [term._scorer.own_tokens(term._rows[index]) for index in found]
    assert tokens == sorted(tokens)
    sizes = []
    for batch in (range(4), range(4, 8)):
        for members in term._micro_batches(batch):
            longest = max(term._scorer.own_tokens(term._rows[index]) for index in members)
            sizes.append(len(members) * longest)
    assert len(found) * tokens[-1] == max(sizes)
