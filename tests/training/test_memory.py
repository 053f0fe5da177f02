"""The expected peak of memory against the measured one."""

import mlx.core as mx
import pytest

from sempa_mlx.config import LoraConfig, ObjectiveConfig, TrainConfig
from sempa_mlx.model.lora import attach
from sempa_mlx.model.scoring import choose_scoring
from sempa_mlx.training.contribution import Contribution
from sempa_mlx.training.memory import estimate_peak_gb
from sempa_mlx.training.preference_term import PreferenceTerm
from sempa_mlx.training.reference import Reference
from sempa_mlx.training.trainer import Trainer
from sempa_mlx.world import World
from tests.tiny import make_rows, tiny_model

MB = 1 << 20


class Hungry:
    """Takes 2 MB and 1 MB more for each row; its largest pass has twenty."""

    def __init__(self):
        self.tried = []

    def largest_pass(self, batches):
        return max(map(list, batches), key=len)

    def contribution(self, batch, world, seed):
        self.tried.append(list(batch))
        mx.eval(mx.zeros((2 + len(batch), MB // 4)))
        return Contribution()


def test_small_passes_tell_the_height_of_the_large_one():
    base = mx.get_active_memory()
    term = Hungry()
    found = estimate_peak_gb([term], [range(3), range(20)])
    assert found * 1e9 == pytest.approx(base + 22 * MB, rel=0.02)
    assert term.tried == [list(range(15, 20)), list(range(10, 20))], "the longest rows come last"


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_few_rows_count_in_full(rows):
    base = mx.get_active_memory()
    expected = pytest.approx(base + (2 + rows) * MB, rel=0.02)
    assert estimate_peak_gb([Hungry()], [range(rows)]) * 1e9 == expected


def test_without_a_pass_nothing_is_expected():
    assert estimate_peak_gb([], [range(1)]) == 0.0

    class Modest(Hungry):
        def largest_pass(self, batches):
            return []

    assert estimate_peak_gb([Modest()], [range(1)]) == 0.0


@pytest.mark.parametrize("tokens", [1500, 100_000])
def test_the_estimate_of_a_real_model_is_near_its_peak(tokens):
    rows = make_rows(count=192)
    model = tiny_model("llama", vocab_size=2048)
    attach(model, LoraConfig(rank=4), seed=1)
    scorer = choose_scoring(model, rows, mx.float32)
    term = PreferenceTerm(
        model, rows, scorer, Reference(model, scorer, rows), ObjectiveConfig(), tokens
    )
    lengths = [scorer.own_tokens(row) for row in rows]
    trainer = Trainer(model, {"preference": term}, lengths, TrainConfig(batch_size=96))
    expected = trainer.estimate_peak_gb()
    assert not model.training
    mx.clear_cache()
    mx.reset_peak_memory()
    for batch in trainer._plan:
        term.contribution(batch, World(), 0)
    measured = mx.get_peak_memory() / 1e9
    assert expected == pytest.approx(measured, rel=0.25)
