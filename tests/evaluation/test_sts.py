import math

import numpy as np
import pytest

from sempa_mlx.data.records import StsPair, StsSubset, StsTask
from sempa_mlx.evaluation.stats import mean_estimate, paired_difference, spearman
from sempa_mlx.evaluation.sts import average, distinct_sentences, evaluate_sts, pair_cosines

# Angles in degrees: the cosine of a pair falls with the angle between its vectors.
ANGLES = {"a": 0, "b": 10, "c": 40, "d": 90, "e": 180}
TASKS = [
    StsTask(
        "up",
        "senteval",
        (
            StsPair(5.0, "a", "b"),
            StsPair(3.0, "a", "c"),
            StsPair(2.0, "b", "d"),
            StsPair(0.0, "a", "e"),
        ),
    ),
    StsTask("down", "mteb", (StsPair(0.0, "a", "b"), StsPair(5.0, "d", "a"))),
    # Angles 10, 40, 90: ranks 3 2 1 against the gold ranks 2 3 1, so 1 - 6 * 2 / (3 * 8) = 0.5.
    StsTask("half", "mteb", (StsPair(3, "a", "b"), StsPair(4, "a", "c"), StsPair(1, "a", "d"))),
]


class FakeEncoder:
    """Knows the vectors of five texts, and notes what it is asked."""

    def __init__(self):
        self.asked = []

    def encode(self, texts, *, on_progress=None):
        self.asked.append(list(texts))
        if on_progress:
            on_progress(len(texts))
        angles = np.radians([ANGLES[text] for text in texts])
        lengths = np.arange(1, len(texts) + 1)  # cosines must not depend on them
        return (lengths * np.stack([np.cos(angles), np.sin(angles)])).T.astype(np.float32)


def test_scores_by_hand():
    scores = evaluate_sts(FakeEncoder(), TASKS)
    assert [score.spearman for score in scores] == pytest.approx([1.0, -1.0, 0.5])
    assert [(score.task, score.protocol, score.num_pairs) for score in scores] == [
        ("up", "senteval", 4),
        ("down", "mteb", 2),
        ("half", "mteb", 3),
    ]


def test_each_distinct_sentence_of_all_tasks_is_encoded_once():
    encoder, done = FakeEncoder(), []
    evaluate_sts(encoder, TASKS, done.append)
    assert encoder.asked == [["a", "b", "c", "d", "e"]]
    assert sum(done) == len(distinct_sentences(TASKS)) == 5


def test_a_task_alone_scores_as_it_does_among_others():
    for task, score in zip(TASKS, evaluate_sts(FakeEncoder(), TASKS), strict=True):
        assert evaluate_sts(FakeEncoder(), [task]) == [score]


def test_an_encoder_that_tells_nothing_apart_has_no_score():
    class Constant(FakeEncoder):
        def encode(self, texts, *, on_progress=None):
            return np.ones((len(texts), 3), dtype=np.float32)

    assert math.isnan(evaluate_sts(Constant(), TASKS[:1])[0].spearman)


def test_the_average_is_the_plain_mean_over_tasks():
    assert average(evaluate_sts(FakeEncoder(), TASKS)).value == pytest.approx(0.5 / 3)


# Pairs of every two texts; people agree with the angles but for a few.
PAIRS = tuple(
    StsPair((ANGLES[right] - ANGLES[left]) % 70, left, right)
    for left in ANGLES
    for right in ANGLES
    if left < right
)
PARTS = StsTask("parts", "mteb", PAIRS, (StsSubset("one", 4), StsSubset("two", 6)))


def test_a_set_has_one_score_over_all_pairs_and_one_a_subset():
    (score,) = evaluate_sts(FakeEncoder(), [PARTS])
    first, second = score.subsets
    assert [(s.task, s.protocol, s.num_pairs) for s in (score, first, second)] == [
        ("parts", "mteb", 10),
        ("one", "mteb", 4),
        ("two", "mteb", 6),
    ]
    encoder = FakeEncoder()
    texts = distinct_sentences([PARTS])
    predicted = pair_cosines(PAIRS, {t: i for i, t in enumerate(texts)}, encoder.encode(texts))
    gold = np.array([pair.score for pair in PAIRS])
    assert score.spearman == spearman(gold, predicted)
    assert first.spearman == spearman(gold[:4], predicted[:4])
    assert second.spearman == spearman(gold[4:], predicted[4:])
    assert len({score.spearman, first.spearman, second.spearman}) == 3


def test_resamples_are_taken_when_asked_for():
    (plain,) = evaluate_sts(FakeEncoder(), [PARTS])
    assert plain.estimate.resampled.size == 0
    (score,) = evaluate_sts(FakeEncoder(), [PARTS], resamples=200)
    assert score == plain, "values do not depend on resampling"
    for each in (score, *score.subsets):
        assert each.estimate.resampled.shape == (200,)
        interval = each.estimate.interval()
        assert interval.low <= each.spearman <= interval.high


def test_a_task_draws_the_same_pairs_for_every_encoder_and_among_any_others():
    class Folded(FakeEncoder):
        def encode(self, texts, *, on_progress=None):
            return np.abs(super().encode(texts, on_progress=on_progress))

    (score,) = evaluate_sts(FakeEncoder(), [PARTS], resamples=100)
    among = evaluate_sts(FakeEncoder(), [*TASKS, PARTS], resamples=100)[-1]
    np.testing.assert_array_equal(score.estimate.resampled, among.estimate.resampled)
    found = paired_difference(among.estimate, score.estimate)
    assert (found.value, found.interval.low, found.interval.high, found.p_value) == (0, 0, 0, 1)
    (other,) = evaluate_sts(Folded(), [PARTS], resamples=100)
    found = paired_difference(other.estimate, score.estimate)
    assert found.value == other.spearman - score.spearman != 0
    assert found.interval.low < found.value < found.interval.high


def test_tasks_of_one_size_draw_pairs_of_their_own():
    """Else the error of their average would not fall as that of independent tasks does."""
    twins = [StsTask(name, "mteb", PAIRS) for name in ("this", "that")]
    this, that = evaluate_sts(FakeEncoder(), twins, resamples=500)
    assert this.spearman == that.spearman
    correlation = np.corrcoef(this.estimate.resampled, that.estimate.resampled)[0, 1]
    assert abs(correlation) < 0.15
    mean = average([this, that])
    assert mean == mean_estimate([this.estimate, that.estimate])
    assert mean.resampled.std() < 0.8 * this.estimate.resampled.std()
