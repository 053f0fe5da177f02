import functools

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from sempa_mlx.config import LoraConfig
from sempa_mlx.model import completions, forward
from sempa_mlx.model.completions import UNCUT, TokenRow, score_plain, score_shared
from sempa_mlx.model.forward import (
    GROUPED_MASK_RANK,
    PLAIN_MASK_RANK,
    SharedPrefixUnsupportedError,
    common_prefix,
    final_hidden,
    pad_right,
)
from sempa_mlx.model.head import target_logps, text_model
from sempa_mlx.model.lora import attach
from tests.tiny import MISFITS, SHARING, VOCABULARY, WINDOW, move_adapter, tiny_model

NATS = 1e-4
model_of = functools.cache(tiny_model)


def mask_rank(kind):
    return GROUPED_MASK_RANK if kind == "gemma2" else PLAIN_MASK_RANK


def random_rows(seed, shared, prompt_lengths, completion_lengths):
    """Rows whose prompts share exactly their first `shared` tokens."""
    rng = np.random.default_rng(seed)
    head = rng.integers(1, VOCABULARY, shared).tolist()
    rows = []
    for index, (length, lengths) in enumerate(zip(prompt_lengths, completion_lengths, strict=True)):
        own = rng.integers(1, VOCABULARY, length).tolist()
        own[0] = index  # so that no further token is shared
        completions = tuple(tuple(rng.integers(1, VOCABULARY, n).tolist()) for n in lengths)
        rows.append(TokenRow((*head, *own), completions))
    return rows


# The three shapes of trouble: unequal lengths, completions of one token, nothing shared.
CASES = {
    "two": random_rows(1, 4, (3, 7, 1), ((2, 5), (1, 1), (6, 3))),
    "three": random_rows(2, 3, (5, 1, 4, 2), ((1, 4, 2), (3, 1, 1), (5, 5, 5), (2, 1, 7))),
    "unshared": random_rows(3, 0, (6, 1, 3), ((3, 1), (1, 4), (2, 2))),
    "one-token": random_rows(4, 2, (2, 5), ((1, 1), (1, 1))),
    "one-row": random_rows(5, 3, (4,), ((2, 6),)),
}


def shared_of(name):
    return {"two": 4, "three": 3, "unshared": 0, "one-token": 2, "one-row": 3}[name]


