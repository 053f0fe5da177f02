import importlib

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from sempa_mlx import runtime
from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.model import forest as module
from sempa_mlx.model.completions import score_forest, score_plain
from sempa_mlx.model.cpu_functions import TWINS, use_fast_functions
from sempa_mlx.model.forest import Branch, Forest, ForestCache, can_be_forest, run_forest
from sempa_mlx.model.forward import SharedPrefixUnsupportedError, common_prefix, final_hidden
from sempa_mlx.model.gradients import value_and_grad
from sempa_mlx.model.lora import attach
from sempa_mlx.model.scoring import choose_scoring
from tests.encoder.oracle import one_by_one
from tests.model.test_forward import (
    CASES,
    NATS,
    gradients,
    naive_logps,
    naive_scores,
    shared_of,
    with_adapter,
)
from tests.tiny import SHARING, VOCABULARY, move_adapter, tiny_loaded, tiny_model

KINDS = [kind for kind in SHARING if kind != "gemma2"]  # that one has attention of its own


def restored(model, monkeypatch):
    """Give the module of a model mlx-lm's own functions, until the test is over."""
    home = importlib.import_module(type(model).__module__)
    for name, (theirs, _) in TWINS.items():
        if hasattr(home, name):
            monkeypatch.setattr(home, name, theirs)


@pytest.fixture
def fast(monkeypatch):
    """Return what gives a model the functions that it has after loading on a CPU."""
    monkeypatch.setattr(runtime, "is_gpu", lambda: False)

    def prepare(model):
        restored(model, monkeypatch)
        assert "scaled_dot_product_attention" in use_fast_functions(model, mx.float32)
        return model

    return prepare


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_keys", [0, 64, 10**6])  # by length alone, some, all in one
def test_scores_are_those_of_whole_sequences(kind, case, group_keys, fast, monkeypatch):
    monkeypatch.setattr(module, "GROUP_KEYS", group_keys)
    model, rows = fast(tiny_model(kind)), CASES[case]
    found = score_forest(model, rows, shared_of(case))
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.array(found), naive_logps(model, rows), atol=NATS, rtol=0)


@pytest.mark.parametrize(("kind", "case"), [("llama", "two"), ("qwen2", "three"), ("qwen3", "two")])
@pytest.mark.parametrize("take", [nn.value_and_grad, value_and_grad])  # the latter trains
def test_gradients_of_the_adapter_are_those_of_whole_sequences(kind, case, take, fast):
    model, rows = fast(with_adapter(kind)), CASES[case]
    expected = gradients(model, lambda m: naive_scores(m, rows))
    found = gradients(model, lambda m: score_forest(m, rows, shared_of(case)), take)
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        size = mx.linalg.norm(exact).item()
        assert size > 1e-3, f"{name} has no gradient: the test would show nothing"
        assert mx.linalg.norm(found[name] - exact).item() <= 1e-4 * size, name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_tree_gives_the_states_of_its_rows(data):
    """Each branch's states are those of the whole row that ends with it."""
    tokens = st.lists(st.integers(1, VOCABULARY - 1), max_size=5)
    branches = [Branch(data.draw(tokens.filter(bool)))]
    for index in range(data.draw(st.integers(0, 5))):
        branches.append(Branch(data.draw(tokens), data.draw(st.none() | st.integers(0, index))))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(runtime, "is_gpu", lambda: False)
        model = tiny_model("llama")
        restored(model, monkeypatch)
        use_fast_functions(model, mx.float32)
        forest = Forest(branches)
        states = np.array(run_forest(model, forest))
        assert len(states) == sum(len(branch.tokens) for branch in branches)
        for start, branch in zip(forest.starts, branches, strict=True):
            row, above = list(branch.tokens), branch.parent
            while above is not None:
                row, above = [*branches[above].tokens, *row], branches[above].parent
            own = len(branch.tokens)
            if own:
                whole = np.array(final_hidden(model, [row])[0])[-own:]
                np.testing.assert_allclose(states[start : start + own], whole, atol=1e-4)


def test_no_token_is_run_twice_or_padded(fast, monkeypatch):
    model, rows = fast(tiny_model()), CASES["two"]
    scorer = choose_scoring(model, rows, mx.float32)
    seen = passes_of(model, monkeypatch)
    scorer.states(model, rows)
    one_token = sum(len(completion) == 1 for row in rows for completion in row.completions)
    assert scorer.forest
    assert seen == [(scorer.tokens(rows) - one_token, 1)]  # a single token needs no pass of its own


