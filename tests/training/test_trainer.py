import math
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from sempa_mlx.config import EvalConfig, LoraConfig, ObjectiveConfig, TrainConfig
from sempa_mlx.errors import RunError
from sempa_mlx.model.completions import score_plain
from sempa_mlx.model.lora import adapter_weights, attach
from sempa_mlx.model.scoring import Scorer, choose_scoring, score_states
from sempa_mlx.training.contribution import Contribution
from sempa_mlx.training.events import Evaluated, Score, StepDone, StepSkipped
from sempa_mlx.training.preference_term import PreferenceTerm
from sempa_mlx.training.reference import Reference
from sempa_mlx.training.trainer import Trainer, count_parameters, micro_batch_tokens
from tests.arrays import as_numpy, assert_close, assert_equal
from tests.tiny import make_rows, move_adapter, tiny_model

BETA = 0.5
NEVER = EvalConfig(every=1000)
ALWAYS = EvalConfig(every=1)
TRL_NAMES = {
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "grad_norm",
    "learning_rate",
    "pairs_per_second",
    "tokens_per_second",
    "peak_memory_gb",
}


def one_block():
    """One block is enough for a loop that knows nothing of blocks."""
    return tiny_model("llama", num_hidden_layers=1)


ROWS = make_rows()


def trainer_of(rows=ROWS, *, scorer=None, dropout=0.0, model=None, **changes):
    """A tiny Llama with a fresh adapter, and the trainer of it; one batch holds all rows."""
    settings = {"batch_size": 8, "learning_rate": 0.02, "warmup": 0.0, "schedule": "constant"}
    model = model or one_block()
    attach(model, LoraConfig(rank=4, alpha=8.0, dropout=dropout), seed=1)
    scorer = scorer or choose_scoring(model, rows, mx.float32)
    config = TrainConfig(**(settings | changes))
    loss = "sigmoid" if len(rows[0].completions) == 2 else "listwise"
    objective = ObjectiveConfig(beta=BETA, loss=loss)
    reference = Reference(model, scorer, rows)
    tokens = micro_batch_tokens(config)
    term = PreferenceTerm(model, rows, scorer, reference, objective, tokens)
    lengths = [scorer.own_tokens(row) for row in rows]
    return model, Trainer(model, {"preference": term}, lengths, config)


def same(_step):
    """Score every step alike."""
    return Score(0.0)


def run(trainer, scores=None, evaluation=NEVER):
    """Run to the end with made-up dev scores (0, 1, 2 ... by default); return the events."""
    given = iter(scores if scores is not None else range(1000))
    return list(trainer.run(lambda _step: Score(float(next(given))), evaluation))


def steps_of(events):
    return [event for event in events if isinstance(event, StepDone)]


def evaluations_of(events):
    return [event for event in events if isinstance(event, Evaluated)]


def base_weights(model):
    return {
        name: value
        for name, value in as_numpy(model.parameters()).items()
        if not name.endswith(("lora_a", "lora_b"))
    }


@pytest.mark.parametrize("candidates", [2, 3])
def test_the_first_loss_is_that_of_equal_models(candidates):
    _, trainer = trainer_of(make_rows(candidates=candidates), iters=1)
    metrics = steps_of(run(trainer))[0].metrics
    assert metrics["loss"] == pytest.approx(math.log(math.factorial(candidates)), abs=1e-4)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert metrics[name] == pytest.approx(0, abs=1e-4)


def test_metrics_have_trl_names_and_count_steps():
    _, trainer = trainer_of(epochs=3)
    events = steps_of(run(trainer))
    assert [(event.step, event.total) for event in events] == [(1, 3), (2, 3), (3, 3)]
    assert all(event.metrics.keys() == TRL_NAMES for event in events)
    assert all(math.isfinite(value) for event in events for value in event.metrics.values())
    assert trainer.num_steps == 3