def naive_logps(model, rows):
    """One unpadded forward a completion; log-softmax by numpy in float64."""
    scores = []
    for row in rows:
        scores.append([])
        for completion in row.completions:
            logits = np.array(model(mx.array([[*row.prompt, *completion]]))[0], dtype=np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            logps = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            total = 0.0
            for place, token in enumerate(completion):
                total += logps[len(row.prompt) - 1 + place, token]
            scores[-1].append(total)
    return np.array(scores)


def naive_scores(model, rows):
    """The same in mlx, so that gradients flow."""
    scores = []
    for row in rows:
        for completion in row.completions:
            logits = model(mx.array([[*row.prompt, *completion]]))[0]
            logps = logits - mx.logsumexp(logits, axis=1, keepdims=True)
            first = len(row.prompt) - 1
            scores.append(sum(logps[first + i, token] for i, token in enumerate(completion)))
    return mx.stack(scores).reshape(len(rows), -1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", SHARING)
def test_shared_plain_and_naive_scores_agree(kind, case):
    model, rows = model_of(kind), CASES[case]
    expected = naive_logps(model, rows)
    shared = score_shared(model, rows, shared_of(case), mask_rank(kind))
    plain = score_plain(model, rows)
    assert shared.shape == plain.shape == (len(rows), len(rows[0].completions))
    assert shared.dtype == plain.dtype == mx.float32
    np.testing.assert_allclose(np.array(plain), expected, atol=NATS, rtol=0)
    np.testing.assert_allclose(np.array(shared), expected, atol=NATS, rtol=0)


@pytest.mark.parametrize("case", ["two", "unshared"])
@pytest.mark.parametrize("kind", MISFITS)
def test_the_plain_path_is_exact_where_sharing_is_not_possible(kind, case):
    model, rows = model_of(kind), CASES[case]
    scores = np.array(score_plain(model, rows))
    np.testing.assert_allclose(scores, naive_logps(model, rows), atol=NATS, rtol=0)


def test_less_sharing_than_possible_gives_the_same_scores():
    model, rows = model_of("llama"), CASES["two"]
    scores = [np.array(score_shared(model, rows, shared)) for shared in range(5)]
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=NATS, rtol=0)


class Multimodal(nn.Module):
    """A wrapper as mlx-lm's vision models have it."""

    def __init__(self, inner):
        super().__init__()
        self.language_model = inner

    @property
    def layers(self):
        return self.language_model.layers


def test_a_multimodal_wrapper_scores_as_its_language_model():
    inner, rows = model_of("llama"), CASES["two"]
    wrapper = Multimodal(inner)
    assert text_model(wrapper) is inner
    assert text_model(inner) is inner
    expected = np.array(score_shared(inner, rows, 4))
    np.testing.assert_array_equal(np.array(score_shared(wrapper, rows, 4)), expected)
    np.testing.assert_allclose(np.array(score_plain(wrapper, rows)), expected, atol=NATS, rtol=0)


# Gradients


def with_adapter(kind):
    model = tiny_model(kind)
    attach(model, LoraConfig(rank=4, alpha=8.0), seed=1)
    move_adapter(model, 0.1)  # while lora_b is zero, lora_a has no gradient at all
    return model


def gradients(model, score, value_and_grad=nn.value_and_grad):
    """Gradients of a loss in which every completion counts differently."""

    def loss(model):
        scores = score(model)
        weights = mx.cos(mx.arange(scores.size).astype(mx.float32)).reshape(scores.shape)
        return (scores * weights).sum()

    return dict(tree_flatten(value_and_grad(model, loss)(model)[1]))


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("llama", "two"),
        ("llama-untied", "unshared"),
        ("qwen2", "three"),
        ("qwen3", "two"),
        ("gemma2", "three"),
    ],
)
@pytest.mark.parametrize("pass_tokens", [1, 1000])  # a pass for each length, one for all
def test_gradients_of_the_adapter_agree_on_all_paths(kind, case, pass_tokens):
    model, rows = with_adapter(kind), CASES[case]
    how = (shared_of(case), mask_rank(kind), pass_tokens)
    naive = gradients(model, lambda m: naive_scores(m, rows))
    plain = gradients(model, lambda m: score_plain(m, rows))
    shared = gradients(model, lambda m: score_shared(m, rows, *how))
    assert naive.keys() == plain.keys() == shared.keys()
    assert {name.rpartition(".")[2] for name in naive} == {"lora_a", "lora_b"}
    for name, expected in naive.items():
        size = mx.linalg.norm(expected).item()
        assert size > 1e-3, f"{name} has no gradient: the test would show nothing"
        for path, found in (("plain", plain[name]), ("shared", shared[name])):
            error = mx.linalg.norm(found - expected).item() / size
            assert error <= 1e-4, f"{path} {name}: {error:.1e}"


def test_gradients_flow_through_the_shared_prefix():
    """Cutting keys and values of the prefix off the graph must show in the gradient."""
    model, rows = with_adapter("llama"), CASES["two"]
    whole = gradients(model, lambda m: score_shared(m, rows, 4))

    def cut(m):
        layers = prefix_layers(m, rows)
        past = [(tuple(map(mx.stop_gradient, pair)),) for (pair,) in layers]
        return score_after(m, rows, past)

    severed = gradients(model, cut)
    name = "model.layers.0.self_attn.v_proj.lora_a"
    difference = mx.linalg.norm(severed[name] - whole[name]) / mx.linalg.norm(whole[name])
    assert difference.item() > 1e-2


def prefix_layers(model, rows):
    prefix = mx.array([list(rows[0].prompt[:4])])
    return forward.run_level(model, prefix, None, PLAIN_MASK_RANK)[1]


