import functools
import gc
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from sempa_mlx.config import LoraConfig
from sempa_mlx.errors import UsageError
from sempa_mlx.model.checkpointed import check_gradients, checkpointed
from sempa_mlx.model.cpu_functions import use_fast_functions
from sempa_mlx.model.forward import BranchCache
from sempa_mlx.model.lora import attach
from sempa_mlx.model.scoring import Scorer, choose_scoring, score_states
from tests.model.test_forward import (
    CASES,
    gradients,
    mask_rank,
    random_rows,
    shared_of,
    with_adapter,
)
from tests.tiny import MISFITS, SHARING, tiny_model

adapted = functools.cache(with_adapter)


def scorers(kind, case):
    """All ways to score a case on a model."""
    plain = Scorer(shared=0, mask_rank=None)
    return [plain] if kind in MISFITS else [plain, Scorer(shared_of(case), mask_rank(kind))]


def relative_errors(found, expected):
    assert found.keys() == expected.keys()
    return {
        name: (mx.linalg.norm(found[name] - value) / mx.linalg.norm(value)).item()
        for name, value in expected.items()
    }


# Gradients


@pytest.mark.parametrize("case", ["two", "three", "one-row"])
@pytest.mark.parametrize("kind", [*SHARING, *MISFITS])
def test_gradients_are_those_of_the_usual_way(kind, case):
    model, rows = adapted(kind), CASES[case]
    for scorer in scorers(kind, case):
        saving = replace(scorer, checkpoint=True)
        expected = gradients(model, lambda m, scorer=scorer: scorer(m, rows).sums)
        found = gradients(model, lambda m, saving=saving: saving(m, rows).sums)
        assert min(mx.linalg.norm(value).item() for value in expected.values()) > 1e-3
        errors = relative_errors(found, expected)
        assert max(errors.values()) <= 1e-5, (scorer.path, max(errors, key=errors.get))


def test_keys_and_values_that_blocks_merely_read_would_give_other_gradients(monkeypatch):
    """What the arguments are for: a past that is captured gets no gradient."""
    model, rows = adapted("llama"), CASES["two"]
    scorer = Scorer(4, mask_rank("llama"))
    expected = gradients(model, lambda m: scorer(m, rows).sums)
    after = BranchCache.after

    def capture(cache, past):
        twin = after(cache, past)
        twin.captured = getattr(cache, "captured", cache.past)
        if past:
            twin.past = twin.captured
        return twin

    monkeypatch.setattr(BranchCache, "after", capture)
    found = gradients(model, lambda m: replace(scorer, checkpoint=True)(m, rows).sums)
    errors = relative_errors(found, expected)
    assert errors["model.layers.0.self_attn.v_proj.lora_a"] > 1e-2


@pytest.mark.parametrize("path", [0, 1], ids=["plain", "shared"])
def test_scores_are_the_same_bit_for_bit(path):
    model, scorer = adapted("gemma2"), scorers("gemma2", "three")[path]
    usual, saved = (s(model, CASES["three"]) for s in (scorer, replace(scorer, checkpoint=True)))
    np.testing.assert_array_equal(np.array(saved.sums), np.array(usual.sums))
    np.testing.assert_array_equal(np.array(saved.tails), np.array(usual.tails))


def test_training_steps_follow_the_same_weights():
    """After a step the blocks must hold the weights of the optimizer, not those of a trace."""
    ends = []
    for checkpoint in (False, True):
        model = with_adapter("llama")
        scorer = Scorer(4, mask_rank("llama"), checkpoint)
        step = nn.value_and_grad(model, lambda m, s=scorer: s(m, CASES["two"]).sums.sum())
        optimizer = optim.SGD(learning_rate=1e-3)
        for _ in range(3):
            loss, grads = step(model)
            optimizer.update(model, grads)
            mx.eval(loss, model.parameters())
        ends.append((loss.item(), dict(tree_flatten(model.trainable_parameters()))))
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-5)
    assert max(relative_errors(ends[1][1], ends[0][1]).values()) <= 1e-5


