"""Preference files in, `PreferenceRecord`s and a report out.

The container goes by the name (`.jsonl`, `.json`, `.ndjson`, `.csv`, each also `.gz`), the format
by the keys of the rows (`preference_rows`). Faulty rows are errors, all of them reported at once.
Sound rows that cannot teach anything are dropped and counted: those whose candidates do not differ,
exact repeats, and rows without a neutral sentence where three candidates are asked for.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sempa_mlx.data.preference_rows import (
    OPTIONAL,
    REQUIRED,
    Draft,
    Fields,
    Plan,
    draft_row,
)
from sempa_mlx.data.readers import Faults, Row, has_suffix, read_csv, read_jsonl
from sempa_mlx.data.records import PreferenceRecord
from sempa_mlx.data.templates import SYSTEM_PROMPT, paraphrase_prompt
from sempa_mlx.errors import DataError, Problem, UsageError

NO_DIFFERENCE = "candidates do not differ"
REPEATED = "exact repeat of an earlier row"
FAULTY = "faulty row"

LISTED = 10_000  # faults that are told one by one to who asks for all
_NAMES = {2: ("anchor", "chosen", "rejected"), 3: ("anchor", "chosen", "neutral", "rejected")}


@dataclass(frozen=True)
class PreferenceReport:
    """What a file held: rows read, rows kept, rows dropped by rule, mean words a text.

    `mean_words` has the keys anchor, chosen, rejected (and neutral for three candidates), counted
    on blanks over the kept rows; for chat rows the anchor is the last turn of the prompt.
    `ignored_keys` are keys of the rows that their format gives no meaning.
    """

    path: str
    format: str
    rows: int
    kept: int
    dropped: tuple[tuple[str, int], ...]
    mean_words: dict[str, float]
    ignored_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreferenceData:
    """The kept rows of a file, in its order, and the report on it."""

    records: tuple[PreferenceRecord, ...]
    report: PreferenceReport


class _Reading:
    """What reading one file has found so far."""

    def __init__(self, path: Path, plan: Plan, faults: Faults) -> None:
        self.path, self.plan, self.faults = path, plan, faults
        self.records: list[PreferenceRecord] = []
        self._form = ""
        self._rows = 0
        self._seen: set[tuple[object, ...]] = set()
        self._dropped: Counter[str] = Counter()
        self._words: Counter[str] = Counter()
        self._keys: set[str] = set()

    def take(self, item: Row | Problem) -> None:
        """Keep a row, drop it by rule, or note its faults."""
        self._rows += 1
        if isinstance(item, Problem):
            return self._reject(item)
        number, values = item
        fields = Fields(f"{self.path}:{number}", values)
        form, draft = draft_row(fields, self._form, self.plan)
        if fields.faults:
            return self._reject(*fields.faults)
        self._form = form
        self._keys |= values.keys()
        drop = draft.drop or self._useless(draft)
        if drop:
            self._dropped[drop] += 1
        else:
            self._keep(draft, number)

    def _reject(self, *problems: Problem) -> None:
        self.faults.add(*problems)
        self._dropped[FAULTY] += 1

    def _useless(self, draft: Draft) -> str:
        if len({text.strip() for text in draft.candidates}) < len(draft.candidates):
            return NO_DIFFERENCE
        key = (draft.prompt, draft.candidates)
        if key in self._seen:
            return REPEATED
        self._seen.add(key)
        return ""

    def _keep(self, draft: Draft, number: int) -> None:
        self.records.append(PreferenceRecord(draft.prompt, draft.candidates, number, draft.anchor))
        texts = (draft.anchor, *draft.candidates)
        for name, text in zip(_NAMES[self.plan.candidates], texts, strict=True):
            self._words[name] += len(text.split())

    def close(self) -> None:
        """Note the faults that only the end of a file shows."""
        if not self._rows:
            self.faults.add(Problem("no rows", str(self.path), fix="give it at least one"))
        elif not self.records and not self.faults.count:
            reasons = ", ".join(f"{why}: {count:,}" for why, count in self._dropped.items())
            self.faults.add(Problem("no row is left to train on", str(self.path), reasons))

    def report(self) -> PreferenceReport:
        """Return the report on what was read."""
        kept = len(self.records)
        known = {*REQUIRED.get(self._form, ()), *OPTIONAL.get(self._form, ())}
        return PreferenceReport(
            path=str(self.path),
            format=self._form,
            rows=self._rows,
            kept=kept,
            dropped=tuple(self._dropped.most_common()),
            mean_words={name: words / kept for name, words in self._words.items()},
            ignored_keys=tuple(sorted(self._keys - known)),
        )


def _rows(path: Path) -> Iterator[Row | Problem]:
    if has_suffix(path, (".jsonl", ".json", ".ndjson")):
        return read_jsonl(path)
    if has_suffix(path, (".csv",)):
        return read_csv(path)
    fix = "give a .jsonl or .csv file (or .gz of one) and name it so"
    raise DataError(Problem("the name tells no known file type", str(path), fix=fix))


def _read(path: Path, plan: Plan, limit: int | None, faults: Faults) -> _Reading:
    if plan.candidates not in _NAMES:
        raise UsageError(Problem(f"{plan.candidates} candidates", fix="ask for 2 or 3"))
    if limit is not None and limit < 1:
        raise UsageError(Problem(f"a limit of {limit} rows", fix="ask for 1 or more"))
    paraphrase_prompt(plan.template, "")  # an unknown template must fail before any row is read
    reading = _Reading(path, plan, faults)
    for item in _rows(path):
        reading.take(item)
        if len(reading.records) == limit:
            break
    reading.close()
    return reading


def read_preferences(
    path: Path,
    *,
    template: str = "P1",
    system: str | None = SYSTEM_PROMPT,
    limit: int | None = None,
    candidates: int = 2,
    skip_faulty: bool = False,
) -> PreferenceData:
    """Read the preference rows of a file, best candidate first.

    Args:
        path: a `.jsonl` or `.csv` file, plain or `.gz`.
        template: paraphrase template (P1 to P5) around the anchor of triplets.
        system: system text before the prompts of triplets; None for no system turn.
        limit: keep the first so many rows that are kept, and read no further.
        candidates: 2 for chosen and rejected; 3 for entailment, neutral, contradiction.
        skip_faulty: drop and count faulty rows instead; for files the user cannot mend.

    Raises:
        DataError: with every fault of the rows read, or no row is left; nothing is returned then.
        UsageError: unknown template, or a limit or candidate count that makes no sense.
    """
    reading = _read(path, Plan(template, system, candidates), limit, Faults())
    if not (skip_faulty and reading.records):
        reading.faults.raise_if_any()
    return PreferenceData(tuple(reading.records), reading.report())


def check_preferences(
    path: Path, *, candidates: int = 2
) -> tuple[PreferenceReport, tuple[Problem, ...]]:
    """Read a whole file and return the report on it and its faults, without raising for those.

    A file with more than `LISTED` faults has the others counted in a last one.

    Raises:
        DataError: the file itself cannot be read.
    """
    reading = _read(path, Plan("P1", None, candidates), None, Faults(LISTED))
    return reading.report(), reading.faults.problems()
