"""Further STS sets of the Hub, read as raw text (protocol `mteb`) from their test files.

The revisions are those of mteb's task definitions; of STS22 that of `STS22.v2`, which left out the
pairs with an empty side. Layouts differ, so files are found by what they are: the word `test` in
the path, and one of the forms

| name ends in (also .gz) | form |
| --- | --- |
| .jsonl, .json | one object a line |
| .csv, .tsv | columns under a header |
| .parquet (not .gz) | the same columns; needs pyarrow, and is read only where there is no other |

with the fields `sentence1`, `sentence2` and `score`, `similarity_score` or `label`. The subset of
a pair stands in a field `lang`, `language` or `subset`, else in the name of its file or folder.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast

from sempa_mlx.data.hub import cached_snapshot, fetch_snapshot
from sempa_mlx.data.readers import Faults, Row, has_suffix, read_csv, read_jsonl, scan_lines
from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.data.sts_files import scored_pair
from sempa_mlx.errors import DataError, Problem, UsageError


class HubSet(NamedTuple):
    """A data set on the Hub: repository, commit, and subsets (none: one task of its own)."""

    repo: str
    revision: str
    subsets: tuple[str, ...] = ()


_STS17 = "ko-ko ar-ar en-ar en-de en-en en-tr es-en es-es fr-en it-en nl-en"
_STS22 = "en de es pl tr ar ru zh fr de-en es-en it pl-en zh-en es-it de-fr de-pl fr-pl"
_STSB = "en de es fr it nl pl pt ru zh"

SETS = {
    "BIOSSES": HubSet("mteb/biosses-sts", "d3fb88f8f02e40887cd149695127462bbcf29b4a"),
    "STS17": HubSet(
        "mteb/sts17-crosslingual-sts",
        "faeb762787bd10488a50c8b5be4a3b82e411949c",
        tuple(_STS17.split()),
    ),
    "STS22": HubSet(
        "mteb/sts22-crosslingual-sts",
        "d31f33a128469b20e357535c39b82fb3c3f6f2bd",
        tuple(_STS22.split()),
    ),
    "STSb-multi": HubSet(
        "mteb/stsb_multi_mt",
        "29afa2569dcedaaa2fe6a3dcfebab33d28b82e8c",
        tuple(_STSB.split()),
    ),
}

_TEXT_FORMS = (".jsonl", ".json", ".csv", ".tsv")
_TEST = re.compile(r"(?<![a-z])test(?![a-z])")
_SCORES = ("score", "similarity_score", "label")
_SUBSETS = ("lang", "language", "subset")

_Pairs = dict[str, list[StsPair]]


def is_of_hub(name: str) -> bool:
    """Tell whether `name` is a set of the Hub, or `SET/SUBSET` of one."""
    return name.partition("/")[0] in SETS


def check_hub_names(names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raise a UsageError with every name that is neither a set nor a subset of one.

    `others` are names known elsewhere, to be offered as well.
    """
    problems = []
    for name in names:
        of, _, subset = name.partition("/")
        if of not in SETS:
            problems.append(_unknown(f"unknown STS task {name!r}", of, (*others, *SETS)))
        elif subset or "/" in name:
            known = SETS[of].subsets
            if subset not in known:
                problems.append(_unknown(f"{of} has no subset {subset!r}", subset, known))
    if problems:
        raise UsageError(problems)


def _unknown(what: str, name: str, known: Sequence[str]) -> Problem:
    if not known:
        return Problem(what, fix="it has no subsets; leave out what follows its name")
    folded = {each.casefold(): each for each in known}
    close = get_close_matches(name.casefold(), folded, n=1)
    hint = f"did you mean {folded[close[0]]}? " if close else ""
    return Problem(what, fix=f"{hint}Known: {', '.join(known)}")


def load_hub_tasks(names: Sequence[str]) -> tuple[StsTask, ...]:
    """Read sets by name (`BIOSSES`, `STS17/en-de`), from the Hub's cache or the Hub.

    A name without a subset stands for all of them, each a task of its own. Texts stay as they are.

    Raises:
        UsageError: unknown sets or subsets.
        DataError: faults in the test files, a subset that they do not have, files in a form that
            cannot be read, or the Hub is out of reach or does not give them out.
        ResourceError: the cache cannot be written.
    """
    check_hub_names(names)
    asked: dict[str, dict[str, None]] = {}
    for of, _, subset in (name.partition("/") for name in names):
        asked.setdefault(of, {}).update(dict.fromkeys([subset] if subset else _subsets(of)))
    tasks = []
    for of, subsets in asked.items():
        pairs, folder = _read_set(of, tuple(subsets))
        origin = f"{SETS[of].repo}@{folder.name}"
        for subset in subsets:
            name = f"{of}/{subset}" if subset else of
            tasks.append(StsTask(name, "mteb", tuple(pairs[subset]), origin=origin))
    return tuple(tasks)


def _subsets(of: str) -> tuple[str, ...]:
    return SETS[of].subsets or ("",)


