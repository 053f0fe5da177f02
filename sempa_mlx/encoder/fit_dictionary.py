"""Learning a dictionary for non-negative sparse codes, by alternating minimisation.

Codes of a batch over the present dictionary (FISTA), then the dictionary that rebuilds all codes so
far best: least squares over running sums (Mairal et al. 2010, online dictionary learning), with
atoms at length 1 and older batches forgotten slowly. The penalty follows so that codes have about k
values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sempa_mlx.config import SparseConfig
from sempa_mlx.encoder.fista import nonnegative_codes

MEMORY = 0.9  # weight of the sums so far when a batch comes
RIDGE = 1e-3  # of the mean diagonal
FIRST_PENALTY = 0.1  # of the largest product of a vector with an atom
PACE = 0.25  # how fast the penalty follows: its exponent on the ratio of values


@dataclass(frozen=True, slots=True)
class Dictionary:
    """Atoms (hidden, dim) float32 of length 1, the penalty, and mean values a code by epoch."""

    atoms: np.ndarray
    penalty: float
    num_values: tuple[float, ...]


def fit_dictionary(
    vectors: np.ndarray,
    settings: SparseConfig,
    hidden: int,
    seed: int,
    on_epoch: Callable[[int], None] | None = None,
) -> Dictionary:
    """Learn atoms and a penalty under which codes of about k values rebuild the vectors.

    Args:
        vectors: (n, dim) float32, centred and scaled.
        settings: k, epochs and batch size.
        hidden: number of atoms.
        seed: of the first atoms and of the order.
        on_epoch: called with the epochs done.
    """
    draw = np.random.default_rng(seed)
    atoms = _unit(_sampled(vectors, hidden, draw))
    penalty = FIRST_PENALTY * float((vectors[:256] @ atoms.T).max(initial=0.0)) or FIRST_PENALTY
    products = np.zeros((hidden, hidden))
    targets = np.zeros((hidden, vectors.shape[1]))
    counts = []
    for epoch in range(settings.epochs):
        total = 0
        order = draw.permutation(len(vectors))
        for start in range(0, len(order), settings.batch_size):
            batch = vectors[order[start : start + settings.batch_size]]
            codes = nonnegative_codes(batch, atoms, penalty).codes
            values = int((codes > 0).sum())
            total += values
            products = MEMORY * products + codes.T @ codes
            targets = MEMORY * targets + codes.T @ batch
            atoms = _best_atoms(products, targets, atoms, batch, draw)
            penalty *= (max(values, 1) / (settings.k * len(batch))) ** PACE
        counts.append(total / len(vectors))
        if on_epoch:
            on_epoch(epoch + 1)
    return Dictionary(atoms, penalty, tuple(counts))


def _best_atoms(
    products: np.ndarray,
    targets: np.ndarray,
    atoms: np.ndarray,
    batch: np.ndarray,
    draw: np.random.Generator,
) -> np.ndarray:
    """Solve for atoms; those without use start again as vectors of the batch."""
    usage = np.diag(products)
    ridge = RIDGE * max(float(usage.mean()), np.finfo(np.float64).tiny)
    # Towards the atoms of before where the sums say nothing.
    system = products + ridge * np.eye(len(products))
    solved = np.linalg.solve(system, targets + ridge * atoms)
    unused = usage <= ridge * RIDGE
    solved[unused] = _sampled(batch, int(unused.sum()), draw)
    return _unit(solved)


def _sampled(vectors: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Return `count` random vectors with a little noise: no two alike, none zero."""
    chosen = vectors[draw.choice(len(vectors), size=count, replace=len(vectors) < count)]
    return chosen + 1e-2 * draw.standard_normal(chosen.shape)


def _unit(atoms: np.ndarray) -> np.ndarray:
    found: np.ndarray = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    return found.astype(np.float32)