def score_after(model, rows, layers):
    past = forward.Past(layers, visible=None, positions=4)
    prompts = mx.array(pad_right([row.prompt[4:] for row in rows]))
    hidden, _ = forward.run_level(model, prompts, past, PLAIN_MASK_RANK)
    last = mx.stack([hidden[i, len(row.prompt) - 5] for i, row in enumerate(rows)])
    firsts = mx.array([row.completions[0][0] for row in rows])
    return target_logps(model, last, firsts)[:, None]


# Padding


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize("case", ["two", "three", "unshared"])
@pytest.mark.parametrize("pass_tokens", [1, 8, 1000])
def test_how_rows_are_cut_into_passes_changes_no_score(kind, case, pass_tokens):
    model, rows = model_of(kind), CASES[case]
    found = np.array(score_shared(model, rows, shared_of(case), mask_rank(kind), pass_tokens))
    np.testing.assert_allclose(found, np.array(score_plain(model, rows)), atol=NATS, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_pads_are_inert(kind, monkeypatch):
    model, rows = model_of(kind), CASES["three"]
    uncut = (3, mask_rank(kind), UNCUT)
    shared, plain = score_shared(model, rows, *uncut), score_plain(model, rows)

    def pad_with_noise(rows):
        padded = np.random.default_rng(0).integers(1, VOCABULARY, (len(rows), max(map(len, rows))))
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        return padded.astype(np.int32)

    for module in (forward, completions):
        monkeypatch.setattr(module, "pad_right", pad_with_noise)
    np.testing.assert_allclose(
        np.array(score_shared(model, rows, *uncut)), np.array(shared), atol=1e-5
    )
    np.testing.assert_allclose(np.array(score_plain(model, rows)), np.array(plain), atol=1e-5)


def test_a_row_scores_alone_as_in_a_batch():
    model, rows = model_of("qwen3"), CASES["three"]
    batch = np.array(score_shared(model, rows, 3))
    alone = [np.array(score_shared(model, [row], 3))[0] for row in rows]
    np.testing.assert_allclose(batch, alone, atol=NATS, rtol=0)


def test_pad_right():
    padded = pad_right([(5, 6, 7), (), (8,)])
    assert padded.dtype == np.int32
    np.testing.assert_array_equal(padded, [[5, 6, 7], [0, 0, 0], [8, 0, 0]])


# Any shape of batch


@st.composite
def batches(draw):
    num_rows, candidates = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    lengths = st.integers(1, 6)
    prompts = draw(st.lists(lengths, min_size=num_rows, max_size=num_rows))
    one_row = st.lists(lengths, min_size=candidates, max_size=candidates)
    completions = draw(st.lists(one_row, min_size=num_rows, max_size=num_rows))
    shared = draw(st.integers(0, 4))
    return shared, random_rows(draw(st.integers(0, 999)), shared, prompts, completions)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(batches(), st.sampled_from(["llama", "gemma2"]))
def test_any_batch_scores_alike_on_all_paths(batch, kind):
    shared, rows = batch
    model = model_of(kind)
    expected = naive_logps(model, rows)
    found = np.array(score_shared(model, rows, shared, mask_rank(kind)))
    np.testing.assert_allclose(found, expected, atol=NATS, rtol=0)
    np.testing.assert_allclose(np.array(score_plain(model, rows)), expected, atol=NATS, rtol=0)


# Common prefix


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2, 3), (1, 2, 3)], 2),  # equal rows keep one token of their own
        ([(1, 2), (1, 2, 3)], 1),
        ([(7,), (7, 8)], 0),
        ([(1, 2), (3, 2)], 0),
        ([(4, 5, 6)], 2),
        ([(1, 9, 5), (1, 9, 2), (1, 3, 9)], 1),
    ],
)
def test_common_prefix_by_hand(rows, expected):
    assert common_prefix(rows) == expected


tokens = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple)


@given(st.lists(tokens, min_size=1, max_size=6))
def test_common_prefix_is_the_longest_that_leaves_each_row_a_token(rows):
    count = common_prefix(rows)
    assert len({row[:count] for row in rows}) == 1
    assert count < min(map(len, rows))
    longer = {row[: count + 1] for row in rows}
    assert len(longer) > 1 or count + 1 == min(map(len, rows))


# Hidden states


