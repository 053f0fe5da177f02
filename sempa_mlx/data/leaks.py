"""Which sentences of STS test sets stand in training rows, where, and as what.

A test sentence is found at one of three levels, each of which includes the one before: `exact`
(blanks at the ends aside), `normalised` (equal without case, blanks and punctuation, so that
SentEval's tokenised text meets raw text), `near` (Jaccard index of character 5-grams 0.8 or more).
Whole texts are compared: a sentence inside a longer prompt is not seen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, NamedTuple

from sempa_mlx.data.near_duplicates import NearIndex, normal_form
from sempa_mlx.data.records import PreferenceRecord, StsTask

Level = Literal["exact", "normalised", "near"]
Role = Literal["anchor", "chosen", "neutral", "rejected"]

LEVELS: tuple[Level, ...] = ("exact", "normalised", "near")
ROLES: tuple[Role, ...] = ("anchor", "chosen", "neutral", "rejected")


@dataclass(frozen=True, slots=True)
class Leak:
    """A test sentence and the closest training text, the first in the file among equals.

    `similarity` is the Jaccard index of 5-grams in [0.8, 1].
    """

    sentence: str
    level: Level
    line: int
    role: Role
    text: str
    similarity: float


@dataclass(frozen=True, slots=True)
class LeakCounts:
    """What is found at a level or below it.

    `sentences` and `roles` count distinct test sentences, a sentence in each role it has. Of the
    task's pairs, `both_sides` have both sentences in training and `one_row` have them as two texts
    of one row. `lines` are the training lines of all that.
    """

    sentences: int
    roles: dict[Role, int]
    both_sides: int
    one_row: int
    lines: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TaskLeaks:
    """The leaks of one task: counts by level, and every leaked sentence, the closest first."""

    task: str
    protocol: str
    num_sentences: int
    num_pairs: int
    counts: dict[Level, LeakCounts]
    leaks: tuple[Leak, ...]

    def share(self, level: Level = "normalised") -> float:
        """Return the share of the distinct test sentences found, in [0, 1]; NaN without any."""
        found = self.counts[level].sentences
        return found / self.num_sentences if self.num_sentences else float("nan")


def find_leaks(
    records: Iterable[PreferenceRecord], tasks: Sequence[StsTask]
) -> tuple[TaskLeaks, ...]:
    """Look for the sentences of `tasks` among anchors and candidates of `records`.

    The first candidate counts as chosen, the last as rejected, one between them as neutral. One
    pass is made over the records; memory grows with the test sentences and with what is found.
    """
    search = _Search(tasks)
    for record in records:
        search.take(record)
    return tuple(_task_leaks(task, search) for task in tasks)


class _Place(NamedTuple):
    """Where a test sentence was found; the smallest of several gives the most away."""

    level: int
    line: int
    role: int
    similarity: float
    text: str


def _sides(task: StsTask) -> list[tuple[str, str]]:
    return [(pair.sentence1.strip(), pair.sentence2.strip()) for pair in task.pairs]


def _roles(record: PreferenceRecord) -> list[tuple[int, str]]:
    chosen, *neutral, rejected = record.candidates
    middle = [(2, text) for text in neutral]
    return [(0, record.anchor), (1, chosen), *middle, (3, rejected)]


class _Search:
    """The sentences of test sets, and where they were found so far."""

    def __init__(self, tasks: Sequence[StsTask]) -> None:
        self.places: dict[str, list[_Place]] = {}
        self.one_row: dict[tuple[str, str], int] = {}
        self._partners: dict[str, set[str]] = {}
        for left, right in (sides for task in tasks for sides in _sides(task)):
            self._partners.setdefault(left, set()).add(right)
            self._partners.setdefault(right, set())
        of_form: dict[str, list[str]] = {}
        for sentence in self._partners:
            of_form.setdefault(normal_form(sentence), []).append(sentence)
        self._near = NearIndex(tuple(of_form))
        self._sentences = tuple(of_form.values())

    def take(self, record: PreferenceRecord) -> None:
        """Note which test sentences, and which of their pairs, a row holds."""
        hits = []
        for role, text in _roles(record):
            found = self._found(text.strip())
            if found:
                hits.append({sentence: level for sentence, (level, _) in found.items()})
            for sentence, (level, similarity) in found.items():
                place = _Place(level, record.line, role, similarity, text)
                self.places.setdefault(sentence, []).append(place)
        # Two texts of a row are needed: one that is like both sides of a pair is not the pair.
        for one, other in permutations(hits, 2):
            self._note_pairs(one, other)

    def _found(self, text: str) -> dict[str, tuple[int, float]]:
        """Return the test sentences that a text gives away, each with level and similarity."""
        form = normal_form(text)
        found = {}
        for position, similarity in self._near.find(form).items():
            equal = position == self._near.position(form)
            for sentence in self._sentences[position]:
                level = 0 if sentence == text else 1 if equal else 2
                found[sentence] = level, similarity
        return found

    def _note_pairs(self, one: dict[str, int], other: dict[str, int]) -> None:
        for left, level in one.items():
            for right in self._partners[left] & other.keys():
                worst = max(level, other[right])
                self.one_row[left, right] = min(worst, self.one_row.get((left, right), worst))


def _task_leaks(task: StsTask, search: _Search) -> TaskLeaks:
    sides = _sides(task)
    sentences = list(dict.fromkeys(sentence for pair in sides for sentence in pair))
    places = {each: search.places[each] for each in sentences if each in search.places}
    leaks = [_leak(sentence, min(found)) for sentence, found in places.items()]
    return TaskLeaks(
        task.name,
        task.protocol,
        len(sentences),
        len(sides),
        {name: _counts(level, sides, places, search) for level, name in enumerate(LEVELS)},
        tuple(sorted(leaks, key=lambda leak: (LEVELS.index(leak.level), -leak.similarity))),
    )


def _leak(sentence: str, place: _Place) -> Leak:
    level, role = LEVELS[place.level], ROLES[place.role]
    return Leak(sentence, level, place.line, role, place.text, place.similarity)


def _counts(
    level: int,
    sides: Sequence[tuple[str, str]],
    places: dict[str, list[_Place]],
    search: _Search,
) -> LeakCounts:
    reached = {
        sentence: [place for place in found if place.level <= level]
        for sentence, found in places.items()
        if min(found).level <= level
    }
    roles = [{place.role for place in found} for found in reached.values()]
    none = len(LEVELS)
    return LeakCounts(
        sentences=len(reached),
        roles={name: sum(role in each for each in roles) for role, name in enumerate(ROLES)},
        both_sides=sum(left in reached and right in reached for left, right in sides),
        one_row=sum(search.one_row.get(pair, none) <= level for pair in sides),
        lines=tuple(sorted({place.line for found in reached.values() for place in found})),
    )
