"""Text files in: lines, JSON objects and CSV rows, each with its line number.

Files are read strictly, as a stream: UTF-8, no NUL, only a line feed ends a line (a carriage return
before it is cut off), a byte order mark at the start is skipped, a name that ends in `.gz` is
unpacked. Faults inside a file come out as `Problem`s beside the good rows, so that a caller can
report all of them.

What a file can take of memory is bounded: a line has at most 64 MiB, and a packed file that unpacks
to more than that may not exceed 200 times its size (text packs to a third or a tenth).
"""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, cast

from sempa_mlx.errors import DataError, Problem

Row = tuple[int, dict[str, object]]

MAX_LINE = 64 * 2**20
MAX_RATIO = 200

_AS_UTF8 = "save the file as UTF-8"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file: its number from 1 and its text without the line end."""

    number: int
    text: str


class Faults:
    """All faults of a reading: the first hundred as they are, the others as a count.

    A file read in the wrong format has a fault in each row; nobody reads more than a screenful.
    """

    def __init__(self, shown: int = 100) -> None:
        self.shown, self.count = shown, 0
        self._first: list[Problem] = []

    def add(self, *problems: Problem) -> None:
        """Take up problems."""
        self.count += len(problems)
        self._first += problems[: self.shown - len(self._first)]

    def problems(self) -> tuple[Problem, ...]:
        """Return what was collected, with one closing line if some were only counted."""
        hidden = self.count - len(self._first)
        more = (Problem(f"{hidden:,} more faults, not listed"),) if hidden else ()
        return (*self._first, *more)

    def raise_if_any(self) -> None:
        """Raise a DataError with every problem, if there is one."""
        if self.count:
            raise DataError(self.problems(), state="nothing was started")


def _open(path: Path) -> IO[bytes]:
    if path.is_dir():
        raise DataError(Problem("is a folder", place=str(path), fix="name a file in it"))
    try:
        packed = path.suffix.lower() == ".gz"
        return cast("IO[bytes]", gzip.open(path)) if packed else path.open("rb")
    except FileNotFoundError:
        folder = path.parent
        names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
        close = get_close_matches(path.name, names, n=1)
        fix = f"did you mean {folder / close[0]}?" if close else "check the path"
        raise DataError(Problem("no such file", place=str(path), fix=fix)) from None
    except (OSError, ValueError) as error:
        raise DataError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> Problem:
    reason = getattr(error, "strerror", None) or str(error)
    return Problem(f"cannot be read: {reason}", place=str(path), fix="check its permissions")


def _decode(path: Path, number: int, raw: bytes) -> Line | Problem:
    place = f"{path}:{number}"
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    if b"\0" in raw:
        column = raw.index(b"\0") + 1
        return Problem("a NUL byte, so this is not a text file", place, f"byte {column}", _AS_UTF8)
    try:
        return Line(number, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        evidence = f"byte {error.start + 1} is 0x{raw[error.start]:02x}"
        return Problem("not UTF-8", place, evidence, _AS_UTF8)


def _raw_lines(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    packed = isinstance(stream, gzip.GzipFile)
    left = max(MAX_LINE, MAX_RATIO * path.stat().st_size) if packed else None
    while raw := stream.readline(MAX_LINE + 1):
        if len(raw) > MAX_LINE:
            what = f"a line of more than {MAX_LINE:,} bytes, so this is not a text file"
            raise DataError(Problem(what, str(path)))
        if left is not None:
            left -= len(raw)
            if left < 0:
                what = f"unpacks to more than {MAX_RATIO} times its size"
                raise DataError(Problem(what, str(path), fix="unpack it yourself: gunzip"))
        yield raw


def scan_lines(path: Path) -> Iterator[Line | Problem]:
    """Yield each line, or the Problem of a line that holds a NUL or is not UTF-8.

    Raises:
        DataError: the file is missing, a folder, unreadable, UTF-16 or a broken gzip file, or
            exceeds what a line or a packed file may hold.
    """
    try:
        with _open(path) as stream:
            for number, raw in enumerate(_raw_lines(path, stream), 1):
                if number == 1:
                    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise DataError(Problem("UTF-16 text", f"{path}:1", fix=_AS_UTF8))
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                yield _decode(path, number, raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fix = f"download or pack it again; `gzip -t {path}` tests it"
        raise DataError(Problem(f"broken gzip file: {error}", str(path), fix=fix)) from error
    except OSError as error:
        raise DataError(_unreadable(path, error)) from error


def read_lines(path: Path) -> Iterator[Line]:
    """Yield each line of a text file; blank lines too.

    Raises:
        DataError: as `scan_lines`, and at the first line that it finds at fault.
    """
    for line in scan_lines(path):
        if isinstance(line, Problem):
            raise DataError(line)
        yield line


def read_text(path: Path, *, state: str) -> str:
    """Return a whole text file with line feeds as line ends.

    Args:
        path: of the file.
        state: what was not done if it cannot be used, for the message.

    Raises:
        DataError: as `read_lines`, and if there is no text in it.
    """
    text = "\n".join(line.text for line in read_lines(path))
    if not text.strip():
        raise DataError(Problem("the file is empty", str(path)), state=state)
    return text


def parse_json(text: str) -> object:
    """Return the value of a JSON text in which no object has a key twice.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError, RecursionError: a key stands twice; a number or the nesting is too long.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {double!r} stands twice")
    return fields


