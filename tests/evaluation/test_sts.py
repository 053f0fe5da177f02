import math

import numpy as np
import pytest

from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.evaluation.sts import average, distinct_sentences, evaluate_sts

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
    assert average(evaluate_sts(FakeEncoder(), TASKS)) == pytest.approx(0.5 / 3)
