"""`SentenceModel` by itself; `tests/test_peers.py` lets the other libraries call it."""

from dataclasses import replace

import numpy as np
import pytest

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.errors import UsageError
from sempa_mlx.evaluation.sentence_model import SentenceModel
from tests.tiny import tiny_loaded

TEXTS = ["A cat sleeps.", "Two dogs run", "A cat sleeps."]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(tiny_loaded())


def test_vectors_are_those_of_the_encoder(encoder):
    model, expected = SentenceModel(encoder), encoder.encode(TEXTS)
    assert np.array_equal(model.encode(TEXTS, batch_size=2, show_progress_bar=False), expected)
    assert np.array_equal(model.encode(np.array(TEXTS), device="cpu"), expected)
    assert np.array_equal(model.encode(TEXTS[1]), encoder.encode(TEXTS[1:2])[0])


def test_batches_of_a_loader_are_joined(encoder):
    loader = iter([{"text": TEXTS[:2]}, {"text": TEXTS[2:]}])
    found = SentenceModel(encoder).encode(loader, task_metadata=None, hf_split="test")
    assert np.array_equal(found, encoder.encode(TEXTS))
    one_by_one = SentenceModel(encoder).encode([{"text": text} for text in TEXTS])
    assert np.array_equal(one_by_one, found)


def test_cut_vectors_keep_unit_length_only_if_it_is_asked_for(encoder):
    raw = Encoder(encoder.loaded, EncoderSettings(normalize=False))
    plain = raw.encode(TEXTS)[:, :5]
    unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    cut = SentenceModel(raw).encode(TEXTS, truncate_dim=5)
    np.testing.assert_array_equal(cut, plain)
    for model, options in ((raw, {"normalize_embeddings": True}), (encoder, {})):
        found = SentenceModel(model).encode(TEXTS, truncate_dim=5, **options)
        np.testing.assert_allclose(found, unit, rtol=1e-5)


def test_similarities_are_cosines(encoder):
    model = SentenceModel(encoder)
    left, right = np.random.default_rng(0).normal(size=(2, 3, 7))
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    expected = left @ right.T / lengths
    np.testing.assert_allclose(model.similarity(left, right), expected)
    np.testing.assert_allclose(model.similarity(left[0], right), expected[:1])
    np.testing.assert_allclose(model.similarity_pairwise(left, right), np.diag(expected))


@pytest.mark.parametrize(
    ("sentences", "options", "message"),
    [
        (TEXTS, {"prompt_name": "query"}, "prompt_name is not taken"),
        (TEXTS, {"prompt": "Represent: "}, "prompt is not taken"),
        (TEXTS, {"precision": "int8"}, "precision must be float32"),
        (TEXTS, {"truncate_dim": 0}, "truncate_dim must lie in"),
        ([{"image": [0]}], {}, "only text can be embedded, not image"),
    ],
)
def test_what_it_cannot_do_is_told(encoder, sentences, options, message):
    with pytest.raises(UsageError, match=message):
        SentenceModel(encoder).encode(sentences, **options)


def test_a_cut_is_bounded_by_the_encoders_own(encoder):
    short = Encoder(encoder.loaded, replace(encoder.settings, truncate_dim=4))
    with pytest.raises(UsageError, match="1 to 4"):
        SentenceModel(short).encode(TEXTS, truncate_dim=5)


@pytest.mark.parametrize("other", [None, b"A cat.", ("A cat.", "A dog."), 5])
def test_what_is_no_text_is_refused(encoder, other):
    for given in (["A cat.", other], [{"text": ["A cat.", other]}]):
        with pytest.raises(UsageError, match="only text can be embedded"):
            SentenceModel(encoder).encode(given)
