from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from sempa_mlx.config import LoraConfig
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.lora import attach
from sempa_mlx.model.scoring import Scored, choose_scoring
from sempa_mlx.training.reference import Reference
from sempa_mlx.training.reference_store import ReferenceStore, store_path
from tests.tiny import make_rows, move_adapter, tiny_model, weights_hash

KINDS = ("llama", "gemma2", "lfm2")  # shared, shared with a wider mask, plain
GROUPS = [[3, 0, 5], [1], [7, 6, 2, 4]]
OTHER_GROUPS = [[0, 1, 2, 3, 4, 5, 6], [7]]
ROWS = make_rows(shortest=1)


def trained_model(kind="llama", seed=0, *, adapter="lora", dropout=0.0):
    """A tiny model whose adapter changes every score by far."""
    model = tiny_model(kind, seed)
    attach(model, LoraConfig(kind=adapter, rank=4, alpha=8.0, dropout=dropout), seed=1)
    move_adapter(model, 0.5)
    return model


class CountingScorer:
    """Scores as the scorer inside does, and counts how often the model runs on which row."""

    def __init__(self, scorer):
        self.scorer, self.calls, self.rows = scorer, 0, Counter()

    def __call__(self, model, rows):
        self.calls += 1
        self.rows.update(rows)
        return self.scorer(model, rows)


def scorer_of(model, rows=ROWS):
    return CountingScorer(choose_scoring(model, rows, mx.float32))


def numbers(scored):
    """Sums and tails as one (2, rows, K) array."""
    return np.stack([np.array(part) for part in scored])


def score_in(reference, groups):
    """Ask in groups; return (2, rows, K) in order of the rows."""
    parts = np.concatenate([numbers(reference.scored(group)) for group in groups], axis=1)
    return parts[:, np.argsort([index for group in groups for index in group])]


def open_store(folder, model, candidates=2):
    path = store_path(
        folder,
        fingerprint=weights_hash(model),
        dtype="float32",
        device="cpu",
        candidates=candidates,
    )
    return ReferenceStore(path, candidates)


# What is returned


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("online", [False, True])
def test_values_are_those_of_the_untouched_model(kind, adapter, online):
    untouched, model = tiny_model(kind), trained_model(kind, adapter=adapter)
    scorer = scorer_of(untouched)
    expected = numbers(scorer(untouched, ROWS))
    adapted = numbers(scorer(model, ROWS))
    assert np.abs(adapted - expected)[0].min() > 0.01
    found = Reference(model, scorer, ROWS, online=online).scored(range(len(ROWS)))
    assert isinstance(found, Scored)
    assert {part.dtype for part in found} == {mx.float32}
    assert {part.shape for part in found} == {(len(ROWS), 2)}
    np.testing.assert_array_equal(numbers(found), expected)
    np.testing.assert_array_equal(numbers(scorer(model, ROWS)), adapted)  # the adapter is on again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("candidates", [2, 3])
def test_kept_values_equal_those_computed_anew(kind, candidates, tmp_path):
    model, rows = trained_model(kind), make_rows(candidates=candidates, shortest=1)
    scorer = scorer_of(model, rows)
    expected = score_in(Reference(model, scorer, rows, online=True), GROUPS)
    kept = [
        Reference(model, scorer, rows),
        Reference(model, scorer, rows, store=open_store(tmp_path, model, candidates)),
        Reference(model, scorer, rows, store=open_store(tmp_path, model, candidates)),
    ]
    for reference in kept:
        for _epoch in range(2):
            np.testing.assert_array_equal(score_in(reference, GROUPS), expected)
            found = score_in(reference, OTHER_GROUPS)
            np.testing.assert_array_equal(found, expected)
    regrouped = score_in(Reference(model, scorer, rows, online=True), OTHER_GROUPS)
    np.testing.assert_allclose(expected, regrouped, rtol=0, atol=1e-4)