def test_the_loss_falls_and_the_margin_grows():
    _, trainer = trainer_of(epochs=20)
    events = steps_of(run(trainer))
    losses = [event.metrics["loss"] for event in events]
    assert losses[-1] < 0.1 * losses[0]
    assert events[-1].metrics["rewards/margins"] > 1
    assert events[-1].metrics["rewards/accuracies"] == 1


def test_micro_batches_add_up_to_the_whole_batch():
    whole_model, whole = trainer_of(epochs=3, micro_batch_tokens=100_000)
    calls = []
    small_model = one_block()
    scorer = CountingScorer(choose_scoring(small_model, ROWS, mx.float32), calls)
    _, small = trainer_of(model=small_model, scorer=scorer, epochs=3, micro_batch_tokens=64)
    for left, right in zip(steps_of(run(whole)), steps_of(run(small)), strict=True):
        assert left.metrics["loss"] == pytest.approx(right.metrics["loss"], abs=1e-5)
        assert left.metrics["grad_norm"] == pytest.approx(right.metrics["grad_norm"], rel=1e-4)
    assert len(calls) > 3 * 2, "the small budget must split the batch"
    assert len(set(calls)) > 1, "groups of different sizes are the hard case"
    assert_close(adapter_weights(small_model), adapter_weights(whole_model), atol=1e-5)


class CountingScorer:
    """Notes how many rows each scoring gets; what it does not know it asks the real scorer for."""

    def __init__(self, scorer, calls):
        self._scorer, self._calls = scorer, calls

    def __call__(self, model, rows):
        self._calls.append(len(rows))
        return self._scorer(model, rows)

    def states(self, model, rows):
        self._calls.append(len(rows))
        return self._scorer.states(model, rows)

    def __getattr__(self, name):
        return getattr(self._scorer, name)


def test_updates_equal_adamw_written_out():
    """Three steps of Loshchilov & Hutter's AdamW in numpy, biases corrected, gradients clipped."""
    rate, decay, beta1, beta2, clip = 0.01, 0.3, 0.9, 0.95, 0.05
    model, trainer = trainer_of(
        epochs=3, learning_rate=rate, weight_decay=decay, beta2=beta2, clip=clip
    )
    oracle = one_block()
    reference = score_plain(oracle, ROWS)
    attach(oracle, LoraConfig(rank=4, alpha=8.0), seed=1)

    def dpo(rows):
        margins = BETA * (score_plain(oracle, rows) - reference)
        return nn.log_sigmoid(margins[:, 0] - margins[:, 1]).mean() * -1

    gradient = nn.value_and_grad(oracle, dpo)
    weights = as_numpy(adapter_weights(oracle))
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    for step in (1, 2, 3):
        _, tree = gradient(ROWS)
        grads = as_numpy(tree)
        norm = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
        assert norm > clip
        for name, value in weights.items():
            grad = grads[name] * clip / (norm + 1e-6)
            first[name] = beta1 * first[name] + (1 - beta1) * grad
            second[name] = beta2 * second[name] + (1 - beta2) * grad**2
            mean = first[name] / (1 - beta1**step)
            spread = np.sqrt(second[name] / (1 - beta2**step))
            weights[name] = value * (1 - rate * decay) - rate * mean / (spread + 1e-8)
        oracle.load_weights([(name, mx.array(value)) for name, value in weights.items()], False)
    run(trainer)
    assert_close(adapter_weights(model), weights, atol=2e-4)
    for value in weights.values():
        assert np.abs(value).max() > 0.015, "the tolerance must be far below the update"


class Descent:
    """Plain gradient descent."""

    def update(self, model, gradients, rate):
        optim.SGD(learning_rate=rate).update(model, gradients)


