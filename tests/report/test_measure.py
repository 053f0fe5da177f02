"""What is measured for a report, against plain numpy and the library's own commands."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from scipy.stats import spearmanr

from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.evaluation.geometry import measure_geometry
from sempa_mlx.report.measure import measure, spread
from sempa_mlx.report.measured_sections import words_section
from sempa_mlx.report.projection import aligned_maps
from tests.tiny import put_adapter, tiny_loaded

PAIRS = tuple(
    StsPair(
        score=number % 6, sentence1=f"A man has {number} books.", sentence2=f"{number * 3} cats"
    )
    for number in range(30)
)
TASK = StsTask("few", "dev", PAIRS)


@pytest.fixture(scope="module")
def encoder():
    loaded = tiny_loaded()
    put_adapter(loaded.model, 0.3)
    return Encoder(loaded, EncoderSettings(adapter_scale=0.5))


@pytest.fixture(scope="module")
def found(encoder):
    return measure(encoder, TASK, 20)


def test_both_systems_are_scored_on_the_same_pairs(encoder, found):
    assert (found.num_pairs, found.num_available, found.scale) == (20, 30, 0.5)
    pairs = [PAIRS[index * 30 // 20] for index in range(20)]
    gold = [pair.score for pair in pairs]
    for system, scale in ((found.base, 0.0), (found.trained, 0.5)):
        vectors = encoder.with_scale(scale).encode([p.sentence1 for p in pairs])
        others = encoder.with_scale(scale).encode([p.sentence2 for p in pairs])
        expected = spearmanr(gold, (vectors * others).sum(axis=1)).statistic
        assert system.spearman.value == pytest.approx(expected, abs=1e-9)
    assert found.gain.value == found.trained.spearman.value - found.base.spearman.value
    differences = found.trained.spearman.resampled - found.base.spearman.resampled
    ends = np.nanquantile(differences, [0.025, 0.975])
    assert (found.gain.interval.low, found.gain.interval.high) == pytest.approx(tuple(ends))


def test_geometry_is_of_each_sentence_once(encoder, found):
    rows = {text: row for row, text in enumerate(found.sentences)}
    assert len(rows) == len(found.sentences)
    near = [(rows[p.sentence1], rows[p.sentence2]) for p in spread(PAIRS, 20) if p.score >= 4]
    assert found.num_positives == len(near) > 0
    vectors = encoder.encode(found.sentences)
    assert found.trained.geometry == measure_geometry(vectors, np.array(near))


def test_named_pairs_are_those_scored_highest(encoder, found):
    scores = sorted((pair.score for pair in spread(PAIRS, 20)), reverse=True)
    assert sorted((pair.score for pair in found.joined), reverse=True) == scores[:12]
    vectors = encoder.encode(found.sentences)
    for pair, cosine in zip(found.joined, found.trained.cosines, strict=True):
        assert cosine == pytest.approx(float(vectors[pair.left] @ vectors[pair.right]), abs=1e-6)


def test_neighbours_are_the_nearest_others(encoder, found):
    vectors = encoder.encode(found.sentences)
    partners = {pair.sentence1: pair for pair in PAIRS}
    for query, neighbours in zip(found.queries, found.trained.neighbours, strict=True):
        row = found.sentences.index(query)
        cosines = vectors @ vectors[row]
        cosines[row] = -2
        best = np.sort(cosines)[::-1][:3]
        assert [each.cosine for each in neighbours] == pytest.approx(best.tolist(), abs=1e-6)
        for each in neighbours:
            assert each.text != query
            is_pair = each.text == partners[query].sentence2
            assert (each.score is not None) == is_pair


def test_words_are_those_of_the_output_head(encoder, found):
    tokenizer = encoder.loaded.tokenizer
    assert 0 < len(found.examples) <= 6
    for text, words in zip(found.examples, found.trained.tokens, strict=True):
        states = encoder.encode([text])  # a tied head: the order does not depend on length
        logits = mx.array(states) @ encoder.loaded.model.model.embed_tokens.weight.T
        first = int(np.array(logits)[0].argmax())
        assert words[0].text == (tokenizer.decode([first]).strip() or f"<{first}>")
        forms = [word.text.casefold() for word in words if "\ufffd" not in word.text]
        assert len(forms) == len({*forms})
        assert len(words) == 8


def test_an_adapter_that_changes_nothing_gains_nothing():
    loaded = tiny_loaded()
    put_adapter(loaded.model, 0.0)
    found = measure(Encoder(loaded), TASK, 10)
    assert (found.gain.value, found.gain.p_value) == (0.0, 1.0)
    assert found.base.neighbours == found.trained.neighbours
    assert found.maps.after == pytest.approx(found.maps.before, abs=1e-6)


def test_vectors_that_are_not_finite_are_a_reason_not_an_error():
    loaded = tiny_loaded()
    put_adapter(loaded.model, float("nan"))
    found = measure(Encoder(loaded), TASK, 10)
    assert found == "The trained model's vectors hold NaN or infinity."


def test_a_fitted_map_is_left_out_with_a_remark(encoder, monkeypatch):
    from sempa_mlx.encoder.postprocess import PostFit

    post = PostFit.__new__(PostFit)
    changed = Encoder.__new__(Encoder)
    changed.__dict__.update(encoder.__dict__)
    changed.settings = replace(encoder.settings, post=post)
    found = measure(changed, TASK, 10)
    assert found.remarks == (
        "The fitted map of the vectors is left out, for base and trained alike.",
    )


@pytest.mark.parametrize(
    "pairs",
    [
        (StsPair(5.0, "a", "a"),),
        (StsPair(5.0, "a", "b"),),
        (StsPair(1.0, "a", "b"), StsPair(1.0, "b", "a")),
    ],
)
def test_few_pairs_are_undefined_not_an_error(encoder, pairs):
    found = measure(encoder, StsTask("one", "dev", pairs), 5)
    assert np.isnan(found.gain.value)
    assert np.isfinite(found.maps.before).all()


def test_spread_takes_items_evenly():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread("abc", 3) == spread("abc", 9) == ["a", "b", "c"]


# Maps


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def test_a_plane_is_mapped_as_it_is():
    random = np.random.default_rng(0)
    plane = random.normal(size=(40, 2)) * [3, 1]
    axes, _ = np.linalg.qr(random.normal(size=(16, 2)))
    maps = aligned_maps(plane @ axes.T + 5, plane @ axes.T @ np.diag([-1.0] * 16))
    assert maps.shares == (pytest.approx(1), pytest.approx(1))
    spread_of = np.sqrt(((plane - plane.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert distances(maps.before) == pytest.approx(distances(plane) / spread_of)
    assert maps.after == pytest.approx(maps.before), "a turn is undone"


def test_turning_changes_no_distance_and_no_other_turn_is_closer():
    random = np.random.default_rng(1)
    before, after = random.normal(size=(2, 30, 8))
    maps = aligned_maps(before, after)
    assert (maps.after**2).sum(axis=1).mean() == pytest.approx(1)
    error = ((maps.after - maps.before) ** 2).sum()
    for angle in np.linspace(0, 2 * np.pi, 90):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for mirror in (1, -1):
            other = maps.after @ turn * [1, mirror]
            assert ((other - maps.before) ** 2).sum() >= error - 1e-9


def test_the_plane_holds_the_share_that_numpy_finds():
    vectors = np.random.default_rng(2).normal(size=(25, 6))
    variances = np.sort(np.linalg.eigvalsh(np.cov(vectors.T)))[::-1]
    share = aligned_maps(vectors, vectors).shares[0]
    assert share == pytest.approx(variances[:2].sum() / variances.sum())


def test_sentences_that_are_all_alike_make_a_map():
    maps = aligned_maps(np.ones((5, 3)), np.ones((5, 3)))
    assert (maps.before == 0).all()
    assert maps.shares == (0, 0)


def test_inner_layers_align_with_no_words(encoder):
    inner = Encoder(encoder.loaded, EncoderSettings(method="ke"))
    found = measure(inner, TASK, 5)
    assert found.trained.tokens == found.base.tokens == ()
    body = words_section(found).body
    assert "reads an inner layer" in body
    assert "words-list" not in body
