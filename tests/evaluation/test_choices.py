import functools

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from sempa_mlx.data.lm_tasks import ChoiceQuestion, load_lm_tasks
from sempa_mlx.evaluation.choices import (
    ChoiceScoring,
    accuracy,
    normalised_accuracy,
    true_mass,
)
from sempa_mlx.model.lora import dialled
from tests.lm_files import write_lm_files
from tests.tiny import MISFITS, SHARING, put_adapter, tiny_loaded

loaded_of = functools.cache(tiny_loaded)
TASKS = ("hellaswag", "truthfulqa", "mmlu")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Of three tasks: two to four choices, solved examples, prompts that ask twice."""
    folder = write_lm_files(tmp_path_factory.mktemp("lm"))
    return [question for task in load_lm_tasks(folder, TASKS, 2) for question in task.questions]


@pytest.fixture(scope="module")
def expected(questions):
    """Of the Llama model."""
    return [naive(loaded_of("llama"), question) for question in questions]


def naive(loaded, question):
    """Whole logits of every prompt and choice, one at a time, in double precision."""
    encode = functools.partial(loaded.tokenizer._tokenizer.encode, split_special_tokens=True)
    prompt = encode(question.prompt.rstrip())
    found = []
    for choice in question.choices:
        whole = encode(f"{question.prompt} {choice}")
        logits = np.array(loaded.model(mx.array([whole])), np.float64)[0]
        logps = log_softmax(logits, axis=1)
        found.append(sum(logps[at - 1, whole[at]] for at in range(len(prompt), len(whole))))
    return found


@pytest.mark.parametrize("batch_tokens", [1, 700, 100_000])
def test_likelihoods_are_those_of_whole_sequences(questions, expected, batch_tokens):
    loaded = loaded_of("llama")
    scoring = ChoiceScoring(loaded, questions, batch_tokens=batch_tokens)
    assert scoring.rows.path == "shared"
    done = []
    found = scoring.log_likelihoods(done.append)
    assert sum(done) == scoring.num_prompts == len({q.prompt for q in questions}) < len(questions)
    for scores, whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(scores, whole, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kind", [*SHARING, *MISFITS])
def test_shared_prompts_change_no_choice(questions, kind):
    loaded, questions = loaded_of(kind), [*questions[:3], *questions[-3:]]
    auto = ChoiceScoring(loaded, questions)
    plain = ChoiceScoring(loaded, questions, scoring="plain")
    assert (auto.rows.path, plain.rows.path) == ("shared" if kind in SHARING else "plain", "plain")
    for question, ours, theirs in zip(
        questions, auto.log_likelihoods(), plain.log_likelihoods(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)
        assert accuracy(ours, question) == accuracy(theirs, question)
        assert normalised_accuracy(ours, question) == normalised_accuracy(theirs, question)


def test_a_question_scores_alone_as_it_does_among_others(questions):
    loaded = loaded_of("llama")
    together = ChoiceScoring(loaded, questions).log_likelihoods()
    for index in (1, 2, -1):
        (alone,) = ChoiceScoring(loaded, [questions[index]]).log_likelihoods()
        np.testing.assert_allclose(alone, together[index], rtol=1e-5, atol=1e-3)


def test_a_choice_asked_for_twice_has_one_likelihood():
    question = ChoiceQuestion("A cat", ("sleeps", "runs", "sleeps"), (True, False, False), "")
    (scores,) = ChoiceScoring(loaded_of("llama"), [question]).log_likelihoods()
    assert scores[0] == scores[2] != scores[1]
    assert accuracy(np.array([1.0, 0.0, 1.0]), question) == 1.0, "the first of equal ones counts"


def test_a_prompt_longer_than_the_model_takes_is_cut_from_the_left():
    loaded = tiny_loaded("llama", max_position_embeddings=40)
    text = "Two dogs run on the grass while a man is watching them. " * 5 + "A cat"
    question = ChoiceQuestion(text, ("sleeps on the stone", "runs"), (True, False), "")
    short = ChoiceQuestion("A cat", ("sleeps", "runs"), (True, False), "")
    scoring = ChoiceScoring(loaded, [question, short])
    assert scoring.rows.num_cut == 1
    encode = loaded.tokenizer._tokenizer.encode
    prompt = encode(text)
    completions = [encode(f"{text} {choice}")[len(prompt) :] for choice in question.choices]
    keep = 41 - max(map(len, completions))
    for choice, found in zip(completions, scoring.log_likelihoods()[0], strict=True):
        whole = prompt[-keep:] + choice
        assert len(whole) <= 41
        logps = log_softmax(np.array(loaded.model(mx.array([whole])), np.float64)[0], axis=1)
        expected = sum(logps[at - 1, whole[at]] for at in range(keep, len(whole)))
        assert found == pytest.approx(expected, abs=1e-3)


def test_nothing_to_score():
    scoring = ChoiceScoring(loaded_of("llama"), [])
    assert (scoring.num_prompts, scoring.log_likelihoods()) == (0, [])


def test_the_dial_counts_when_scores_are_taken(questions):
    base = ChoiceScoring(tiny_loaded(), questions[:2]).log_likelihoods()
    loaded = tiny_loaded()
    put_adapter(loaded.model)
    scoring = ChoiceScoring(loaded, questions[:2])
    with dialled(loaded.model, 0.0):
        np.testing.assert_array_equal(scoring.log_likelihoods(), base)
    assert np.abs(np.array(scoring.log_likelihoods()) - base).max() > 0.1


# Metrics


def question(*truths, choices=None):
    choices = choices or tuple(f"choice {index}" for index in range(len(truths)))
    return ChoiceQuestion("prompt", choices, truths, "")


def test_metrics_by_hand():
    scores = np.log([0.1, 0.4, 0.2])
    assert accuracy(scores, question(False, True, False)) == 1.0
    assert accuracy(scores, question(True, False, True)) == 0.0
    assert true_mass(scores, question(True, False, True)) == pytest.approx(3 / 7)
    # -6 over 6 characters beats -4 over 2.
    answers = ("abcdef", "ab")
    assert accuracy(np.array([-6.0, -4.0]), question(True, False, choices=answers)) == 0.0
    assert normalised_accuracy(np.array([-6.0, -4.0]), question(True, False, choices=answers)) == 1
    # Characters, not bytes: two of them make four bytes.
    answers = ("éé", "abc")
    assert normalised_accuracy(np.array([-2.5, -3.0]), question(True, False, choices=answers)) == 0


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-2000, 0), st.booleans()), min_size=2, max_size=8))
def test_true_mass_is_a_share_even_of_vanishing_probabilities(parts):
    scores = np.array([score for score, _ in parts])
    truths = tuple(truth for _, truth in parts)
    found = true_mass(scores, question(*truths))
    assert found == pytest.approx(softmax(scores)[np.array(truths)].sum(), abs=1e-12)
    shifted = true_mass(scores - 5000, question(*truths))
    assert shifted == pytest.approx(found, abs=1e-9)


def test_no_choice_is_the_likeliest_where_a_likelihood_is_undefined():
    question = ChoiceQuestion("prompt", ("a", "bc"), (True, False), "")
    for metric in (accuracy, normalised_accuracy, true_mass):
        assert np.isnan(metric(np.array([np.nan, -1.0]), question))
        assert np.isnan(metric(np.array([-1.0, np.nan]), question))