# Memory


@pytest.fixture
def on_cpu():
    """Measure where nothing but the program decides what is allocated when."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)


def peak_bytes(compute):
    """The most memory that `compute` adds while it runs."""
    mx.eval(compute())  # the first time also builds what stays
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(compute())
    return mx.get_peak_memory() - before


def training_peak(model, scorer, rows):
    def loss(model):
        return score_states(model, scorer.states(model, rows), training=True).sums.sum()

    return peak_bytes(lambda: nn.value_and_grad(model, loss)(model))


@pytest.mark.parametrize("shared", [0, 40], ids=["plain", "shared"])
def test_memory_of_a_step_falls(shared, on_cpu):
    """With the functions that a loaded model has, whichever model was loaded before."""
    model = tiny_model(num_hidden_layers=8, hidden_size=64, intermediate_size=192)
    assert use_fast_functions(model, mx.float32)
    attach(model, LoraConfig(rank=4, alpha=8.0), seed=1)
    rows = random_rows(1, 40, (40,), ((30, 28),))
    scorer = Scorer(shared, mask_rank("llama") if shared else None)
    usual = training_peak(model, scorer, rows)
    saved = training_peak(model, replace(scorer, checkpoint=True), rows)
    assert saved < 0.5 * usual, f"{saved} of {usual} bytes"


def test_the_last_level_hands_out_no_keys_and_values(monkeypatch):
    model, results = adapted("llama"), []

    def spy(run):
        def counted(*args):
            outputs = run(*args)
            results.append(len(outputs))
            return outputs

        return counted

    monkeypatch.setattr(mx, "checkpoint", spy)
    Scorer(4, mask_rank("llama"), checkpoint=True).states(model, CASES["two"])
    blocks = len(model.layers)
    # Shared prompt tokens, rest of the prompts, completions; nothing else runs without gradients.
    assert results == [3] * blocks + [3] * blocks + [1] * blocks


def test_scores_that_are_never_computed_leave_nothing_behind():
    model = adapted("llama")
    scorer = Scorer(4, mask_rank("llama"), checkpoint=True)

    def caches():
        gc.collect()
        return sum(type(thing) is BranchCache for thing in gc.get_objects())

    before = caches()
    gradients(model, lambda m: scorer(m, CASES["two"]).sums)
    scorer(model, CASES["two"])
    assert caches() == before


# The model is left as it was


def state_of(model):
    blocks = model.model["layers"]
    return blocks, list(map(id, blocks)), [value for _, value in tree_flatten(model.parameters())]


def assert_as_before(model, before):
    after = state_of(model)
    assert after[0] is before[0]
    assert after[1] == before[1]
    assert all(now is then for now, then in zip(after[2], before[2], strict=True))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # the latter's `layers` are a copy
def test_the_blocks_are_back_afterwards(kind):
    model = with_adapter(kind)
    before = state_of(model)
    with checkpointed(model):
        assert model.layers[0] is not before[0][0]
        model(mx.array([[1, 2, 3]]))
    assert_as_before(model, before)
    scorer = Scorer(2, mask_rank(kind), checkpoint=True)
    scorer(model, CASES["one-token"])
    assert_as_before(model, before)
    gradients(model, lambda m: scorer(m, CASES["one-token"]).sums)  # mlx itself changes the weights
    assert state_of(model)[:2] == before[:2]


def test_the_blocks_are_back_after_an_error_of_the_caller():
    model = with_adapter("llama")
    before = state_of(model)
    with pytest.raises(KeyError), checkpointed(model):
        raise KeyError
    assert_as_before(model, before)


def test_blocks_and_weights_are_back_after_an_error_in_a_block():
    model = with_adapter("llama")
    before = state_of(model)
    model.layers[1].mlp, mlp = Broken(), model.layers[1].mlp
    scorer = Scorer(4, mask_rank("llama"), checkpoint=True)
    with pytest.raises(ArithmeticError):
        scorer(model, CASES["two"])
    model.layers[1].mlp = mlp
    assert_as_before(model, before)


class Broken(nn.Module):
    def __call__(self, x):
        raise ArithmeticError


# Models that fit, and models that do not


class Block(nn.Module):
    """Adds a bent copy of the state, and passes other arguments to `extra`."""

    def __init__(self, key):
        super().__init__()
        self.weight = 0.5 * mx.random.normal((8, 8), key=mx.random.key(key))

    def __call__(self, x, *args, **kwargs):
        return x + mx.tanh(self.extra(x, *args, **kwargs) @ self.weight)

    def extra(self, x):
        return x


class Backbone(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.layers = blocks

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.layers:
            x = self.call(block, x)
        return x

    def call(self, block, x):
        return block(x)


class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.model = backbone

    @property
    def layers(self):
        return self.model.layers


def toy(backbone=Backbone, block=Block):
    return Model(backbone([block(key) for key in range(3)]))


def toy_gradients(model, *, checkpoint):
    tokens = mx.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])

    def loss(model):
        if not checkpoint:
            return (model.model(tokens) ** 2).sum()
        with checkpointed(model):
            return (model.model(tokens) ** 2).sum()

    return dict(tree_flatten(nn.value_and_grad(model, loss)(model)[1]))


def assert_same_gradients(model):
    expected = toy_gradients(model, checkpoint=False)
    found = toy_gradients(model, checkpoint=True)
    assert max(relative_errors(found, expected).values()) <= 1e-5


class BlockOfStreams(Block):
    def extra(self, x, first, streams, *, scale, names):
        assert names == ("a", None)
        return x * streams["gate"][0] + scale * first


class Streams(Backbone):
    """Hands every block arrays that depend on weights, in every form of argument."""

    def __init__(self, blocks):
        super().__init__(blocks)
        self.gate = mx.full((8,), 1.5)

    def __call__(self, tokens):
        self.first = [self.embed(tokens)]
        return super().__call__(tokens)

    def call(self, block, x):
        streams = {"gate": (self.gate, mx.array([True]))}
        return block(x, self.first[0], streams, scale=0.5, names=("a", None))


def test_arrays_in_any_argument_get_their_gradients():
    model = toy(Streams, BlockOfStreams)
    assert "model.gate" in toy_gradients(model, checkpoint=True)
    assert_same_gradients(model)


class Interpreting(Backbone):
    """Looks at its blocks before it runs them, as models with windows do."""

    def call(self, block, x):
        return block(x) * (2.0 if block.weight.shape == (8, 8) else 1.0)


def test_models_may_look_at_their_blocks():
    assert_same_gradients(toy(Interpreting))


def test_frozen_blocks_may_have_no_weights_to_train():
    model = toy()
    model.freeze()
    model.layers[1].unfreeze()
    assert toy_gradients(model, checkpoint=True).keys() == {"model.layers.1.weight"}
    assert_same_gradients(model)


class Pairs(Block):
    def __call__(self, x):
        return super().__call__(x), x


class TakesPairs(Backbone):
    def call(self, block, x):
        return block(x)[0]


class HandsObject(Backbone):
    def call(self, block, x):
        return block(x, object())


class HandsModule(Backbone):
    def call(self, block, x):
        return block(x, [self.embed])


class HandsTwoCaches(Backbone):
    def call(self, block, x):
        return block(x, *(BranchCache(None, layer, 1, 4) for layer in range(2)))


class TakesAnything(Block):
    def extra(self, x, *_args):
        return x


class RunsOthers(Backbone):
    def __init__(self, blocks):
        super().__init__(blocks)
        self._copy = tuple(blocks)

    def __call__(self, tokens):
        return functools.reduce(lambda x, block: block(x), self._copy, self.embed(tokens))


class Nested(Backbone):
    def __init__(self, blocks):
        super().__init__(blocks)
        del self["layers"]
        self.first, self.second = blocks[:1], blocks[1:]

    @property
    def layers(self):
        return self.first + self.second


class Noisy(Block):
    def extra(self, x):
        return x + mx.random.normal(x.shape)


@pytest.mark.parametrize(
    ("backbone", "block", "reason"),
    [
        (TakesPairs, Pairs, "return more than hidden states"),
        (HandsObject, TakesAnything, "an argument of type object"),
        (HandsModule, TakesAnything, "an argument of type Embedding"),
        (HandsTwoCaches, TakesAnything, "an argument of type BranchCache"),
        (RunsOthers, Block, "does not run its blocks"),
        (Nested, Block, "not one list"),
        (Backbone, Noisy, "draws random numbers"),
    ],
)
def test_models_that_do_not_fit_are_refused(backbone, block, reason):
    model = toy(backbone, block)
    with pytest.raises(UsageError) as caught:
        toy_gradients(model, checkpoint=True)
    assert reason in caught.value.problems[0].evidence
    assert "train.grad_checkpoint" in caught.value.problems[0].fix
    assert all(isinstance(layer, block) for layer in model.layers)


# The check at the start of a run


def test_a_model_that_fits_is_taken():
    for kind, case in (("llama", "two"), ("gemma2", "three"), ("lfm2", "two")):
        model = tiny_model(kind)
        attach(model, LoraConfig(rank=4, alpha=8.0), seed=1)
        usual = choose_scoring(model, CASES[case], mx.float32)
        found = choose_scoring(model, CASES[case], mx.float32, checkpoint=True)
        assert not usual.checkpoint
        assert found == replace(usual, checkpoint=True)
        assert not model.training
        assert not model.layers[0].training


def test_plain_scoring_takes_it_too():
    found = choose_scoring(adapted("llama"), CASES["two"], mx.float32, "plain", checkpoint=True)
    assert found == Scorer(0, None, checkpoint=True)


@pytest.mark.parametrize(("kind", "dtype"), [("gemma2", mx.bfloat16), ("llama", mx.float16)])
def test_rounding_of_half_precision_is_allowed_for(kind, dtype):
    model = tiny_model(kind, num_hidden_layers=4)
    model.set_dtype(dtype)
    attach(model, LoraConfig(rank=4, alpha=8.0), seed=1)
    assert choose_scoring(model, CASES["three"], dtype, checkpoint=True).checkpoint


def test_dropout_is_refused_before_training():
    model = tiny_model()
    attach(model, LoraConfig(rank=4, alpha=8.0, dropout=0.1), seed=1)
    with pytest.raises(UsageError) as caught:
        choose_scoring(model, CASES["two"], mx.float32, checkpoint=True)
    assert "dropout" in caught.value.problems[0].evidence
    assert not model.training  # or the scores of the reference would be random


class Peeking(nn.Module):
    """A feed-forward that reads what another one left behind."""

    def __init__(self, inner, left_behind):
        super().__init__()
        self.inner = inner
        self._left_behind = left_behind

    def __call__(self, x):
        earlier = self._left_behind[-1] if self._left_behind else 0.0
        self._left_behind.append(self.inner(x))
        return self._left_behind[-1] + (earlier if is_alike(earlier, x) else 0.0)


def is_alike(earlier, x):
    return isinstance(earlier, mx.array) and earlier.shape == x.shape


def test_gradients_that_would_be_wrong_are_found():
    model = with_adapter("llama")
    left_behind = []
    for block in model.layers:
        block.mlp = Peeking(block.mlp, left_behind)
    with pytest.raises(UsageError) as caught:
        choose_scoring(model, CASES["two"], mx.float32, "plain", checkpoint=True)
    assert "the gradient of" in caught.value.problems[0].evidence


def test_losses_that_are_not_finite_are_not_called_equal():
    model = toy()
    weight = model.layers[0]
    with pytest.raises(UsageError):
        check_gradients(
            model, lambda: weight.weight.sum(), lambda: weight.weight.sum() * np.nan, mx.float32
        )
