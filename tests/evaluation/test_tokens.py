import functools
import math
from dataclasses import astuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.errors import UsageError
from sempa_mlx.evaluation import tokens
from sempa_mlx.evaluation.tokens import (
    KeyTokens,
    find_key_tokens,
    fold,
    measure_alignment,
    rank_tokens,
    spell,
)
from tests.tiny import END, START, VOCABULARY, tiny_loaded, tiny_model, tiny_tokenizer

FEW = settings(max_examples=60, deadline=None, derandomize=True)
TEXTS = (
    "A cat sleeps on the warm stone.",
    "",
    "Two dogs run on the grass",
    "the the the the the the the the the the the the",
    f"He said {END}",
)

loaded_of = functools.cache(tiny_loaded)


def weights_of(model):
    """The output matrix and the cap on logits, read off the model."""
    untied = "lm_head" in model
    layer = model.lm_head if untied else model.model.embed_tokens
    return np.array(layer.weight, dtype=np.float64), getattr(model, "final_logit_softcapping", None)


def naive_ranks(model, states):
    """Whole rankings by float64 dot products; a cap keeps the order, so it is left out."""
    matrix, _ = weights_of(model)
    logits = states.astype(np.float64) @ matrix.T
    return np.lexsort((np.arange(matrix.shape[0]) + 0 * logits, -logits), axis=1)


def naive_alignment(found, form=lambda token: token):
    """The definitions, word for word."""
    hit, lar, lar_cut, used = [], [], [], []
    matched, matched_cut, present = set(), set(), set()
    for own, aligned in zip(found.texts, found.aligned, strict=True):
        if len(own) == 0:
            continue
        used.append(own)
        mine = {form(token) for token in own}
        first = {form(token) for token in aligned[: found.top]}
        long = {form(token) for token in aligned[: len(own)]}
        short = {form(token) for token in aligned[: len(own)][: found.top]}
        hit.append(1.0 if any(token in mine for token in first) else 0.0)
        lar.append(len(long & mine) / len(mine))
        lar_cut.append(len(short & mine) / len(mine))
        matched |= long & mine
        matched_cut |= short & mine
        present |= mine
    return (
        *(len(used), len(found.texts) - len(used), np.mean(hit), np.mean(lar)),
        *(len(matched) / len(present), np.mean(lar_cut), len(matched_cut) / len(present)),
    )


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "qwen3", "gemma2"])
@pytest.mark.parametrize("block", [1, 3, 128])
def test_rankings_equal_those_of_plain_dot_products(kind, block, monkeypatch):
    monkeypatch.setattr(tokens, "BLOCK_ROWS", block)
    model = tiny_model(kind)
    states = np.random.default_rng(0).standard_normal((7, 32)).astype(np.float32)
    counts = [1, 10, VOCABULARY, VOCABULARY + 5, 2, 60, 3]
    expected = naive_ranks(model, states)
    found = rank_tokens(model, states, counts)
    assert [len(row) for row in found] == [min(count, VOCABULARY) for count in counts]
    for row, whole in zip(found, expected, strict=True):
        assert list(row) == whole[: len(row)].tolist()


def test_a_cap_on_logits_is_the_models_own():
    """A cap far below the logits makes the first ones equal; ties then go by id."""
    model = tiny_model("gemma2")
    states = 1e4 * np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32)
    (found,) = rank_tokens(model, states, [10])
    logits = states.astype(np.float64) @ weights_of(model)[0].T
    assert list(found) == np.flatnonzero(logits[0] > 100)[:10].tolist()


def test_ties_go_by_id():
    model = tiny_model("llama")
    model.model.embed_tokens.weight = mx.zeros_like(model.model.embed_tokens.weight)
    assert rank_tokens(model, np.ones((1, 32), np.float32), [5]) == ((0, 1, 2, 3, 4),)


