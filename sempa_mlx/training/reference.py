"""Reference log-probabilities: the same network with its adapter dialled to 0."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.lora import dialled
from sempa_mlx.model.scoring import Scored, Scorer
from sempa_mlx.training.reference_store import ReferenceStore, row_key


class Reference:
    """Scores rows under the untouched base, each distinct row once.

    Every row that is asked for counts once: in `num_computed` if the model ran on it, else in
    `num_reused`.
    """

    def __init__(
        self,
        model: nn.Module,
        scorer: Scorer,
        rows: Sequence[TokenRow],
        *,
        store: ReferenceStore | None = None,
        online: bool = False,
    ) -> None:
        """Keep the rows; nothing is computed yet.

        Args:
            model: the model with its adapter on it.
            scorer: how to score rows.
            rows: all rows, with the same number of candidates K.
            store: where values outlive the process (None: they do not).
            online: compute each time and keep nothing.
        """
        self._model, self._scorer, self._rows = model, scorer, rows
        self._store, self._online = store, online
        self._known: dict[bytes, np.ndarray] = {}
        self.num_computed = 0
        self.num_reused = 0

    def scored(self, indices: Sequence[int]) -> Scored:
        """Return log-probabilities of rows given by their index; no gradient flows through them.

        Rows that are not known are scored together. A value hangs on its companions by rounding
        alone, so it may come from another micro-batch, run or seed.

        Args:
            indices: at least one, repeats allowed.

        Returns:
            Two arrays of (len(indices), K) float32, in nats.
        """
        rows = [self._rows[index] for index in indices]
        if self._online:
            self.num_computed += len(rows)
            return _scored(self._compute(rows))
        keys = [row_key(row) for row in rows]
        found = {key: values for key in keys if (values := self._recall(key)) is not None}
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in found}
        if missing:
            found |= self._computed(missing)
        self.num_computed += len(missing)
        self.num_reused += len(rows) - len(missing)
        return _scored(np.stack([found[key] for key in keys]))

    def _recall(self, key: bytes) -> np.ndarray | None:
        """Look into memory before the store: a row keeps its value as long as the process lives."""
        if key not in self._known and self._store is not None:
            stored = self._store.get(key)
            if stored is not None:
                self._known[key] = stored
        return self._known.get(key)

    def _computed(self, missing: dict[bytes, TokenRow]) -> dict[bytes, np.ndarray]:
        """Score rows given by key, and keep what was found."""
        values = dict(zip(missing, self._compute(list(missing.values())), strict=True))
        self._known |= values
        if self._store is not None:
            self._store.add(values)
        return values

    def _compute(self, rows: Sequence[TokenRow]) -> np.ndarray:
        """Run the base on rows: (rows, 2, K) float32, sums and tails."""
        with dialled(self._model, 0.0):
            return np.array(mx.stack(list(self._scorer(self._model, rows)), axis=1))


def _scored(values: np.ndarray) -> Scored:
    return Scored(mx.array(values[:, 0]), mx.array(values[:, 1]))