def _parse_object(path: Path, line: Line) -> Row | Problem:
    place, evidence = f"{path}:{line.number}", line.text[:60]
    fix = "write one JSON object on each line"
    try:
        value = parse_json(line.text)
    except json.JSONDecodeError as error:
        return Problem(f"not JSON: {error.msg} at column {error.colno}", place, evidence, fix)
    except (ValueError, RecursionError) as error:
        return Problem(f"not usable JSON: {error}", place, evidence, fix)
    if not isinstance(value, dict):
        return Problem("not a JSON object", place, evidence, fix)
    return line.number, value


def read_jsonl(path: Path) -> Iterator[Row | Problem]:
    """Yield (line number, object) for each line that is not blank, or the Problem of that line.

    A key that stands twice in an object is a fault; `json` alone would keep the last.

    Raises:
        DataError: as `scan_lines`.
    """
    for line in scan_lines(path):
        if isinstance(line, Problem):
            yield line
        elif line.text.strip():
            yield _parse_object(path, line)


class _CsvFeed:
    """Hands lines to `csv.reader` and remembers on which line the current row began."""

    def __init__(self, path: Path) -> None:
        self.faults: list[Problem] = []
        self.start = 0
        self._lines = scan_lines(path)

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            if isinstance(line, Problem):
                self.faults.append(line)
                continue
            self.start = self.start or line.number
            yield line.text + "\n"


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]] | Problem]:
    feed = _CsvFeed(path)
    csv.field_size_limit(MAX_LINE)  # Python's own bound is far below what a line may hold
    rows = csv.reader(iter(feed), strict=True)
    while True:
        feed.start = 0
        try:
            cells = next(rows, None)
        except csv.Error as error:
            cells = []
            place = f"{path}:{feed.start}"
            fix = 'put fields with commas, quotes or line ends in "..." and write " inside as ""'
            feed.faults.append(Problem(f"not CSV: {error}", place, fix=fix))
        yield from feed.faults
        feed.faults.clear()
        if cells is None:
            return
        if cells:
            yield feed.start, cells


def read_csv(path: Path) -> Iterator[Row | Problem]:
    """Yield (line number of the row's start, cells by header name), or the Problem of that row.

    Fields are separated by commas and quoted in the standard way; a quoted field may run over
    several lines (its line ends become line feeds). Blank lines are skipped.

    Raises:
        DataError: as `scan_lines`.
    """
    header: list[str] | None = None
    for row in _csv_rows(path):
        if isinstance(row, Problem):
            yield row
            continue
        number, cells = row
        place = f"{path}:{number}"
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                yield Problem("a column name stands twice", place, ", ".join(header)[:60])
                return
        elif len(cells) != len(header):
            what = f"{len(cells)} fields instead of {len(header)}"
            yield Problem(what, place, ",".join(cells)[:60], "quote fields that hold commas")
        else:
            yield number, dict(zip(header, cells, strict=True))


def text_fault(value: object) -> str | None:
    """Return what keeps `value` from being a usable text, or None."""
    if not isinstance(value, str):
        return "is null" if value is None else f"has type {type(value).__name__}, not text"
    if not value.strip():
        return "holds only blanks" if value else "is empty"
    if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        return "holds half of a surrogate pair, which is no character"
    return None


def has_suffix(path: Path, suffixes: Iterable[str]) -> bool:
    """Tell whether the name ends in one of `suffixes`, `.gz` aside and in any case."""
    return path.name.lower().removesuffix(".gz").endswith(tuple(suffixes))
