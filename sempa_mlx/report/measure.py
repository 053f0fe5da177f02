"""What is measured for a report: base and trained model on the same scored pairs."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sempa_mlx.data.batching import spread
from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.postprocess import at_unit_length
from sempa_mlx.encoder.store import nearest
from sempa_mlx.evaluation.geometry import Geometry, measure_geometry
from sempa_mlx.evaluation.stats import (
    RESAMPLES,
    Difference,
    Estimate,
    bootstrap_spearman,
    paired_difference,
)
from sempa_mlx.evaluation.sts import distinct_sentences, pair_cosines, positive_rows
from sempa_mlx.evaluation.tokens import find_key_tokens, fold, spell
from sempa_mlx.report.projection import Maps, aligned_maps

POSITIVE_FROM = 4.0  # score of pairs that mean the same, as in `eval geometry`
NUM_JOINED = 12  # pairs that are named on the maps
NUM_EXAMPLES = 6  # sentences whose tokens are shown
NUM_QUERIES = 6
NUM_NEIGHBOURS = 3
NUM_TOKENS = 8  # of different forms
TOKEN_DEPTH = 40  # in which they are looked for
EXAMPLE_LENGTH = range(20, 91)  # characters: enough to say something, short enough to read


@dataclass(frozen=True, slots=True)
class Token:
    """A word of the vocabulary, and whether the sentence has it (case and blanks ignored)."""

    text: str
    in_sentence: bool


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A sentence near another, its cosine, and the score of the two if they are a pair."""

    text: str
    cosine: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Joined:
    """A pair that is named on the maps: the rows of its sentences, and people's score."""

    left: int
    right: int
    score: float