def test_known_and_new_rows_mix_in_the_order_asked_for():
    model = trained_model()
    reference = Reference(model, scorer_of(model), ROWS)
    expected = numbers(scorer_of(model)(tiny_model(), ROWS))
    reference.scored([4, 1])
    mixed = [6, 1, 1, 0, 4, 6]
    np.testing.assert_allclose(
        numbers(reference.scored(mixed)), expected[:, mixed], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("online", [False, True])
def test_no_gradient_flows(online):
    model = trained_model()
    scorer = scorer_of(model)
    reference = Reference(model, scorer, ROWS, online=online)

    def size(gradients):
        return sum(float(mx.abs(value).sum()) for _, value in tree_flatten(gradients))

    def through(score):
        return size(nn.value_and_grad(model, lambda: sum(part.sum() for part in score()))()[1])

    assert through(lambda: scorer(model, ROWS[:3])) > 1.0
    assert through(lambda: reference.scored([0, 1, 2])) == 0.0


def test_dropout_draws_no_random_numbers():
    """Else a run would go another way when its reference is known already."""
    model = trained_model(dropout=0.5)
    model.train()
    reference = Reference(model, scorer_of(model), ROWS)
    mx.random.seed(7)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(7)
    found = numbers(reference.scored([0, 1]))
    assert mx.random.uniform(shape=(4,)).tolist() == expected
    np.testing.assert_array_equal(found, numbers(scorer_of(model)(tiny_model(), ROWS[:2])))


def test_the_adapter_is_on_again_after_an_error():
    model = trained_model()

    def failing(*_args):
        raise RuntimeError("out of memory")

    before = numbers(scorer_of(model)(model, ROWS))
    with pytest.raises(RuntimeError, match="out of memory"):
        Reference(model, failing, ROWS).scored([0])
    np.testing.assert_array_equal(numbers(scorer_of(model)(model, ROWS)), before)


# What is computed


def test_a_row_is_computed_once_in_a_process():
    model = trained_model()
    scorer = scorer_of(model)
    reference = Reference(model, scorer, [*ROWS, ROWS[0]])
    for groups in (GROUPS, OTHER_GROUPS, [[0, 0, 8]]):
        score_in(reference, groups)
    assert scorer.rows == Counter(ROWS)
    assert scorer.calls == len(GROUPS)
    assert (reference.num_computed, reference.num_reused) == (8, 8 + 3)


def test_online_computes_each_time():
    model = trained_model()
    scorer = scorer_of(model)
    reference = Reference(model, scorer, ROWS, online=True)
    score_in(reference, GROUPS)
    score_in(reference, GROUPS)
    assert scorer.calls == 2 * len(GROUPS)
    assert (reference.num_computed, reference.num_reused) == (16, 0)


def test_online_leaves_the_store_alone(tmp_path):
    model = trained_model()
    store = open_store(tmp_path, model)
    Reference(model, scorer_of(model), ROWS, store=store, online=True).scored([0, 1])
    assert len(store) == 0
    assert list(tmp_path.iterdir()) == []


def test_only_missing_rows_are_computed_and_together(tmp_path):
    model = trained_model()
    Reference(model, scorer_of(model), ROWS, store=open_store(tmp_path, model)).scored([1, 3])
    scorer = scorer_of(model)
    reference = Reference(model, scorer, ROWS, store=open_store(tmp_path, model))
    reference.scored([0, 1, 2, 3, 4])
    assert scorer.rows == Counter([ROWS[0], ROWS[2], ROWS[4]])
    assert scorer.calls == 1
    assert (reference.num_computed, reference.num_reused) == (3, 2)


@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1], ROWS[2:5], [*ROWS[4:], *ROWS[:2]]])
def test_a_second_run_computes_nothing_in_whatever_order_or_subset(tmp_path, rows):
    model = trained_model()
    first = Reference(model, scorer_of(model), ROWS, store=open_store(tmp_path, model))
    expected = dict(zip(ROWS, score_in(first, GROUPS).swapaxes(0, 1), strict=True))
    scorer = scorer_of(model)
    second = Reference(model, scorer, rows, store=open_store(tmp_path, model))
    found = numbers(second.scored(range(len(rows)))).swapaxes(0, 1)
    assert scorer.calls == 0
    assert (second.num_computed, second.num_reused) == (0, len(rows))
    np.testing.assert_array_equal(found, np.stack([expected[row] for row in rows]))


