"""Reference log-probabilities: the same network with its adapter dialled to 0."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.model.forward import TokenRow
from sempa_mlx.model.lora import dialled
from sempa_mlx.model.scoring import Scorer


class Reference:
    """Scores rows under the untouched base, each row once a run."""

    def __init__(self, model: nn.Module, scorer: Scorer, rows: Sequence[TokenRow]) -> None:
        """Keep the rows; nothing is computed yet."""
        self._model, self._scorer, self._rows = model, scorer, rows
        self._known: dict[int, list[float]] = {}

    def logps(self, indices: Sequence[int]) -> mx.array:
        """Return (len(indices), K) float32 for rows given by their index."""
        missing = [index for index in indices if index not in self._known]
        if missing:
            with dialled(self._model, 0.0):
                scores = self._scorer(self._model, [self._rows[index] for index in missing])
                mx.eval(scores)  # while the adapter is off
            self._known.update(zip(missing, np.array(scores).tolist(), strict=True))
        return mx.array([self._known[index] for index in indices])
