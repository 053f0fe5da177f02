"""What the `eval` commands measure on: STS sets, files of pairs, files of sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sempa_mlx.errors import DataError, Problem, UsageError

if TYPE_CHECKING:
    from sempa_mlx.data.records import StsTask

Protocol = Literal["senteval", "mteb"]
PAIR_FILES = (".tsv", ".csv", ".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True)
class Sentences:
    """Distinct texts, where they are from, and the scored pairs they were taken from, if any."""

    label: str
    texts: tuple[str, ...]
    task: "StsTask | None" = None


def sts_tasks(
    data: str, names: Sequence[str] | None, protocol: Protocol | None
) -> tuple["StsTask", ...]:
    """Read the STS tasks that `--data` names: `hub`, a folder of sets, or one file of pairs.

    Raises:
        UsageError: tasks or a protocol are named for a file, which is one task, read as it stands.
        DataError: there is no such thing, or it has faults; all of them are told.
    """
    from sempa_mlx.data.records import StsTask
    from sempa_mlx.data.sources import sts_root
    from sempa_mlx.data.sts_files import read_sts_file
    from sempa_mlx.data.sts_sets import TASKS, load_sts_tasks

    path = Path(data).expanduser()
    if data != "hub" and not path.exists():
        fix = "give a file of pairs, a folder of STS sets, or `hub`"
        raise DataError(Problem("no such file or folder", data, fix=fix))
    if data == "hub" or path.is_dir():
        return load_sts_tasks(sts_root(data), names or TASKS, protocol=protocol or "senteval")
    if names or protocol:
        option = "--tasks" if names else "--protocol"
        what = f"{option} is for the seven sets; a file is one task, read as it stands"
        raise UsageError(Problem(what, data, fix=f"leave out {option}"))
    return (StsTask(path.name, "file", read_sts_file(path)),)


def sentences(data: str) -> Sentences:
    """Read the sentences that `--data` names: STS-B's, those of a file of pairs, or lines of text.

    STS-B's test set comes from `hub` or a folder of sets. A file whose name ends as files of pairs
    do is one; any other is a text of one sentence a line, of which blank lines are left out.

    Raises:
        DataError: there is no such thing, it holds no text, or it has faults.
    """
    from sempa_mlx.data.readers import has_suffix, read_lines
    from sempa_mlx.evaluation.sts import distinct_sentences

    path = Path(data).expanduser()
    if path.is_file() and not has_suffix(path, PAIR_FILES):
        lines = (line.text for line in read_lines(path))
        texts = tuple(dict.fromkeys(text for text in lines if text.strip()))
        if not texts:
            raise DataError(Problem("no sentences", data, fix="write one on each line"))
        return Sentences(path.name, texts)
    names = None if path.is_file() else ("STSB",)
    (task,) = sts_tasks(data, names, None)
    label = task.name if path.is_file() else "STS-B test, SentEval text"
    return Sentences(label, tuple(distinct_sentences([task])), task)
