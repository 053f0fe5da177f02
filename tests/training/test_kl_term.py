"""The KL penalty against distributions written out in numpy."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from scipy.special import log_softmax

from sempa_mlx.config import LoraConfig
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.forward import final_hidden
from sempa_mlx.model.lora import adapter_weights, attach, dialled
from sempa_mlx.model.scoring import choose_scoring
from sempa_mlx.training.kl_term import TEXT_ROW, completion_kl, text_kl
from sempa_mlx.training.memory import estimate_peak_gb
from sempa_mlx.world import World
from tests.tiny import VOCABULARY, make_rows, move_adapter, tiny_model

RANDOM = np.random.default_rng(0)
TEXT = [int(token) for token in RANDOM.integers(0, VOCABULARY, 3 * TEXT_ROW + 5)]
ROWS = [
    TokenRow((1, 2, 3, 4), ((5, 6, 7), (8, 9))),
    TokenRow((1, 2, 3, 9, 9), ((7, 7, 7, 7), (3,))),
    TokenRow((1, 2, 3, 5), ((1, 2), (2, 1))),
]


@pytest.fixture
def model():
    """A tiny model whose adapter has moved."""
    model = tiny_model("llama", num_hidden_layers=1)
    attach(model, LoraConfig(rank=4, alpha=8.0), seed=1)
    move_adapter(model, 0.3)
    return model


def divergences(model, tokens):
    """KL(base || model) after every token of a sequence, in nats."""
    here = log_softmax(np.array(model(mx.array([tokens]))[0], np.float64), axis=-1)
    with dialled(model, 0.0):
        base = log_softmax(np.array(model(mx.array([tokens]))[0], np.float64), axis=-1)
    return (np.exp(base) * (base - here)).sum(axis=-1)


def pieces():
    return [TEXT[start : start + TEXT_ROW] for start in range(0, 3 * TEXT_ROW, TEXT_ROW)]


@pytest.mark.parametrize("batch_tokens", [64, 100_000])
def test_on_text_it_is_the_mean_over_tokens(model, batch_tokens):
    term = text_kl(model, 0.5, TEXT, step_tokens=10_000, batch_tokens=batch_tokens)
    expected = 0.5 * np.concatenate([divergences(model, piece) for piece in pieces()]).mean()
    found = term.contribution([], World(), 3)
    assert found.loss == pytest.approx(expected, rel=1e-4)
    assert found.loss > 0.001
    assert found.tokens == 3 * TEXT_ROW


def test_every_step_draws_its_pieces_anew_and_by_the_seed_alone(model):
    term = text_kl(model, 1.0, TEXT, step_tokens=10, batch_tokens=64)
    each = [divergences(model, piece).mean() for piece in pieces()]
    losses = [term.contribution([], World(), seed).loss for seed in range(12)]
    assert losses == [term.contribution([], World(), seed).loss for seed in range(12)]
    drawn = {int(np.argmin(np.abs(np.array(each) - loss))) for loss in losses}
    assert drawn == {0, 1, 2}
    for loss in losses:
        assert min(abs(loss - value) for value in each) < 1e-5


def test_on_completions_it_is_the_mean_over_their_tokens(model):
    term = completion_kl(model, 2.0, ROWS, choose_scoring(model, ROWS, mx.float32), 12)
    found = term.contribution([0, 2], World(), 0)
    expected = []
    for row in (ROWS[0], ROWS[2]):
        for completion in row.completions:
            after = divergences(model, [*row.prompt, *completion])
            expected += list(after[len(row.prompt) - 1 : -1])
    assert found.loss == pytest.approx(2.0 * np.mean(expected), rel=1e-4)


def test_the_gradient_is_that_of_the_loss(model):
    """Moving a little against it lowers the loss by its squared length."""
    term = text_kl(model, 1.0, TEXT, step_tokens=10_000, batch_tokens=64)
    found = term.contribution([], World(), 0)
    gradients = dict(tree_flatten(found.gradients))
    squared = sum(float((gradient**2).sum()) for gradient in gradients.values())
    step = 0.003 / squared
    weights = adapter_weights(model)
    model.load_weights(
        [(name, value - step * gradients[name]) for name, value in weights.items()], strict=False
    )
    fallen = found.loss - term.contribution([], World(), 0).loss
    assert fallen == pytest.approx(0.003, rel=0.1)


def test_it_is_zero_while_the_adapter_does_nothing():
    model = tiny_model("llama", num_hidden_layers=1)
    attach(model, LoraConfig(rank=4, alpha=8.0), seed=1)
    term = text_kl(model, 1.0, TEXT, step_tokens=10_000, batch_tokens=64)
    found = term.contribution([], World(), 0)
    assert found.loss == pytest.approx(0, abs=1e-6)


def test_two_processes_share_the_pieces(model):
    """Each divides by the tokens of both; here the other's are known beforehand."""

    class Half(World):
        def total_of(self, values):
            return [3.0 * TEXT_ROW]

    term = text_kl(model, 1.0, TEXT, step_tokens=10_000, batch_tokens=64)
    whole = term.contribution([], World(), 5).loss
    halves = [term.contribution([], Half(rank, 2), 5).loss for rank in (0, 1)]
    assert sum(halves) == pytest.approx(whole, rel=1e-5)
    assert min(halves) > 0


def test_what_a_gpu_pads_with_is_not_held(model):
    short = TEXT[:41]
    plain = text_kl(model, 1.0, short, step_tokens=64, batch_tokens=64)

    def padded(pieces):
        return final_hidden(model, [[*piece, *[0] * 7] for piece in pieces])

    found = text_kl(model, 1.0, short, 64, 64, padded).contribution([], World(), 0)
    assert found.tokens == 41
    assert found.loss == pytest.approx(plain.contribution([], World(), 0).loss, rel=1e-5)


@pytest.mark.parametrize("on_text", [True, False])
def test_masks_of_dropout_are_the_seeds(on_text):
    model = tiny_model("llama", num_hidden_layers=1)
    attach(model, LoraConfig(rank=4, alpha=8.0, dropout=0.5), seed=1)
    move_adapter(model, 0.3)
    model.train()
    if on_text:
        term = text_kl(model, 1.0, TEXT, step_tokens=10_000, batch_tokens=64)
    else:
        term = completion_kl(model, 1.0, ROWS, choose_scoring(model, ROWS, mx.float32), 12)
    losses = [term.contribution([0, 1, 2], World(), seed).loss for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("on_text", [True, False])
def test_its_memory_is_expected(on_text):
    rows = make_rows(count=64)
    model = tiny_model("llama", vocab_size=2048)
    attach(model, LoraConfig(rank=4), seed=1)
    if on_text:
        term = text_kl(model, 1.0, [*TEXT] * 20, step_tokens=4096, batch_tokens=2048)
    else:
        scorer = choose_scoring(model, rows, mx.float32)
        term = completion_kl(model, 1.0, rows, scorer, 100_000)
    batches = [range(4), range(64)]
    model.train()
    expected = estimate_peak_gb([term], batches)
    mx.clear_cache()
    mx.reset_peak_memory()
    for batch in batches:
        term.contribution(batch, World(), 0)
    assert expected == pytest.approx(mx.get_peak_memory() / 1e9, rel=0.25)