@dataclass(frozen=True, slots=True)
class System:
    """What was measured of one of the two systems.

    `cosines` are of the joined pairs, `tokens` of the example sentences (none if
    vectors are of an inner layer), `neighbours` of the queries, each in their order.
    """

    spearman: Estimate
    geometry: Geometry
    cosines: tuple[float, ...]
    tokens: tuple[tuple[Token, ...], ...]
    neighbours: tuple[tuple[Neighbour, ...], ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """Base and trained model on the same pairs.

    Attributes:
        label: where the pairs are from.
        num_pairs, num_available: pairs measured, of how many.
        scale: of the adapter in the trained system.
        base, trained: the two; the base is the same model with its adapter at 0.
        gain: of the trained model in Spearman's correlation, paired.
        num_positives: pairs scored `POSITIVE_FROM` or more.
        sentences: each once; `maps` has a point for each.
        joined: pairs that are named on the maps.
        examples, queries: sentences.
        remarks: what the reader has to know besides.
    """

    label: str
    num_pairs: int
    num_available: int
    scale: float
    base: System
    trained: System
    gain: Difference
    num_positives: int
    sentences: tuple[str, ...]
    maps: Maps
    joined: tuple[Joined, ...]
    examples: tuple[str, ...]
    queries: tuple[str, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Choice:
    """The pairs, and what of them is shown."""

    pairs: Sequence[StsPair]
    rows: dict[str, int]
    joined: tuple[Joined, ...]
    examples: tuple[str, ...]
    queries: tuple[str, ...]

    @property
    def positives(self) -> np.ndarray:
        """Row numbers of pairs that mean the same, (pairs, 2) int64."""
        return positive_rows(self.pairs, self.rows, POSITIVE_FROM)


def measure(
    trained: Encoder,
    task: StsTask,
    num_pairs: int,
    on_progress: Callable[[int], None] | None = None,
) -> Measured | str:
    """Measure a run's encoder and its base on `num_pairs` pairs, spread evenly over the task.

    A fitted map of vectors belongs to one scale of the adapter, so it is left out for both.

    Args:
        trained: as `Encoder.load` gives it for a run folder.
        task: one or more scored pairs.
        num_pairs: 1 or more; all if there are fewer.
        on_progress: called with the number of texts embedded.

    Returns:
        What was found, or the reason why there is nothing to find: vectors that are not finite.
    """
    remarks = []
    if trained.settings.post is not None:
        remarks.append("The fitted map of the vectors is left out, for base and trained alike.")
        trained = Encoder(trained.loaded, replace(trained.settings, post=None))
    choice = _chosen(spread(task.pairs, num_pairs))
    texts = list(choice.rows)
    systems, vectors = [], []
    for name, encoder in (("base", trained.with_scale(0.0)), ("trained", trained)):
        found = encoder.encode(texts, on_progress=on_progress)
        if not np.isfinite(found).all():
            return f"The {name} model's vectors hold NaN or infinity."
        systems.append(_measured(encoder, choice, found))
        vectors.append(found)
    base, after = systems
    return Measured(
        label=task.name,
        num_pairs=len(choice.pairs),
        num_available=len(task.pairs),
        scale=trained.settings.adapter_scale,
        base=base,
        trained=after,
        gain=paired_difference(after.spearman, base.spearman),
        num_positives=len(choice.positives),
        sentences=tuple(texts),
        maps=aligned_maps(*map(_unit, vectors)),
        joined=choice.joined,
        examples=choice.examples,
        queries=choice.queries,
        remarks=tuple(remarks),
    )


def _chosen(pairs: Sequence[StsPair]) -> _Choice:
    texts = distinct_sentences([StsTask("", "", tuple(pairs))])
    rows = {text: row for row, text in enumerate(texts)}
    differing = [pair for pair in pairs if pair.sentence1 != pair.sentence2]
    near = _highest(differing, NUM_JOINED)
    positives = [pair for pair in differing if pair.score >= POSITIVE_FROM] or near
    readable = [text for text in texts if len(text) in EXAMPLE_LENGTH] or texts
    return _Choice(
        pairs,
        rows,
        joined=tuple(
            Joined(rows[pair.sentence1], rows[pair.sentence2], pair.score) for pair in near
        ),
        examples=tuple(spread(readable, NUM_EXAMPLES)),
        queries=tuple(dict.fromkeys(pair.sentence1 for pair in spread(positives, NUM_QUERIES))),
    )


def _highest(pairs: Sequence[StsPair], count: int) -> list[StsPair]:
    """Return the `count` pairs of the highest scores, in their order.

    Files group pairs by source: of equal ones at the limit, some of each source are taken.
    """
    least = sorted((pair.score for pair in pairs), reverse=True)[:count][-1:]
    above = [row for row, pair in enumerate(pairs) if pair.score > min(least, default=0)]
    equal = [row for row, pair in enumerate(pairs) if pair.score in least]
    return [pairs[row] for row in sorted(above + spread(equal, count - len(above)))]


def _measured(encoder: Encoder, choice: _Choice, vectors: np.ndarray) -> System:
    gold = np.array([pair.score for pair in choice.pairs])
    predicted = pair_cosines(choice.pairs, choice.rows, vectors)
    unit = _unit(vectors)
    return System(
        spearman=bootstrap_spearman(gold, predicted, resamples=RESAMPLES),
        geometry=measure_geometry(vectors, choice.positives),
        cosines=tuple(float(unit[pair.left] @ unit[pair.right]) for pair in choice.joined),
        tokens=_tokens(encoder, choice.examples),
        neighbours=tuple(_neighbours(text, unit, choice) for text in choice.queries),
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors at unit length, in float64."""
    return at_unit_length(vectors.astype(np.float64))


def _tokens(encoder: Encoder, examples: Sequence[str]) -> tuple[tuple[Token, ...], ...]:
    """Return the words that each example aligns with, best first, each form once.

    There are none of inner layers, which the output head cannot read.
    """
    if not encoder.reads_last_layer:
        return ()
    tokenizer = encoder.loaded.tokenizer
    form = partial(fold, tokenizer)
    found = find_key_tokens(encoder, examples, top=TOKEN_DEPTH)
    shown = []
    for own, aligned in zip(found.texts, found.aligned, strict=True):
        own_forms = {form(token) for token in own}
        firsts: dict[Hashable, int] = {}
        for token in aligned:
            firsts.setdefault(form(token), token)
        kept = list(firsts.values())[:NUM_TOKENS]
        # Heads of some models have more rows than their tokenizers have tokens.
        words = [spell(tokenizer, token).strip() or f"<{token}>" for token in kept]
        shown.append(
            tuple(
                Token(word, form(token) in own_forms)
                for word, token in zip(words, kept, strict=True)
            )
        )
    return tuple(shown)


def _neighbours(query: str, unit: np.ndarray, choice: _Choice) -> tuple[Neighbour, ...]:
    texts = list(choice.rows)
    partners = {
        other: pair.score
        for pair in choice.pairs
        for one, other in (
            (pair.sentence1, pair.sentence2),
            (pair.sentence2, pair.sentence1),
        )
        if one == query
    }
    row = choice.rows[query]
    near = nearest(unit, unit[row], NUM_NEIGHBOURS + 1)
    return tuple(
        Neighbour(texts[other], cosine, partners.get(texts[other]))
        for other, cosine in near
        if other != row
    )[:NUM_NEIGHBOURS]
