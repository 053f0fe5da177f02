"""The seven STS test sets, from tab-separated files or from SentEval's own folders.

A task is looked for in two layouts below a root folder, the first that is there counts:

| task | tab-separated: score, sentence, sentence | SentEval (root or root/downstream) |
| --- | --- | --- |
| STS12 to STS16 | STS12/*.tsv, all files together | STS/STS12-en-test/STS.{input,gs}.*.txt |
| STSB | STSB/test.tsv | STS/STSBenchmark/sts-test.csv |
| SICKR | SICKR/{train,trial,test}.tsv | SICK/SICK_{train,trial,test_annotated}.txt |

Protocol `senteval` joins the words of a sentence by single blanks and takes SICK-R's test split
(4,927 pairs), as SimCSE, PromptEOL and SemPA do. Protocol `mteb` leaves the text as it is and takes
all three splits (9,927 pairs); give it raw text, SentEval's own files are tokenised.
"""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

from sempa_mlx.data.batching import spread
from sempa_mlx.data.readers import Faults, Line, scan_lines
from sempa_mlx.data.records import StsPair, StsSubset, StsTask
from sempa_mlx.data.sts_files import (
    BENCHMARK,
    TSV,
    Columns,
    read_sts_file,
    read_table,
    row_pairs,
)
from sempa_mlx.errors import DataError, Problem, UsageError

TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICKR")

Protocol = Literal["senteval", "mteb"]
TEXT_FORMS = {"senteval": "SentEval text", "mteb": "raw text"}

_SICK_SPLITS = {"senteval": ("test",), "mteb": ("train", "trial", "test")}
_SICK_NAMES = {"train": "SICK_train", "trial": "SICK_trial", "test": "SICK_test_annotated"}


_SICK = Columns(3, 1, 2, header=True)


def _read_parallel(inputs: Path, faults: Faults) -> list[StsPair]:
    """Read SentEval's STS.input.X.txt and STS.gs.X.txt; rows without a gold score are left out."""
    gold = inputs.with_name(inputs.name.replace("STS.input.", "STS.gs.", 1))
    # The organisers' own files of 2015 and 2016 hold source notes after the two sentences.
    columns = TSV._replace(most=None)
    pairs: list[StsPair] = []
    for line, score in zip_longest(scan_lines(inputs), scan_lines(gold)):
        if line is None or score is None:
            short, other = (inputs, gold) if line is None else (gold, inputs)
            faults.add(Problem(f"has fewer lines than {other.name}", str(short)))
            break
        if isinstance(line, Problem) or isinstance(score, Problem):
            faults.add(*(each for each in (line, score) if isinstance(each, Problem)))
        elif score.text.strip():
            # A tab in the score must not move the sentences by one column.
            gold_text = score.text.replace("\t", " ")
            row = Line(line.number, f"{gold_text}\t{line.text}")
            pairs += row_pairs(inputs, row, columns, faults)
    return pairs


class _Part(NamedTuple):
    """One file of a task; columns None stands for SentEval's pairs of files."""

    name: str
    path: Path
    columns: Columns | None


def _visible(folder: Path, pattern: str) -> list[Path]:
    # macOS leaves "._name" files beside the real ones when it unpacks archives.
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _tsv_parts(root: Path, task: str, protocol: Protocol) -> list[_Part]:
    folder = root / task
    if task == "STSB":
        paths = [folder / "test.tsv"]
    elif task == "SICKR":
        paths = [folder / f"{split}.tsv" for split in _SICK_SPLITS[protocol]]
    else:
        paths = _visible(folder, "*.tsv")
    return [_Part(path.stem, path, TSV) for path in paths] if folder.is_dir() else []


def _senteval_parts(base: Path, task: str, protocol: Protocol) -> list[_Part]:
    if task == "STSB":
        folder = base / "STS" / "STSBenchmark"
        parts = [_Part("test", folder / "sts-test.csv", BENCHMARK)]
    elif task == "SICKR":
        folder = base / "SICK"
        parts = [
            _Part(split, folder / f"{_SICK_NAMES[split]}.txt", _SICK)
            for split in _SICK_SPLITS[protocol]
        ]
    else:
        folder = base / "STS" / f"{task}-en-test"
        parts = [
            _Part(path.stem.removeprefix("STS.input."), path, None)
            for path in _visible(folder, "STS.input.*.txt")
        ]
    return parts if folder.is_dir() else []