@pytest.mark.parametrize(("clip", "bites"), [(0.01, True), (1e6, False)])
def test_the_norm_of_an_update_is_clipped(clip, bites):
    """Plain descent in AdamW's place makes the length of an update rate * norm."""
    model, trainer = trainer_of(iters=1, clip=clip, learning_rate=0.5)
    trainer._optimizer = Descent()
    before = as_numpy(adapter_weights(model))
    grad_norm = steps_of(run(trainer))[0].metrics["grad_norm"]
    after = as_numpy(adapter_weights(model))
    moved = math.sqrt(sum(float(((after[name] - before[name]) ** 2).sum()) for name in before))
    assert grad_norm > 0.01, "what is reported is the norm before clipping"
    assert moved == pytest.approx(0.5 * (clip if bites else grad_norm), rel=1e-3)


def test_metrics_are_means_over_pairs_of_the_model_before_the_update():
    """Groups of unequal size: a mean over groups would differ from a mean over pairs."""
    model, trainer = trainer_of(epochs=3, micro_batch_tokens=64)
    reference = np.array(score_plain(one_block(), ROWS))
    policies = []

    def look(step):
        policies.append(np.array(score_plain(model, ROWS)))
        return same(step)

    found = steps_of(list(trainer.run(look, ALWAYS)))
    accuracies = set()
    for event, policy in zip(found, policies[:-1], strict=True):  # policies[0] is of step 0
        rewards = BETA * (policy - reference)
        margins = rewards[:, 0] - rewards[:, 1]
        expected = {
            "rewards/chosen": rewards[:, 0].mean(),
            "rewards/rejected": rewards[:, 1].mean(),
            "rewards/margins": margins.mean(),
            "logps/chosen": policy[:, 0].mean(),
            "logps/rejected": policy[:, 1].mean(),
            "loss": np.log1p(np.exp(-margins)).mean(),
        }
        for name, value in expected.items():
            assert event.metrics[name] == pytest.approx(float(value), abs=1e-4), name
        if event.step > 1:  # margins of step 1 are zero up to rounding
            assert event.metrics["rewards/accuracies"] == (margins > 0).mean()
            accuracies.add(event.metrics["rewards/accuracies"])
    assert max(accuracies) > 0.5


class FlatScorer(CountingScorer):
    """Makes every token of the vocabulary equally probable."""

    def states(self, model, rows):
        states = super().states(model, rows)
        return states._replace(hidden=0.0 * states.hidden)

    def __call__(self, model, rows):
        return score_states(model, self.states(model, rows))


def test_a_tie_is_no_win():
    model = one_block()
    scorer = FlatScorer(choose_scoring(model, ROWS, mx.float32), [])
    _, trainer = trainer_of(scorer=scorer, model=model, iters=1)
    metrics = steps_of(run(trainer))[0].metrics
    assert metrics["rewards/accuracies"] == 0
    assert metrics["loss"] == pytest.approx(math.log(2))


class PoisonedScorer:
    """Scores as the real scorer does until told to spoil the value or the gradient."""

    def __init__(self, model, rows):
        self._scorer = choose_scoring(model, rows, mx.float32)
        self.poison = ""

    def states(self, model, rows):
        states = self._scorer.states(model, rows)
        hidden = states.hidden
        if self.poison == "value":
            hidden = hidden * float("nan")
        if self.poison == "gradient":  # adds 0 with an infinite slope
            hidden = hidden + mx.sqrt(mx.abs(hidden - mx.stop_gradient(hidden)))
        return states._replace(hidden=hidden)

    def __call__(self, model, rows):
        return self._scorer(model, rows)

    def __getattr__(self, name):
        return getattr(self._scorer, name)


def poisonable(**changes):
    model = one_block()
    scorer = PoisonedScorer(model, ROWS)
    model, trainer = trainer_of(scorer=scorer, model=model, **changes)
    return model, trainer, scorer