def test_states_without_an_order_are_refused():
    states = np.ones((2, 32), np.float32)
    states[1, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        rank_tokens(tiny_model("llama"), states, [1, 1])
    assert rank_tokens(tiny_model("llama"), np.empty((0, 32), np.float32), []) == ()


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gemma2"])
def test_the_last_state_aligns_with_what_the_model_would_say_next(kind):
    loaded = loaded_of(kind)
    encoder = Encoder(loaded)
    found = find_key_tokens(encoder, TEXTS, top=4)
    rows = encoder.tokenize(TEXTS)
    for row, own, aligned in zip(rows, found.texts, found.aligned, strict=True):
        logits = np.array(loaded.model(mx.array([row])))[0, -1]
        assert len(aligned) == max(4, len(own))
        best = np.sort(logits)[::-1]
        np.testing.assert_allclose(logits[list(aligned)], best[: len(aligned)], atol=1e-4)


def test_embeddings_are_projected_neither_cut_nor_at_unit_length():
    """A cut vector has no place in the head; a unit one meets the cap elsewhere, so ties differ."""
    loaded = tiny_loaded("gemma2", final_logit_softcapping=0.3)
    plain = EncoderSettings(method="mean", normalize=False)
    cut = EncoderSettings(method="mean", normalize=True, truncate_dim=5)
    states = Encoder(loaded, plain).encode(TEXTS)
    found = find_key_tokens(Encoder(loaded, cut), TEXTS, top=6)
    assert found.aligned == rank_tokens(loaded.model, states, [max(6, len(t)) for t in found.texts])


def test_a_texts_tokens_are_its_own_without_template_and_control_tokens():
    loaded = loaded_of("llama")
    found = find_key_tokens(Encoder(loaded), TEXTS)
    decoded = [loaded.tokenizer.decode(list(row)) for row in found.texts]
    assert decoded == list(TEXTS), "a control token that a text spells stays text"
    controls = {loaded.tokenizer.convert_tokens_to_ids(token) for token in (START, END)}
    assert not controls & {token for row in found.texts for token in row}
    assert found.texts[1] == ()
    assert found.top == 10


def test_progress_counts_the_texts():
    done = []
    find_key_tokens(Encoder(loaded_of("llama")), TEXTS, on_progress=done.append)
    assert sum(done) == len(TEXTS)


@FEW
@given(st.data(), st.integers(1, 6), st.booleans())
def test_rates_equal_their_definitions(data, top, is_folded):
    token = st.integers(0, 15)
    texts = data.draw(st.lists(st.lists(token, max_size=9), min_size=1, max_size=6))
    ranks = [data.draw(st.permutations(range(16)))[: max(top, len(text))] for text in texts]
    found = KeyTokens(tuple(map(tuple, texts)), tuple(map(tuple, ranks)), top)
    form = (lambda token: token // 2) if is_folded else (lambda token: token)
    measured = measure_alignment(found, form if is_folded else None)
    if any(texts):
        np.testing.assert_allclose(astuple(measured), naive_alignment(found, form), atol=1e-12)
        assert measured.lar_cut <= measured.lar
        assert measured.gar_cut <= measured.gar
        assert max(astuple(measured)[2:]) <= 1
    else:
        assert measured.num_empty == len(texts)
        assert all(math.isnan(value) for value in astuple(measured)[2:])


def test_rates_by_hand():
    found = KeyTokens(
        texts=((1, 2, 2, 3), (4,), (), (5, 6)),
        aligned=((2, 9, 1, 8), (9, 4), (1, 2), (7, 6)),
        top=2,
    )
    measured = measure_alignment(found)
    assert (measured.num_texts, measured.num_empty) == (3, 1)
    assert measured.hit == 1  # 2; 4, though only second; 6
    assert measured.lar == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)  # of 1 2 3; the cut counts 2 2
    assert measured.gar == pytest.approx(3 / 6)  # 1 2 6 of 1 to 6
    assert measured.lar_cut == pytest.approx((1 / 3 + 0 + 1 / 2) / 3)
    assert measured.gar_cut == pytest.approx(2 / 6)


def test_a_token_matched_in_another_text_alone_is_not_aligned():
    found = KeyTokens(texts=((1,), (2,)), aligned=((2,), (1,)), top=1)
    assert astuple(measure_alignment(found))[2:] == (0, 0, 0, 0, 0)


def test_case_and_a_leading_blank_fold_away():
    tokenizer = tiny_tokenizer()

    def token(piece):
        (found,) = tokenizer.encode(piece, add_special_tokens=False)
        return found

    assert spell(tokenizer, token(" s")) == " s"
    assert fold(tokenizer, token(" s")) == fold(tokenizer, token("S")) == "s"
    assert fold(tokenizer, token("\n")) != fold(tokenizer, token(" "))
    whole = tokenizer.encode("é", add_special_tokens=False)
    assert len(whole) == 2
    assert len({fold(tokenizer, piece) for piece in whole}) == 2, "half characters are no match"
    assert fold(tokenizer, 10**6) == 10**6, "rows of the head beyond the tokenizer"


def test_the_blank_of_sentencepiece_is_kept():
    vocabulary = {"▁cat": 0, "cat": 1, "▁": 2, "<unk>": 3}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False)
    assert [spell(tokenizer, token) for token in (0, 1)] == [" cat", "cat"]
    assert fold(tokenizer, 0) == fold(tokenizer, 1) == "cat"


@pytest.mark.parametrize("method", ["ke", "pretcot", "cp", "tp"])
def test_states_of_inner_layers_are_not_put_through_the_head(method):
    encoder = Encoder(loaded_of("llama"), EncoderSettings(method=method))
    with pytest.raises(UsageError, match="an inner one"):
        find_key_tokens(encoder, TEXTS)
