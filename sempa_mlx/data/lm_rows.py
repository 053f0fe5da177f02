"""Rows of benchmark files, and their fields, checked one by one: every fault is collected."""

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sempa_mlx.data.readers import Faults, parse_json, read_jsonl, read_lines, text_fault
from sempa_mlx.errors import Problem


class Fields:
    """The fields of a row. Each reading notes what is wrong, and then returns a stand-in."""

    def __init__(self, place: str, values: dict[str, Any], faults: Faults) -> None:
        """Keep a row and where it stands."""
        self._place, self._values, self._faults = place, values, faults

    def __contains__(self, name: str) -> bool:
        """Tell whether the row has the field."""
        return name in self._values

    def text(self, name: str, *, may_be_empty: bool = False) -> str:
        """Return a text that is not blank, unless it may be empty."""
        found = self._values.get(name)
        if may_be_empty and found == "":
            return ""
        if name not in self:
            self._note(f"no field `{name}`")
            return "?"
        return self._checked(name, found)

    def texts(self, name: str, count: int | None = None) -> list[str]:
        """Return two texts or more, or `count` of them."""
        found = self._values.get(name)
        if not isinstance(found, list) or len(found) < 2 or len(found) != (count or len(found)):
            self._note(f"`{name}` is not a list of {count or 'two or more'} texts", found)
            return ["?"] * (count or 2)
        return [self._checked(name, each) for each in found]

    def index(self, name: str, count: int) -> int:
        """Return a whole number below `count`; it may be spelled as a text."""
        found = self._values.get(name)
        number = int(found) if isinstance(found, str) and found.isdecimal() else found
        if type(number) is not int or not 0 <= number < count:
            self._note(f"`{name}` is not a number from 0 to {count - 1}", found)
            return 0
        return number

    def labels(self, name: str) -> dict[str, bool]:
        """Return whether each answer is true; the row says 1 or 0, and some of each."""
        found = self._values.get(name)
        if not isinstance(found, dict) or sorted({*map(repr, found.values())}) != ["0", "1"]:
            self._note(f"`{name}` does not map answers to 1 and 0, some of each", found)
            return {"?": True}
        return {self._checked(name, answer): label == 1 for answer, label in found.items()}

    def _checked(self, name: str, found: object) -> str:
        wrong = text_fault(found)
        if wrong:
            self._note(f"`{name}` {wrong}")
        return str(found)

    def _note(self, what: str, found: object = None) -> None:
        evidence = "" if found is None else json.dumps(found, ensure_ascii=False)[:60]
        self._faults.add(Problem(what, self._place, evidence))


def benchmark_rows(root: Path, names: Sequence[str], faults: Faults) -> Iterator[Fields]:
    """Yield the rows of the first of these files that is there, in `.gz` too.

    A name in `.jsonl` holds an object a line, one in `.json` a list of objects.
    """
    path = _find(root, names, faults)
    if path is None:
        return
    count = 0
    rows = _list_rows if ".json" in path.suffixes else _line_rows
    for place, values in rows(path, faults):
        count += 1
        yield Fields(place, values, faults)
    if not count:
        faults.add(Problem("no rows", str(path)))


def _find(root: Path, names: Sequence[str], faults: Faults) -> Path | None:
    candidates = [root / f"{name}{packed}" for name in names for packed in ("", ".gz")]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        there = [path.name for path in root.iterdir()] if root.is_dir() else []
        close = get_close_matches(names[0], there, n=1)
        hint = f"is it {close[0]}? " if close else ""
        what = f"no file {' or '.join(names)}"
        faults.add(Problem(what, str(root), fix=f"{hint}the name counts; .gz may follow"))
    return found


def _line_rows(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in read_jsonl(path):
        if isinstance(row, Problem):
            faults.add(row)
        else:
            yield f"{path}:{row[0]}", row[1]


def _list_rows(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = parse_json("\n".join(line.text for line in read_lines(path)))
    except json.JSONDecodeError as error:
        faults.add(Problem(f"not JSON: {error.msg}", f"{path}:{error.lineno}"))
        return
    except (ValueError, RecursionError) as error:
        faults.add(Problem(f"not usable JSON: {error}", str(path)))
        return
    if not isinstance(rows, list):
        faults.add(Problem("not a JSON list", str(path)))
        return
    for number, row in enumerate(rows, 1):
        place = f"{path}: item {number}"
        if isinstance(row, dict):
            yield place, row
        else:
            faults.add(Problem("not a JSON object", place, json.dumps(row)[:60]))