@pytest.mark.parametrize("kind", ["value", "gradient"])
def test_a_step_that_is_not_finite_is_skipped(kind):
    model, trainer, scorer = poisonable(epochs=4)
    events = trainer.run(same, NEVER)
    next(events)
    assert isinstance(next(events), StepDone)
    before, moments = as_numpy(adapter_weights(model)), as_numpy(trainer.optimizer_state())
    scorer.poison = kind
    skipped = next(events)
    assert isinstance(skipped, StepSkipped)
    assert skipped.step == 2
    assert sorted(skipped.rows) == list(range(8))
    assert_equal(adapter_weights(model), before)
    assert_equal(trainer.optimizer_state(), moments)
    scorer.poison = ""
    assert isinstance(next(events), StepDone)
    assert not np.array_equal(
        np.array(adapter_weights(model)["model.layers.0.mlp.up_proj.lora_b"]),
        before["model.layers.0.mlp.up_proj.lora_b"],
    )


def test_only_three_bad_steps_in_a_row_end_the_run():
    _, trainer, scorer = poisonable(epochs=20)
    events = trainer.run(same, NEVER)
    next(events), next(events)
    for poison in ("value", "gradient", "", "value", "value", "value"):
        scorer.poison = poison
        event = next(events)
        assert isinstance(event, StepSkipped if poison else StepDone)
    with pytest.raises(RunError, match="3 steps in a row") as caught:
        next(events)
    assert "step 0, is kept" in caught.value.state


def test_a_reference_that_is_not_the_base_is_refused():
    """An adapter that already does something: the policy starts away from the base."""
    model, trainer = trainer_of(iters=2)
    move_adapter(model, 0.3)
    before = as_numpy(adapter_weights(model))
    with pytest.raises(RunError, match=r"the first loss is .* must give 0\.6931 and 0") as caught:
        run(trainer)
    assert caught.value.state == "nothing was trained"
    assert_equal(adapter_weights(model), before)


def test_a_reference_is_checked_at_the_first_step_that_is_finite():
    model, trainer, scorer = poisonable(epochs=4)
    move_adapter(model, 0.3)
    events = trainer.run(same, NEVER)
    next(events)
    scorer.poison = "gradient"
    assert isinstance(next(events), StepSkipped)
    scorer.poison = ""
    with pytest.raises(RunError, match="the first loss"):
        next(events)


def test_the_best_step_is_kept_with_its_weights():
    model, trainer = trainer_of(epochs=4)
    seen = []

    def look(_step):
        seen.append(as_numpy(adapter_weights(model)))
        return Score([50.0, 40.0, 70.0, 60.0, 65.0][len(seen) - 1])

    found = evaluations_of(list(trainer.run(look, ALWAYS)))
    assert [(event.step, event.score.value, event.best_step) for event in found] == [
        (0, 50.0, 0),
        (1, 40.0, 0),
        (2, 70.0, 2),
        (3, 60.0, 2),
        (4, 65.0, 2),
    ]
    assert [event.weights is not None for event in found] == [True, False, True, False, False]
    assert_equal(found[0].weights, seen[0])
    assert_equal(found[2].weights, seen[2])


def test_the_base_wins_when_no_step_is_better():
    """A tie is no gain: the earlier step is kept."""
    found = evaluations_of(run(trainer_of(epochs=3)[1], [50, 50, 49, 50], ALWAYS))
    assert [event.best_step for event in found] == [0, 0, 0, 0]
    assert [event.weights is not None for event in found] == [True, False, False, False]


def test_an_undefined_score_never_wins():
    nan = math.nan
    found = evaluations_of(run(trainer_of(epochs=4)[1], [10, nan, 20, nan, 15], ALWAYS))
    assert [event.best_step for event in found] == [0, 0, 2, 2, 2]


def test_any_score_beats_an_undefined_base():
    nan = math.nan
    found = evaluations_of(run(trainer_of(epochs=3)[1], [nan, nan, -5, -6], ALWAYS))
    assert [event.best_step for event in found] == [0, 0, 2, 2]
    assert [event.weights is not None for event in found] == [True, False, True, False]


