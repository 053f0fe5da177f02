"""Fault 8: the first loss is not ln 2, so reference, masks or template are wrong.

With every scorer and term: tests/training/test_trainer.py.
"""

import mlx.core as mx

from sempa_mlx.model.scoring import Scored
from sempa_mlx.training.preference_term import PreferenceTerm
from tests.command import files_below, refused, training
from tests.faults.conftest import SETTINGS


def test_a_reference_of_other_tokens_stops_the_run(space, tmp_path, monkeypatch):
    """As if the mask of the reference were off by a token: its values belong to other rows."""
    whole = PreferenceTerm._reference_of

    def shifted(term, rows):
        values = whole(term, rows)
        return Scored(values.sums + mx.array([5.0, 0.0]), values.tails)

    monkeypatch.setattr(PreferenceTerm, "_reference_of", shifted)
    outcome = refused(1, *training(space, *SETTINGS), "--adapter-path", tmp_path / "run")
    assert "the first loss is" in outcome.errors[0]
    assert "must give 0.6931 and 0" in outcome.errors[0]
    assert "masks, template or adapter are wrong" in outcome.errors[0]
    assert "nothing was trained" in outcome.err
    assert not any("checkpoints/" in name for name in files_below(tmp_path))
