"""Does a written model say what the adapted one says? Logits of both on real text, compared.

Fusing may lose the adapter: what it adds to a weight can be smaller than the step between two
quantised values. So the error is measured against what the adapter changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from sempa_mlx.data import demo
from sempa_mlx.data.readers import read_lines
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.lora import dialled

NUM_TEXTS = 12
LEAST_EFFECT = 1e-3  # of the logits: an adapter that changes less counts as changing that


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What the adapted model says.

    Attributes:
        rows: token ids of each text.
        logits: of each text, (tokens, vocabulary) float32.
        size: root mean square of all logits.
        effect: root mean square of what the adapter changes in them.
    """

    rows: tuple[tuple[int, ...], ...]
    logits: tuple[np.ndarray, ...]
    size: float
    effect: float


@dataclass(frozen=True, slots=True)
class LogitCheck:
    """How a written model compares with the adapted one.

    Attributes:
        error: root mean square of the difference of logits.
        largest: largest difference of a logit.
        effect: root mean square of what the adapter changes.
        share: the error as a share of the effect, which is at least `LEAST_EFFECT` of the logits.
        num_tokens: places in texts that were compared.
    """

    error: float
    largest: float
    effect: float
    share: float
    num_tokens: int

    def __str__(self) -> str:
        """Say the numbers in one line."""
        return (
            f"logits differ by {self.error:.2g} (root mean square over {self.num_tokens} tokens; "
            f"largest {self.largest:.2g}), {percent(self.share)} of the {self.effect:.2g} that the "
            "adapter changes"
        )


def percent(share: float) -> str:
    """Write a share with two digits."""
    return f"{100 * share:.2g}%" if share < 1 else f"{share:.0%}"


def packaged_texts() -> list[str]:
    """Return sentences that come with the program, spread over their file."""
    lines = [line.text for line in read_lines(Path(demo.__file__).parent / "sentences.txt")]
    return lines[:: len(lines) // NUM_TEXTS][:NUM_TEXTS]


def expected_logits(loaded: LoadedModel, scale: float, texts: Sequence[str]) -> Expected:
    """Run base and adapted model on texts, each alone.

    Args:
        loaded: the base with its adapter.
        scale: the dial.
        texts: of at least one token each.
    """
    rows = tuple(tuple(loaded.tokenizer.encode(text)) for text in texts)
    logits, squares, changes, count = [], 0.0, 0.0, 0
    for row in rows:
        with dialled(loaded.model, 0.0):
            base = _logits(loaded, row)
        with dialled(loaded.model, scale):
            adapted = _logits(loaded, row)
        logits.append(adapted)
        squares += _squares(adapted)
        changes += _squares(adapted - base)
        count += adapted.size
    return Expected(rows, tuple(logits), math.sqrt(squares / count), math.sqrt(changes / count))


def compare(loaded: LoadedModel, expected: Expected) -> LogitCheck:
    """Run a written model on the same tokens and compare; NaN is an infinite error."""
    squares, largest, count = 0.0, 0.0, 0
    for row, adapted in zip(expected.rows, expected.logits, strict=True):
        difference = _logits(loaded, row) - adapted
        squares += _squares(difference)
        largest = max(largest, float(np.abs(difference).max()))
        count += difference.size
    error = math.sqrt(squares / count) if math.isfinite(squares) else math.inf
    share = error / max(expected.effect, LEAST_EFFECT * expected.size)
    num_tokens = sum(map(len, expected.rows))
    return LogitCheck(error, largest, expected.effect, share, num_tokens)


def _logits(loaded: LoadedModel, row: Sequence[int]) -> np.ndarray:
    found: np.ndarray = np.array(loaded.model(mx.array([row]))[0].astype(mx.float32))
    return found


def _squares(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())
