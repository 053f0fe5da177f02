"""Files of sentence pairs with scores, in the forms that people keep them in.

| name ends in (also .gz) | form |
| --- | --- |
| .jsonl, .ndjson, .json | one object a line with the keys score, sentence1, sentence2 |
| .csv | columns of these names under a header, commas between, quoted in the standard way |
| .csv of STSBenchmark | seven columns or more between tabs: score and sentences are 5 to 7 |
| else | score, sentence, sentence between tabs, nothing quoted; or under a header of their names |
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sempa_mlx.data.readers import (
    Faults,
    Line,
    Row,
    has_suffix,
    read_csv,
    read_jsonl,
    scan_lines,
    text_fault,
)
from sempa_mlx.data.records import StsPair
from sempa_mlx.errors import Problem

NAMES = ("score", "sentence1", "sentence2")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


class Columns(NamedTuple):
    """Where a tab-separated file keeps what, counted from 0."""

    score: int
    sentence1: int
    sentence2: int
    most: int | None = None
    header: bool = False


TSV = Columns(0, 1, 2, most=3)
BENCHMARK = Columns(4, 5, 6)


def read_sts_file(path: Path) -> tuple[StsPair, ...]:
    """Read the pairs of one file, in its order, texts as they stand.

    Raises:
        DataError: with every fault: a column or key that is not there, a score that is not a finite
            number, an empty sentence, no pairs, or text that its reader refuses.
    """
    faults = Faults()
    if has_suffix(path, (".jsonl", ".ndjson", ".json")):
        pairs = _read_named(path, read_jsonl(path), faults)
    elif not has_suffix(path, (".csv",)):
        pairs = _read_tabbed(path, faults)
    elif len(_first_cells(path)) > max(BENCHMARK[:3]):
        pairs = read_table(path, BENCHMARK, faults)
    else:
        pairs = _read_named(path, read_csv(path), faults)
    faults.raise_if_any()
    return tuple(pairs)


def read_table(path: Path, columns: Columns, faults: Faults) -> list[StsPair]:
    """Read tab-separated rows; note their faults, or that there are none."""
    before = faults.count
    pairs: list[StsPair] = []
    for line in scan_lines(path):
        if isinstance(line, Problem):
            faults.add(line)
        elif line.number > 1 or not columns.header:
            pairs += row_pairs(path, line, columns, faults)
    return _some(path, pairs, faults, before)


def row_pairs(path: Path, line: Line, columns: Columns, faults: Faults) -> list[StsPair]:
    """Return the one pair of a row, or none after noting its faults."""
    place = f"{path}:{line.number}"
    cells = line.text.split("\t")
    least = max(columns[:3]) + 1
    if len(cells) < least or (columns.most and len(cells) > columns.most):
        what = f"{len(cells)} columns instead of {columns.most or least}"
        fix = "separate score and sentences by single tabs, with no tab inside a sentence"
        faults.add(Problem(what, place, line.text[:60], fix))
        return []
    return scored_pair(place, [cells[index] for index in columns[:3]], faults)


def scored_pair(place: str, values: Iterable[object], faults: Faults) -> list[StsPair]:
    """Return the one pair of a score and two sentences, or none after noting their faults."""
    score, *sentences = values
    before, number = faults.count, _finite(score)
    if number is None:
        faults.add(Problem("the score is not a finite number", place, str(score).strip()[:60]))
    for index, sentence in enumerate(sentences, 1):
        wrong = text_fault(sentence)
        if wrong:
            faults.add(Problem(f"sentence {index} {wrong}", place))
    if number is None or faults.count > before:
        return []
    return [StsPair(number, *map(str, sentences))]


def _finite(value: object) -> float | None:
    """Return a number, or text that spells one in digits, as a finite float."""
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value.strip()):
            return None
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return number if math.isfinite(number) else None


def _read_named(path: Path, rows: Iterable[Row | Problem], faults: Faults) -> list[StsPair]:
    before = faults.count
    pairs: list[StsPair] = []
    is_first = True
    for row in rows:
        if isinstance(row, Problem):
            faults.add(row)
            continue
        place, fields = f"{path}:{row[0]}", row[1]
        missing = _missing(str(path) if is_first else place, fields)
        if missing:
            faults.add(missing)
        else:
            pairs += scored_pair(place, [fields[name] for name in NAMES], faults)
        if missing and is_first:  # a file of another form: each row would tell the same
            break
        is_first = False
    return _some(path, pairs, faults, before)


def _read_tabbed(path: Path, faults: Faults) -> list[StsPair]:
    names = _first_cells(path)
    if not set(names) & set(NAMES):
        return read_table(path, TSV, faults)
    missing = _missing(f"{path}:1", names)
    if missing:
        faults.add(missing)
        return []
    score, left, right = map(names.index, NAMES)
    return read_table(path, Columns(score, left, right, most=len(names), header=True), faults)


def _first_cells(path: Path) -> list[str]:
    line = next(scan_lines(path), None)
    return line.text.split("\t") if isinstance(line, Line) else []


def _missing(place: str, names: Iterable[str]) -> Problem | None:
    absent = [f"`{name}`" for name in NAMES if name not in names]
    if not absent:
        return None
    found = f"there are: {', '.join(names)}"[:120]
    return Problem(f"no {' and no '.join(absent)}", place, found, f"name them {', '.join(NAMES)}")


def _some(path: Path, pairs: list[StsPair], faults: Faults, before: int) -> list[StsPair]:
    if not pairs and faults.count == before:
        faults.add(Problem("no pairs", str(path), fix="give it at least one"))
    return pairs
