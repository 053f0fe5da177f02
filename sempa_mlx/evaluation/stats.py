"""Statistics over scores, on scipy. No mlx here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

RESAMPLES = 2000
BLOCK_ELEMENTS = 2**16  # pairs drawn at once, over resamples


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile interval over the resamples that have a value; NaN if none has.

    `num_undefined` of `num_resamples` had none: all their pairs had one score, or one prediction.
    """

    low: float
    high: float
    num_resamples: int
    num_undefined: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of a sample, and its values on bootstrap resamples (none if not asked for).

    Both are NaN where undefined. Estimates from the same pairs, seed and number of resamples drew
    the same pairs each time, so their differences are those of a paired bootstrap.
    """

    value: float
    resampled: np.ndarray = field(
        default_factory=lambda: np.empty(0), compare=False, repr=False
    )  # (resamples,) float64

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the percentile interval (Efron & Tibshirani 1993, chapter 13)."""
        return _percentiles(self.resampled, confidence)


@dataclass(frozen=True, slots=True)
class Difference:
    """What one system has more than another on the same pairs: value, interval, p.

    `p_value` is two-sided, for the hypothesis of no difference: twice the smaller share of
    resampled differences on either side of 0, each side counted with one more, so never 0 (Efron &
    Tibshirani 1993, chapter 15; Davison & Hinkley 1997, section 4.2). NaN where undefined.
    """

    value: float
    interval: Interval
    p_value: float


def spearman(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Return Spearman's rank correlation, ties by average rank, in [-1, 1].

    NaN where it is undefined: fewer than two pairs, or a side that is constant.

    Raises:
        ValueError: the sides differ in length.
    """
    from scipy.stats import rankdata  # costs half a second to import

    if gold.shape != predicted.shape:
        raise ValueError(f"shapes differ: {gold.shape} and {predicted.shape}")
    if len(gold) < 2:
        return float("nan")
    left, right = rankdata(gold), rankdata(predicted)
    left -= left.mean()
    right -= right.mean()
    norm = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / norm) if norm > 0 else float("nan")


def bootstrap_spearman(
    gold: np.ndarray,
    predicted: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int | Sequence[int] = 0,
) -> Estimate:
    """Estimate Spearman's correlation; resample pairs with replacement to see how far to trust it.

    Ranks are taken anew in each resample, ties by average rank: the values are those that
    `scipy.stats.bootstrap` finds with `paired=True` and the same generator.

    Raises:
        ValueError: the sides differ in length.
    """
    value = spearman(gold, predicted)
    resampled = np.full(resamples, np.nan)
    # A NaN has no rank; numpy would sort it to the end.
    if len(gold) < 2 or np.isnan(gold).any() or np.isnan(predicted).any():
        return Estimate(value, resampled)
    sides = [np.unique(side, return_inverse=True)[1] for side in (gold, predicted)]
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_ELEMENTS // len(gold))
    for start in range(0, resamples, block):
        size = (min(block, resamples - start), len(gold))
        drawn = generator.integers(0, len(gold), size)
        left, right = (_centred_ranks(side[drawn]) for side in sides)
        norm = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
        dots = (left * right).sum(axis=1)
        found = resampled[start : start + block]
        np.divide(dots, norm, out=found, where=norm > 0)
    return Estimate(value, resampled)


def _centred_ranks(classes: np.ndarray) -> np.ndarray:
    """Return average ranks less their mean, row by row, of (rows, n) small integers."""
    rows, count = classes.shape
    num_classes = int(classes.max()) + 1
    flat = classes + num_classes * np.arange(rows)[:, None]
    sizes = np.bincount(flat.ravel(), minlength=rows * num_classes).reshape(rows, num_classes)
    # The class with ranks a to b has the average rank (a + b) / 2 = b - (size - 1) / 2.
    ranks = sizes.cumsum(axis=1) - (sizes - 1) / 2 - (count + 1) / 2
    found: np.ndarray = np.take_along_axis(ranks, classes, axis=1)
    return found


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Return the plain mean of independent estimates with equally many resamples."""
    resampled = np.mean([estimate.resampled for estimate in estimates], axis=0)
    return Estimate(float(np.mean([estimate.value for estimate in estimates])), resampled)


def paired_difference(
    estimate: Estimate, reference: Estimate, confidence: float = 0.95
) -> Difference:
    """Compare two estimates that drew the same pairs: `estimate` less `reference`."""
    differences = estimate.resampled - reference.resampled
    defined = differences[~np.isnan(differences)]
    p_value = float("nan")
    if len(defined):
        rarer = min((defined <= 0).sum(), (defined >= 0).sum())
        p_value = min(1.0, 2 * (1 + float(rarer)) / (1 + len(defined)))
    interval = _percentiles(differences, confidence)
    return Difference(estimate.value - reference.value, interval, p_value)


def _percentiles(values: np.ndarray, confidence: float) -> Interval:
    defined = values[~np.isnan(values)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (np.nan, np.nan)
    return Interval(float(low), float(high), len(values), len(values) - len(defined))


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return row-wise cosines of two (n, dim) arrays as (n,) float64.

    0 where a row is zero, NaN where one is not finite.
    """
    left, right = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinity less infinity, or over itself
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        dots = np.einsum("ij,ij->i", left, right)
        found: np.ndarray = np.divide(dots, norms, out=np.zeros_like(dots), where=norms != 0)
    return found