@pytest.mark.parametrize("kind", SHARING)
def test_hidden_states_after_a_shared_prefix(kind):
    model = model_of(kind)
    prompts = [row.prompt for row in CASES["two"]]
    whole = np.array(final_hidden(model, prompts))
    after = np.array(final_hidden(model, prompts, shared=4))
    assert after.shape[1] == whole.shape[1] - 4
    for index, prompt in enumerate(prompts):
        real = len(prompt) - 4
        np.testing.assert_allclose(after[index, :real], whole[index, 4:][:real], atol=NATS, rtol=0)


def test_rows_longer_than_the_window_cannot_share():
    model = model_of("gemma3_text")
    short = [(1, 2, 3, 4, 5, 6)[:WINDOW], (1, 2, 9)]
    np.testing.assert_allclose(
        np.array(final_hidden(model, short, shared=2))[0],
        np.array(final_hidden(model, short))[0, 2:],
        atol=NATS,
        rtol=0,
    )
    with pytest.raises(SharedPrefixUnsupportedError, match="window"):
        final_hidden(model, [(*range(1, WINDOW + 1), 7), (1, 2, 9)], shared=2)


def test_layers_without_keys_and_values_are_noticed():
    model = tiny_model("llama")
    model.layers[1].self_attn = Forgetful(model.layers[1].self_attn)
    with pytest.raises(SharedPrefixUnsupportedError, match="keys and values"):
        score_shared(model, CASES["two"], 4)


class Forgetful(nn.Module):
    """Attention that leaves its cache alone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __call__(self, x, mask=None, cache=None):
        return self.inner(x)


# Which position predicts what


def bigram_model():
    """A Llama without attention and feed-forward: the logits depend on the current token alone."""
    model = tiny_model("llama-untied")
    for layer in model.layers:
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
        layer.mlp.down_proj.weight = mx.zeros_like(layer.mlp.down_proj.weight)
    return model


def test_each_token_is_predicted_by_the_one_before_it():
    model = bigram_model()
    table = np.array(model(mx.arange(VOCABULARY)[:, None])[:, 0], dtype=np.float64)
    table -= np.log(np.exp(table).sum(axis=1, keepdims=True))  # log p(next | current)
    rows = [TokenRow((3, 5, 9), ((11, 2), (4, 4))), TokenRow((3, 7), ((6, 8), (10, 12)))]
    expected = [
        [table[9, 11] + table[11, 2], table[9, 4] + table[4, 4]],
        [table[7, 6] + table[6, 8], table[7, 10] + table[10, 12]],
    ]
    np.testing.assert_allclose(np.array(score_plain(model, rows)), expected, atol=NATS)
    np.testing.assert_allclose(np.array(score_shared(model, rows, 1)), expected, atol=NATS)


def test_a_completion_of_one_token_is_read_off_the_last_prompt_token():
    model = model_of("qwen2")
    logits = np.array(model(mx.array([[3, 5, 9]]))[0, -1], dtype=np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    row = TokenRow((3, 5, 9), ((11,), (4,)))
    for scores in (score_plain(model, [row]), score_shared(model, [row], 2)):
        np.testing.assert_allclose(np.array(scores)[0], expected[[11, 4]], atol=NATS)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_rounded_lengths_change_nothing_but_shapes(kind, monkeypatch):
    """As on a GPU, where lengths are rounded up to few."""
    model = model_of(kind)
    rows = random_rows(3, 4, (6, 9, 21), ((2, 5), (3, 17), (1, 4)))
    expected = np.array(score_shared(model, rows, 4, mask_rank(kind)))
    monkeypatch.setattr(forward.runtime, "is_gpu", lambda: True)
    assert pad_right([(1, 2), (3,)]).shape == (2, forward.GPU_LENGTH_STEP)
    assert pad_right([(1,) * 17]).shape == (1, 2 * forward.GPU_LENGTH_STEP)
    found = np.array(score_shared(model, rows, 4, mask_rank(kind)))
    np.testing.assert_allclose(found, expected, atol=NATS)
    np.testing.assert_allclose(np.array(score_plain(model, rows)), expected, atol=NATS)