def _parts(root: Path, task: str, protocol: Protocol) -> list[_Part]:
    return (
        _tsv_parts(root, task, protocol)
        or _senteval_parts(root, task, protocol)
        or _senteval_parts(root / "downstream", task, protocol)
    )


def _missing(root: Path, task: str) -> Problem:
    senteval = {"STSB": "STS/STSBenchmark", "SICKR": "SICK"}.get(task, f"STS/{task}-en-test")
    folders = f"{root / task} (.tsv files) or {root / senteval} (SentEval's files)"
    return Problem(f"no data for {task}", str(root), fix=f"fill {folders}, or use --data hub")


def _read_part(part: _Part, faults: Faults) -> list[StsPair]:
    try:
        if part.columns is None:
            return _read_parallel(part.path, faults)
        return read_table(part.path, part.columns, faults)
    except DataError as error:
        faults.add(*error.problems)
        return []


def _joined(pairs: Iterable[StsPair]) -> Iterator[StsPair]:
    for pair in pairs:
        yield StsPair(
            pair.score, " ".join(pair.sentence1.split()), " ".join(pair.sentence2.split())
        )


def _check_names(tasks: Sequence[str]) -> None:
    problems = []
    for task in tasks:
        if task not in TASKS:
            close = get_close_matches(task.upper().replace("-", ""), TASKS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            problems.append(Problem(f"unknown STS task {task!r}", fix=f"{hint}Known: {TASKS}"))
    if not tasks:
        problems.append(Problem("no STS task is named", fix=f"name some of {TASKS}"))
    if problems:
        raise UsageError(problems)


def load_sts_tasks(
    root: Path, tasks: Sequence[str] = TASKS, *, protocol: Protocol
) -> tuple[StsTask, ...]:
    """Read the named tasks below `root`, in the order named, in either layout.

    Matches SentEval's `sts.py` and `sick.py` readers (setting "all": one set a year) under
    `senteval`, and the pairs of the `mteb/*-sts` sets under `mteb`.

    Raises:
        UsageError: unknown task names.
        DataError: a task has no data, or any of its files has faults; all of them are told.
    """
    _check_names(tasks)
    if not root.is_dir():
        raise DataError(Problem("no such folder", str(root), fix="check the path, or use hub"))
    faults = Faults()
    loaded = []
    for task in tasks:
        parts = _parts(root, task, protocol)
        if not parts:
            faults.add(_missing(root, task))
        loaded.append(_task(task, protocol, parts, faults))
    faults.raise_if_any()
    return tuple(loaded)


def _task(task: str, protocol: Protocol, parts: Sequence[_Part], faults: Faults) -> StsTask:
    read = [tuple(_read_part(part, faults)) for part in parts]
    pairs = (pair for each in read for pair in each)
    subsets = [StsSubset(part.name, len(each)) for part, each in zip(parts, read, strict=True)]
    return StsTask(
        task,
        protocol,
        tuple(_joined(pairs) if protocol == "senteval" else pairs),
        tuple(subsets) if len(subsets) > 1 else (),
    )


def load_dev_pairs(path: Path, count: int | None) -> tuple[StsPair, ...]:
    """Read pairs to watch training by: all of them, or `count` spread evenly over the file.

    Takes the forms of `read_sts_file`. Words are joined by single blanks, as under protocol
    `senteval`. The choice depends on nothing but the number of pairs and `count`.

    Raises:
        DataError: as `read_sts_file`.
        UsageError: `count` is less than 1.
    """
    if count is not None and count < 1:
        raise UsageError(Problem(f"{count} pairs to evaluate on", fix="ask for 1 or more"))
    pairs = tuple(_joined(read_sts_file(path)))
    return pairs if count is None else tuple(spread(pairs, count))