def test_a_model_without_the_attention_is_found_out(monkeypatch):
    model = tiny_model()
    restored(model, monkeypatch)
    rows = CASES["two"]
    wrong = np.array(score_forest(model, rows, 4)) - np.array(score_plain(model, rows))
    assert np.abs(wrong).max() > 0.1
    scorer = choose_scoring(model, rows, mx.float32)
    assert (scorer.path, scorer.forest) == ("shared", False)


def test_checkpointing_and_other_precisions_do_without(fast, monkeypatch):
    model, rows = fast(with_adapter("llama")), CASES["two"]
    assert choose_scoring(model, rows, mx.float32).forest
    assert not choose_scoring(model, rows, mx.float32, checkpoint=True).forest
    assert not can_be_forest(mx.bfloat16)
    monkeypatch.setattr(runtime, "is_gpu", lambda: True)
    assert not can_be_forest(mx.float32)


def test_layers_that_need_a_mask_are_refused():
    cache = ForestCache(Forest([Branch([1, 2]), Branch([3, 4, 5], 0)]))
    assert cache.make_mask(1, window_size=5) is None
    for options in ({"window_size": 4}, {"return_array": True}):
        with pytest.raises(SharedPrefixUnsupportedError):
            cache.make_mask(1, **options)


# Embedding


WINDOW = 80  # tokens: longer than what the reader probes a model with
TEXTS = [
    "A cat sleeps on the warm stone.",
    "",
    "Two dogs run",
    "A woman in 2024 reads 17 books; the children don't, they're playing outside, and more " * 2,
    "A woman reads; the children don't.",
]


def passes_of(model, monkeypatch):
    """Return a list that gets the shapes of all tokens that are run from now on."""
    seen, backbone = [], type(model.model)
    run = backbone.__call__

    def noted(self, tokens, *args, **options):
        seen.append(tuple(tokens.shape))
        return run(self, tokens, *args, **options)

    monkeypatch.setattr(backbone, "__call__", noted)
    return seen


@pytest.mark.parametrize("method", ["prompteol", "last", "metaeol", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_texts_one_by_one(kind, method, fast):
    loaded = tiny_loaded(kind)
    fast(loaded.model)
    encoder = Encoder(loaded, EncoderSettings(method=method, normalize=False))
    found = encoder.encode(TEXTS)
    expected = np.stack([one_by_one(encoder, text) for text in TEXTS])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_texts_are_neither_padded_nor_run_twice(fast, monkeypatch):
    loaded = tiny_loaded()
    fast(loaded.model)
    encoder = Encoder(loaded)
    encoder.encode(TEXTS[:1])  # looks at the model
    seen = passes_of(loaded.model, monkeypatch)
    encoder.encode(TEXTS)
    rows = encoder.tokenize(TEXTS)
    shared = common_prefix(rows)
    assert shared > 2
    assert seen == [(shared + sum(len(row) - shared for row in rows), 1)]
    seen.clear()
    encoder.encode(TEXTS, batch_tokens=max(map(len, rows)))  # the longest alone
    assert len(seen) > 1


def test_texts_beyond_the_window_of_attention_are_read_otherwise(fast, monkeypatch):
    """The model fits as long as texts are short; both ways give the same vectors."""
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    loaded = tiny_loaded("llama", layer_types=layers, sliding_window=WINDOW)
    fast(loaded.model)
    short, long = Encoder(loaded), Encoder(loaded)
    together = short.encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(long.encode([text])[0], vector, atol=1e-5)
    assert long._reader._is_forest()
    lengths = [len(row) for row in long.tokenize(TEXTS)]
    assert min(lengths) < WINDOW < max(lengths)
    seen = passes_of(loaded.model, monkeypatch)
    long.encode(TEXTS[3:4])
    assert seen[-1][1] > 1, "a pass of whole rows"


def test_gradients_of_embeddings_are_those_of_padded_passes(fast):
    loaded = tiny_loaded()
    fast(loaded.model)
    attach(loaded.model, LoraConfig(rank=4, alpha=8.0), seed=1)
    move_adapter(loaded.model, 0.1)
    found = []
    for is_forest in (True, False):
        encoder = Encoder(loaded)
        encoder._reader._can_be_forest = is_forest
        rows = encoder.tokenize(TEXTS)
        encoder.pooled(rows[:2])
        pull = value_and_grad(loaded.model, lambda e=encoder, r=rows: mx.sin(e.pooled(r)).sum())
        found.append(dict(tree_flatten(pull()[1])))
    for name, expected in found[1].items():
        size = mx.linalg.norm(expected).item()
        assert size > 1e-3, f"{name} has no gradient: the test would show nothing"
        assert mx.linalg.norm(found[0][name] - expected).item() <= 1e-4 * size, name