def test_patience_counts_evaluations_without_a_better_score():
    impatient = EvalConfig(every=1, patience=2)
    found = evaluations_of(run(trainer_of(epochs=9)[1], [5, 4, 6, 5, 6, 9, 9], impatient))
    assert [event.step for event in found] == [0, 1, 2, 3, 4]


def test_the_last_step_is_evaluated_whatever_the_interval():
    events = run(trainer_of(epochs=5)[1], None, EvalConfig(every=2))
    assert [event.step for event in evaluations_of(events)] == [0, 2, 4, 5]
    whole = run(trainer_of(epochs=4)[1], None, EvalConfig(every=2))
    assert [event.step for event in evaluations_of(whole)] == [0, 2, 4]


def test_the_base_is_bit_for_bit_what_it_was():
    model, trainer = trainer_of(epochs=3, dropout=0.2)
    before = base_weights(model)
    scales = [layer.scale for layer in model.modules() if hasattr(layer, "lora_a")]
    run(trainer)
    assert_equal(base_weights(model), before)
    assert [layer.scale for layer in model.modules() if hasattr(layer, "lora_a")] == scales
    assert not model.training


def test_a_run_can_be_repeated_and_the_seed_decides():
    """The adapter's own start is the same in all of them: order and dropout are what differs."""

    def trained(draws=0, **changes):
        model, trainer = trainer_of(batch_size=2, dropout=0.3, **changes)
        for _ in range(draws):
            mx.random.normal((3,))
        run(trainer)
        return as_numpy(adapter_weights(model))

    def equal(left, right):
        return all(np.array_equal(left[name], right[name]) for name in left)

    first = trained(seed=1)
    assert_equal(trained(seed=1, draws=5), first)
    assert not equal(trained(seed=2), first)
    assert not equal(trained(seed=1, weight_decay=0.5), first)


def test_rows_are_scored_under_the_base_once():
    calls = []
    model = one_block()
    scorer = CountingScorer(choose_scoring(model, ROWS, mx.float32), calls)
    _, trainer = trainer_of(
        scorer=scorer, model=model, epochs=3, micro_batch_tokens=100_000, batch_size=8
    )
    run(trainer)
    assert calls == [8, 8, 8, 8]  # the reference once, the policy in each of three steps


def test_plain_and_shared_scoring_train_alike():
    model = one_block()
    sharing = choose_scoring(model, ROWS, mx.float32)
    assert sharing.path == "shared"
    _, shared = trainer_of(epochs=3, model=model, scorer=sharing)
    _, plain = trainer_of(epochs=3, scorer=Scorer(0, None))
    for left, right in zip(steps_of(run(shared)), steps_of(run(plain)), strict=True):
        assert left.metrics["loss"] == pytest.approx(right.metrics["loss"], abs=1e-4)


def test_parameters_are_counted():
    model, _ = trainer_of()
    trainable, total = count_parameters(model)
    assert trainable == sum(value.size for value in adapter_weights(model).values())
    assert total - trainable == sum(value.size for value in base_weights(model).values())


def test_a_steep_loss_may_differ_by_rounding_and_no_more():
    """As sppo_hard of beta 0.003, whose reference was scored in other groups of rows."""
    _, trainer = trainer_of(iters=2)
    for loss, is_right in ((55555.5625, True), (55655.0, False)):
        part = Contribution(loss=loss, expected_loss=55555.5586, has_pairs=True)
        check = partial(trainer._check_first_loss, {"preference": part}, {"rewards/margins": 0.0})
        if is_right:
            check()
        else:
            with pytest.raises(RunError, match="the first loss"):
                check()


def test_a_run_that_resumes_after_three_bad_steps_stops_at_the_next():
    _, trainer, scorer = poisonable(epochs=20)
    events = trainer.run(same, NEVER)
    next(events)
    trainer.progress.bad_steps = 3
    scorer.poison = "value"
    assert isinstance(next(events), StepSkipped)
    with pytest.raises(RunError, match="4 steps in a row"):
        next(events)
