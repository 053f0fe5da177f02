"""Losses of embeddings: values against numpy, gradients against one large pass."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from sempa_mlx.config import SparseConfig
from sempa_mlx.encoder.sparse import SparseCoder
from sempa_mlx.run.joint_coder import JointCoder
from sempa_mlx.training.code_loss import CoderWeights
from sempa_mlx.training.sentence_losses import SentenceBatch, sparse_loss, uniformity_loss
from sempa_mlx.training.sentence_term import SentenceTerm, WeightedLoss
from sempa_mlx.world import World
from tests.arrays import as_numpy, assert_close
from tests.training.test_sentence_term import TEXTS, made

DIM, HIDDEN, K = 32, 24, 4


def batch_of(embeddings, base=None):
    return SentenceBatch(mx.array(embeddings), base, [0, 3], [1, 2, 4, 5])


def drawn(count=6, dim=DIM, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def start(seed=3):
    draw = np.random.default_rng(seed)
    return SparseCoder(
        kind="topk",
        k=K,
        vectors="key",
        num_texts=9,
        penalty=0.0,
        gain=1.0,
        centre=draw.normal(size=DIM).astype(np.float32) * 0.1,
        scale=draw.uniform(0.5, 2.0, DIM).astype(np.float32),
        atoms=draw.normal(size=(HIDDEN, DIM)).astype(np.float32) * 0.2,
        bias=draw.normal(size=HIDDEN).astype(np.float32) * 0.1,
    )


def test_uniformity_is_wang_and_isolas():
    vectors = drawn()
    units = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    square = ((units[:, None] - units[None]) ** 2).sum(axis=2)
    expected = np.log(np.exp(-2 * square)[~np.eye(6, dtype=bool)].mean())
    assert uniformity_loss(batch_of(vectors)).item() == pytest.approx(expected, rel=1e-5)


def test_equal_embeddings_are_the_least_uniform():
    assert uniformity_loss(batch_of(np.ones((6, 4), np.float32))).item() == pytest.approx(0.0)
    one = SentenceBatch(mx.ones((1, 4)), None, [0], [0])
    assert uniformity_loss(one).item() == 0.0


def test_steps_against_the_gradient_of_uniformity_spread_embeddings():
    vectors = mx.array(drawn() * 0.1 + 0.3)
    before = uniformity_loss(batch_of(vectors)).item()
    for _ in range(20):
        vectors = vectors - mx.grad(lambda v: uniformity_loss(batch_of(v)))(vectors)
    after = uniformity_loss(batch_of(vectors)).item()
    assert np.isfinite(after)
    assert after < before - 0.5


def numpy_code_loss(vectors, coder, settings, base=None):
    """The loss in float64, without a line of the package."""
    seen = (vectors.astype(np.float64) - coder.centre) / coder.scale
    latents = np.maximum(seen @ coder.atoms.T + coder.bias, 0)

    def kept(k):
        order = np.argsort(-latents, axis=1)[:, :k]
        codes = np.zeros_like(latents)
        np.put_along_axis(codes, order, np.take_along_axis(latents, order, 1), 1)
        return codes

    def left(k):
        variance = ((seen - seen.mean(axis=0)) ** 2).sum()
        return ((seen - kept(k) @ coder.atoms) ** 2).sum() / variance

    def cosines(rows):
        units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return units[[0, 3]] @ units[[1, 2, 4, 5]].T

    scores = cosines(kept(K))
    if base is not None:
        scores = scores - cosines((base.astype(np.float64) - coder.centre) / coder.scale)
    scores = scores / settings.temperature
    ranked = np.log(np.exp(scores).sum(axis=1)) - scores[[0, 1], [0, 2]]
    return left(K) + left(4 * K) / 8 + settings.preference * ranked.mean()


@pytest.mark.parametrize("adjusted", [False, True])
def test_the_code_loss_is_numpys(adjusted):
    settings = SparseConfig(k=K, preference=0.3, temperature=0.5, adjusted=adjusted)
    vectors, base = drawn(), drawn(seed=1)
    loss = sparse_loss(settings, JointCoder(start()))
    found = loss(batch_of(vectors, mx.array(base))).item()
    expected = numpy_code_loss(vectors, start(), settings, base if adjusted else None)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("detach", [False, True])
def test_detached_the_loss_teaches_the_coder_alone(detach):
    coder = JointCoder(start())
    settings = SparseConfig(k=K, preference=0.3, detach=detach)

    def whole(vectors, atoms):
        weights = CoderWeights(atoms, coder.bias, coder.shift)
        loss = sparse_loss(settings, lambda given: (coder(given)[0], weights))
        return loss(batch_of(vectors))

    to_vectors, to_atoms = mx.grad(whole, argnums=(0, 1))(mx.array(drawn()), coder.atoms)
    assert bool(mx.any(to_vectors != 0)) is not detach
    assert mx.any(to_atoms != 0)


def with_coder(tokens, *, detach=False):
    """The term of three losses over a tiny encoder whose model holds a coder."""
    encoder, plain = made(noise=0.5, tokens=tokens)
    coder = JointCoder(start())
    encoder.loaded.model.sparse_coder = coder
    losses = {
        "embedding": plain._losses["embedding"],
        "uniformity": WeightedLoss(0.3, uniformity_loss),
        "code": WeightedLoss(0.7, sparse_loss(SparseConfig(k=K, detach=detach), coder)),
    }
    return SentenceTerm(
        encoder.loaded.model, plain._rows, encoder.pooled, encoder.passes, losses, tokens
    )


@pytest.mark.parametrize("tokens", [64, 200])
def test_many_passes_give_the_gradients_of_one_to_adapter_and_coder(tokens):
    expected = with_coder(100_000).contribution(range(len(TEXTS)), World(), 0)
    found = with_coder(tokens).contribution(range(len(TEXTS)), World(), 0)
    assert found.parts == pytest.approx(expected.parts, rel=1e-4)
    assert found.loss == pytest.approx(sum(found.parts.values()))
    assert_close(found.gradients, expected.gradients, share=1e-3)
    gradients = as_numpy(expected.gradients)
    assert gradients["sparse_coder.atoms"].any()
    assert gradients["sparse_coder.shift"].any()


def test_the_coders_gradient_counts_once_over_processes():
    whole = with_coder(100_000).contribution(range(len(TEXTS)), World(), 0)
    term = with_coder(100_000)
    rows = term._rows
    sentences = list(dict.fromkeys(s for row in rows for s in (row.anchor, *row.candidates)))
    vectors = term._embed(sentences)

    class Half(World):
        def total(self, tree):
            return vectors

    parts = [term.contribution(range(len(TEXTS)), Half(rank, 2), 0) for rank in (0, 1)]
    assert set(parts[1].parts.values()) == {0.0}
    first, second = (as_numpy(part.gradients) for part in parts)
    assert not second["sparse_coder.atoms"].any()
    total = tree_map(mx.add, *(part.gradients for part in parts))
    assert_close(total, whole.gradients, share=1e-3)
    assert first["sparse_coder.atoms"].any()