def _read_set(of: str, asked: Sequence[str]) -> tuple[_Pairs, Path]:
    """Return the pairs of each subset asked for, and the folder that they are from."""
    repo, revision, _ = SETS[of]
    choose = partial(_test_files, repo)
    # Files of some subsets may have been fetched by another program; then the Hub is asked.
    folder = cached_snapshot(repo, revision)
    names = _names_below(folder) if folder else []
    if folder and any(_is_test(name) for name in names):
        pairs = _read_files(of, folder, choose(names), asked)
        if all(pairs.get(subset) for subset in asked):
            return pairs, folder
    instead = "run this again; what is fetched once stays in the cache"
    fetched = fetch_snapshot(repo, revision, f"{of} ({repo})", choose, instead=instead)
    if isinstance(fetched, Problem):
        raise DataError(fetched, state="nothing was started")
    names = choose(_names_below(fetched))
    pairs = _read_files(of, fetched, names, asked)
    absent = [subset for subset in asked if not pairs.get(subset)]
    if absent:
        what = f"no pairs of {', '.join(absent)}" if absent[0] else "no pairs"
        raise DataError(Problem(what, str(fetched), f"read: {', '.join(names)}"[:200]))
    return pairs, fetched


def _names_below(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _is_test(name: str) -> bool:
    forms = (*_TEXT_FORMS, ".parquet")
    return bool(_TEST.search(name.lower())) and has_suffix(Path(name), forms)


def _test_files(repo: str, names: Sequence[str]) -> list[str]:
    """Return the test files to read: those of a text form, else parquet files.

    Raises:
        DataError: there are none, or only parquet files and no pyarrow.
    """
    tests = [name for name in names if _is_test(name)]
    text = [name for name in tests if has_suffix(Path(name), _TEXT_FORMS)]
    if not tests:
        what = f"no test files in a form that can be read: {', '.join(_TEXT_FORMS)} or .parquet"
        raise DataError(Problem(what, repo, f"it has {', '.join(names)}"[:200]))
    if not text and find_spec("pyarrow") is None:
        what = "the test files are parquet, which pyarrow reads"
        raise DataError(
            Problem(what, repo, ", ".join(tests)[:200], "pip install 'sempa-mlx[parquet]'")
        )
    return text or tests


def _read_files(of: str, folder: Path, names: Sequence[str], asked: Collection[str]) -> _Pairs:
    """Return the pairs of the subsets asked for, each in the order of files and rows.

    A subset that two files hold alike, such as one of a language and one of all, counts once.
    """
    faults = Faults()
    found: dict[str, dict[tuple[StsPair, ...], None]] = {}
    for name in names:
        for subset, pairs in _read_file(folder, name, SETS[of], asked, faults).items():
            found.setdefault(subset, {})[tuple(pairs)] = None
    faults.raise_if_any()
    return {subset: [pair for part in parts for pair in part] for subset, parts in found.items()}


def _read_file(
    folder: Path, name: str, source: HubSet, asked: Collection[str], faults: Faults
) -> _Pairs:
    path = folder / name
    told = _subset_of(name, source.subsets)
    pairs: _Pairs = {}
    for row in _rows(path):
        if isinstance(row, Problem):
            faults.add(row)
            continue
        place, fields = f"{path}:{row[0]}", row[1]
        columns = _columns(place, fields)
        if isinstance(columns, Problem):  # a file of another form: each row would tell the same
            faults.add(columns)
            break
        tag = next((fields[key] for key in _SUBSETS if key in fields), told)
        subset = str(tag).lower().replace("_", "-") if source.subsets else ""
        if subset in asked:
            read = scored_pair(place, [fields[column] for column in columns], faults)
            pairs.setdefault(subset, []).extend(read)
    return pairs


def _subset_of(name: str, subsets: Sequence[str]) -> str:
    """Return the subset that a path names as a word, the innermost and longest first, or ""."""
    for part in reversed(PurePosixPath(name.lower().replace("_", "-")).parts):
        for subset in sorted(subsets, key=len, reverse=True):
            if re.search(rf"(?<![a-z]){subset}(?![a-z])", part):
                return subset
    return ""


def _columns(place: str, fields: dict[str, object]) -> tuple[str, str, str] | Problem:
    """Return the fields of score and sentences, or the Problem of those that are not there."""
    score = next((key for key in _SCORES if key in fields), "score")
    names = (score, "sentence1", "sentence2")
    absent = [f"`{name}`" for name in names if name not in fields]
    if absent:
        found = f"there are: {', '.join(fields)}"[:120]
        return Problem(f"no {' and no '.join(absent)}", place, found)
    return names


def _rows(path: Path) -> Iterator[Row | Problem]:
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if has_suffix(path, (".csv",)):
        return read_csv(path)
    return _tab_rows(path) if has_suffix(path, (".tsv",)) else read_jsonl(path)


def _tab_rows(path: Path) -> Iterator[Row | Problem]:
    header: list[str] | None = None
    for line in scan_lines(path):
        if isinstance(line, Problem):
            yield line
            continue
        cells = line.text.split("\t")
        if header is None:
            header = cells
        elif len(cells) != len(header):
            what = f"{len(cells)} columns instead of {len(header)}"
            yield Problem(what, f"{path}:{line.number}", line.text[:60])
        else:
            yield line.number, dict(zip(header, cells, strict=True))


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        table = import_module("pyarrow.parquet").read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(Problem(f"broken parquet file: {error}", str(path))) from error
    yield from enumerate(cast("list[dict[str, object]]", table.to_pylist()), 1)