def test_a_run_that_is_cut_off_goes_on_where_it_was(tmp_path):
    """Values are on disk after each micro-batch; half of the last record is lost."""
    model = trained_model()
    store = open_store(tmp_path, model)
    expected = score_in(Reference(model, scorer_of(model), ROWS, store=store), GROUPS)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    scorer = scorer_of(model)
    again = Reference(model, scorer, ROWS, store=open_store(tmp_path, model))
    np.testing.assert_allclose(score_in(again, GROUPS), expected, rtol=0, atol=1e-4)
    assert scorer.rows == Counter([ROWS[4]])
    assert len(open_store(tmp_path, model)) == len(ROWS)


def test_each_micro_batch_is_on_disk_when_it_is_returned(tmp_path):
    model = trained_model()
    reference = Reference(model, scorer_of(model), ROWS, store=open_store(tmp_path, model))
    known = 0
    for group in GROUPS:
        reference.scored(group)
        known += len(group)
        assert len(open_store(tmp_path, model)) == known


def test_another_base_finds_nothing(tmp_path):
    one, other = trained_model(seed=0), trained_model(seed=5)
    store_one, store_other = (open_store(tmp_path, tiny_model("llama", seed)) for seed in (0, 5))
    score_in(Reference(one, scorer_of(one), ROWS, store=store_one), GROUPS)
    scorer = scorer_of(other)
    found = score_in(Reference(other, scorer, ROWS, store=store_other), GROUPS)
    assert scorer.rows == Counter(ROWS)
    assert len(list(tmp_path.iterdir())) == 2
    expected = numbers(scorer(tiny_model("llama", 5), ROWS))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: TokenRow((*row.prompt, 9), row.completions),  # another template
        lambda row: TokenRow(row.prompt, tuple((*each, 9) for each in row.completions)),
        lambda row: TokenRow(row.prompt, row.completions[::-1]),
    ],
)
def test_other_token_ids_find_nothing(tmp_path, change):
    model = trained_model()
    score_in(Reference(model, scorer_of(model), ROWS, store=open_store(tmp_path, model)), GROUPS)
    rows = [change(row) for row in ROWS]
    scorer = scorer_of(model)
    found = score_in(Reference(model, scorer, rows, store=open_store(tmp_path, model)), GROUPS)
    assert scorer.rows == Counter(rows)
    expected = numbers(scorer(tiny_model(), rows))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_other_candidates_find_nothing_and_disturb_nothing(tmp_path):
    model, three = trained_model(), make_rows(candidates=3, shortest=1)
    pairs = [TokenRow(row.prompt, row.completions[:2]) for row in three]
    for rows in (three, pairs):
        scorer, candidates = scorer_of(model, rows), len(rows[0].completions)
        for runs in (1, 1):  # the second finds all
            store = open_store(tmp_path, model, candidates)
            score_in(Reference(model, scorer, rows, store=store), [range(8)])
            assert scorer.calls == runs
    assert len(list(tmp_path.iterdir())) == 2


# What goes wrong


def test_values_that_are_not_finite_are_returned_and_not_kept_on_disk(tmp_path):
    """As when half precision overflows: the trainer has to see it, a later run must not."""
    model = trained_model()
    scorer = scorer_of(model)

    def overflowing(*args):
        sums, tails = scorer(*args)
        return Scored(sums.at[1, 0].add(-mx.inf), tails)

    store = open_store(tmp_path, model)
    found = Reference(model, overflowing, ROWS, store=store).scored([0, 1, 2])
    assert np.isinf(np.array(found.sums)).tolist() == [[False] * 2, [True, False], [False] * 2]
    again = Reference(model, scorer, ROWS, store=open_store(tmp_path, model))
    assert np.isfinite(numbers(again.scored([0, 1, 2]))).all()
    assert (again.num_computed, again.num_reused) == (1, 2)


def test_a_store_that_cannot_be_written_stops_nothing(tmp_path):
    model = trained_model()
    (tmp_path / "folder").symlink_to(tmp_path / "nowhere" / "at" / "all")
    store = ReferenceStore(tmp_path / "folder" / "values.bin", 2)
    scorer = scorer_of(model)
    reference = Reference(model, scorer, ROWS, store=store)
    expected = score_in(Reference(model, scorer_of(model), ROWS), GROUPS)
    with pytest.warns(UserWarning, match="cannot write reference values"):
        found = score_in(reference, GROUPS)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(score_in(reference, OTHER_GROUPS), expected)
    assert scorer.rows == Counter(ROWS)
