"""Finding a method's layer and parameters on dev pairs, never on a test set."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from sempa_mlx.data.records import StsPair
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.interventions import Parameters
from sempa_mlx.encoder.tuned import Trial, Tuning
from sempa_mlx.evaluation.stats import cosines, spearman

MEMORY = 256 * 2**20  # bytes of vectors held at a time


def tune(
    encoder: Encoder,
    pairs: Sequence[StsPair],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Tuning:
    """Try every layer, and the method's grid of other parameters, on pairs scored by people.

    Every layer is read in the same forward pass, and variants share passes where they can. The
    highest Spearman wins; equal ones go to the later layer, then to the one tried first.

    Args:
        encoder: its own parameters do not count; nor does a map fitted after it.
        pairs: dev pairs.
        on_progress: called with the number of pairs done.
    """
    method, depth = encoder.method, encoder.depth
    default = method.defaults(depth)
    grid = list(
        dict.fromkeys([(default.block, default.strength), *method.intervention.grid(depth)])
    )
    variants = [Parameters(depth, block, strength) for block, strength in grid]
    found = _similarities(encoder, pairs, variants, on_progress)
    gold = np.array([pair.score for pair in pairs])
    trials = []
    for place, variant in enumerate(variants):
        for layer in range(depth + 1):
            parameters = Parameters(layer, variant.block, variant.strength)
            if not method.intervention.fault(parameters, depth):
                trials.append(Trial(parameters, spearman(gold, found[place, layer])))
    standard = Parameters(default.index(depth), default.block, default.strength)
    return Tuning(
        best=max(trials, key=_goodness),
        default=next(trial for trial in trials if trial.parameters == standard),
        tried=tuple(trials),
        pairs=len(pairs),
        pairs_digest=_digest(pairs),
    )


def _goodness(trial: Trial) -> tuple[float, int]:
    score = -math.inf if math.isnan(trial.spearman) else trial.spearman
    return score, trial.parameters.layer


def _similarities(
    encoder: Encoder,
    pairs: Sequence[StsPair],
    variants: Sequence[Parameters],
    on_progress: Callable[[int], None] | None,
) -> np.ndarray:
    """Return the cosines of pairs, (variants, layers, pairs) float64."""
    layers = range(encoder.depth + 1)
    a_pair = 2 * 4 * len(variants) * len(layers) * encoder.hidden_size
    size = max(8, MEMORY // a_pair)
    parts = []
    for start in range(0, len(pairs), size):
        chunk = pairs[start : start + size]
        left, right = [pair.sentence1 for pair in chunk], [pair.sentence2 for pair in chunk]
        vectors, _ = encoder.read([*left, *right], layers, variants)
        parts.append(
            np.stack(
                [
                    [cosines(layer[: len(chunk)], layer[len(chunk) :]) for layer in variant]
                    for variant in vectors
                ]
            )
        )
        if on_progress:
            on_progress(len(chunk))
    return np.concatenate(parts, axis=-1)


def _digest(pairs: Sequence[StsPair]) -> str:
    """Return 16 hex digits of the pairs and their scores, in order."""
    rows = [[pair.score, pair.sentence1, pair.sentence2] for pair in pairs]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
