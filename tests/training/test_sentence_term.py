"""The contrastive term: its value against numpy, its cached gradients against one large pass."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from scipy.special import logsumexp

from sempa_mlx.config import LoraConfig, ObjectiveConfig, TrainConfig
from sempa_mlx.data.batching import Passes, cut_by_length
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.model.checkpointed import saving_memory
from sempa_mlx.model.lora import attach
from sempa_mlx.training.optimizer import AdapterOptimizer
from sempa_mlx.training.sentence_losses import contrastive_loss, same_sentences
from sempa_mlx.training.sentence_term import SentenceRow, SentenceTerm, WeightedLoss
from sempa_mlx.world import World
from tests.arrays import as_numpy, assert_close
from tests.tiny import move_adapter, tiny_loaded

TEXTS = [
    ("A cat sleeps.", "The cat is asleep.", "A dog barks at night."),
    ("Two men read old books.", "Men are reading.", "Nobody reads."),
    ("It rains.", "Water falls from the sky.", "The sun shines on dry grass."),
    ("She plays.", "A woman plays the violin.", "She sleeps."),
    ("A boy runs on grass", "A child is running", "A child sits"),
]
T = 0.1


def made(*, tokens=100_000, adjusted=False, weight=1.0, noise=0.0, dropout=0.0, passes=None):
    """A tiny encoder with an adapter that has moved by `noise`, and the term on it."""
    loaded = tiny_loaded("llama", num_hidden_layers=2)
    attach(loaded.model, LoraConfig(rank=4, alpha=8.0, dropout=dropout), seed=1)
    move_adapter(loaded.model, noise)
    encoder = Encoder(loaded)
    flat = iter(encoder.tokenize([text for row in TEXTS for text in row]))
    rows = [SentenceRow(next(flat), (next(flat), next(flat))) for _ in TEXTS]
    settings = ObjectiveConfig(loss=f"{weight} embedding", temperature=T, adjusted=adjusted)
    encoder.pooled(rows[0].candidates)
    losses = {"embedding": WeightedLoss(weight, contrastive_loss(settings), adjusted)}
    passes = passes or encoder.passes
    return encoder, SentenceTerm(loaded.model, rows, encoder.pooled, passes, losses, tokens)


def vectors(encoder, scale=1.0):
    return (
        encoder.with_scale(scale).encode([text for row in TEXTS for text in row]).astype(np.float64)
    )


def info_nce(cosines):
    """Mean InfoNCE of (anchors, candidates) cosines, two candidates an anchor, best first."""
    scores = cosines / T
    return np.mean([logsumexp(scores[i]) - scores[i, 2 * i] for i in range(len(scores))])


def cosines_of(embeddings):
    anchors = embeddings[::3]
    candidates = np.delete(embeddings, np.s_[::3], axis=0)
    return anchors @ candidates.T


def test_the_loss_is_info_nce_with_hard_and_in_batch_negatives():
    encoder, term = made(noise=0.5, weight=0.7)
    found = term.contribution(range(5), World(), 0)
    assert found.loss == pytest.approx(0.7 * info_nce(cosines_of(vectors(encoder))), rel=1e-4)
    assert found.expected_loss is None
    assert not found.has_pairs


def test_adjusted_scores_are_changes_of_the_cosine():
    encoder, term = made(noise=0.5, adjusted=True)
    moved = cosines_of(vectors(encoder)) - cosines_of(vectors(encoder, 0.0))
    found = term.contribution(range(5), World(), 0)
    assert found.loss == pytest.approx(info_nce(moved), rel=1e-4)
    fresh = made(adjusted=True)[1].contribution(range(5), World(), 0)
    assert fresh.loss == pytest.approx(np.log(10), abs=1e-4), "nothing has changed yet"


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("tokens", [64, 200])
def test_gradient_caching_is_exact(tokens, adjusted):
    """Many small passes give what one pass over all sentences gives."""
    _, whole = made(noise=0.5, adjusted=adjusted)
    _, cached = made(noise=0.5, adjusted=adjusted, tokens=tokens)
    expected = whole.contribution(range(5), World(), 0)
    found = cached.contribution(range(5), World(), 0)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert_close(found.gradients, expected.gradients, share=1e-4)
    gradients = as_numpy(expected.gradients)
    assert all(gradients[name].any() for name in gradients if name.endswith("lora_a"))


@pytest.mark.parametrize("tokens", [64, 100_000])
def test_blocks_that_are_computed_again_give_the_same_gradients(tokens):
    encoder, usual = made(noise=0.5, tokens=tokens)
    saving = SentenceTerm(
        encoder.loaded.model,
        usual._rows,
        saving_memory(encoder.loaded.model, encoder.pooled),
        encoder.passes,
        usual._losses,
        tokens,
    )
    expected, found = (term.contribution(range(5), World(), 0) for term in (usual, saving))
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert_close(found.gradients, expected.gradients, share=1e-5)


def test_a_row_longer_than_a_pass_counts_as_the_largest():
    _, term = made(tokens=8)
    assert len(term.largest_pass([range(5)])) == 1


@pytest.mark.parametrize("tokens", [64, 100_000])
def test_passes_of_like_length_change_nothing(tokens):
    """Cut where a pass costs nothing, all sentences of a pass are as long as one another."""
    _, one = made(noise=0.5)
    expected = one.contribution(range(5), World(), 0)

    def of_one_length(lengths, budget):
        return Passes(cut_by_length(lengths, 0, budget), sum(lengths))

    _, several = made(noise=0.5, tokens=tokens, passes=of_one_length)
    seen, embed = [], several._embed

    def noted(sentences):
        seen.append({len(sentence) for sentence in sentences})
        return embed(sentences)

    several._embed = noted
    found = several.contribution(range(5), World(), 0)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.tokens == expected.tokens
    assert_close(found.gradients, expected.gradients, share=1e-4)
    assert len(seen) > 3
    assert all(len(lengths) == 1 for lengths in seen)
    # In one gradient each sentence runs once, else a second time with its gradient.
    passes = [lengths for lengths in seen if lengths == {max(map(max, seen))}]
    assert len(passes) == (1 if tokens > 64 else 2)


def test_dropout_masks_are_the_same_in_both_passes():
    """The value comes from the first pass; moving against the gradient must lower it."""
    encoder, term = made(noise=0.5, tokens=64, dropout=0.4)
    model = encoder.loaded.model
    model.train()
    first = term.contribution(range(5), World(), 7)
    again = term.contribution(range(5), World(), 7)
    assert first.loss == again.loss
    assert term.contribution(range(5), World(), 8).loss != first.loss
    weights = dict(tree_flatten(model.trainable_parameters()))
    gradients = dict(tree_flatten(first.gradients))
    squared = sum(float((gradient**2).sum()) for gradient in gradients.values())
    step = 0.01 / squared
    model.load_weights(
        [(name, value - step * gradients[name]) for name, value in weights.items()], strict=False
    )
    fallen = first.loss - term.contribution(range(5), World(), 7).loss
    assert fallen == pytest.approx(0.01, rel=0.1)


def test_two_processes_share_the_sentences_and_sum_to_the_whole():
    """Each gets all embeddings from the other here; a real ring is tested elsewhere."""
    _, term = made(noise=0.5)
    whole = term.contribution(range(5), World(), 0)

    class Half(World):
        def total(self, tree):
            return vectors_of_all

    encoder, _ = made(noise=0.5)
    rows = term._rows
    sentences = list(dict.fromkeys(s for row in rows for s in (row.anchor, *row.candidates)))
    vectors_of_all = encoder.pooled(sentences)
    parts = [term.contribution(range(5), Half(rank, 2), 0) for rank in (0, 1)]
    assert parts[0].loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts[1].loss == 0, "the loss counts once"
    total = tree_map(mx.add, *(part.gradients for part in parts))
    assert_close(total, whole.gradients, share=1e-4)


def test_equal_sentences_are_no_negatives():
    """Anchors 0 and 1; candidates: 2 and 3 of the first, 2 and 0 of the second."""
    found = same_sentences([0, 1], [2, 3, 2, 0], num_candidates=2)
    assert found.tolist() == [[True, False, True, True], [True, False, True, False]]


def test_an_exact_repeat_in_the_batch_changes_nothing_for_the_others():
    _, term = made(noise=0.5)
    once = term.contribution([0, 1], World(), 0).loss
    twice = term.contribution([0, 1, 0, 1], World(), 0).loss
    # Own positives that come again are left out; own hard negatives count twice.
    assert twice > once
    assert twice < once + np.log(2)


def test_twenty_steps_lower_the_loss():
    encoder, term = made(tokens=200)
    model = encoder.loaded.model
    optimizer = AdapterOptimizer(TrainConfig(learning_rate=0.01))
    losses = []
    for step in range(20):
        found = term.contribution(range(5), World(), step)
        optimizer.update(model, found.gradients, 0.01)
        losses.append(found.loss)
    assert losses[-1] < 0.2 * losses[0]


def test_gradients_equal_those_of_a_plain_loss():
    """Written with nn.value_and_grad over full forwards of unpadded sentences, one by one."""
    encoder, term = made(noise=0.5, tokens=64)
    model, rows = encoder.loaded.model, term._rows

    def plain():
        def unit(sentence):
            state = model.model(mx.array([sentence]))[0, -1]
            return state / mx.sqrt((state**2).sum())

        candidates = mx.stack([unit(s) for row in rows for s in row.candidates])
        losses = []
        for index, row in enumerate(rows):
            scores = candidates @ unit(row.anchor) / T
            losses.append(mx.log(mx.exp(scores).sum()) - scores[2 * index])
        return mx.stack(losses).mean()

    loss, expected = nn.value_and_grad(model, plain)()
    found = term.contribution(range(5), World(), 0)
    assert found.loss == pytest.approx(loss.item(), rel=1e-4)
    assert_close(found.gradients, expected, share=2e-4)
