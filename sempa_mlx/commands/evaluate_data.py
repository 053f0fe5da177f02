"""What the `eval` commands measure on: STS sets, files of pairs, files of sentences."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sempa_mlx.errors import DataError, Problem
from sempa_mlx.files import named_path

if TYPE_CHECKING:
    from sempa_mlx.data.records import StsTask

PAIR_FILES = (".tsv", ".csv", ".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True)
class Sentences:
    """Distinct texts, where they are from, and the scored pairs they were taken from, if any."""

    label: str
    texts: tuple[str, ...]
    task: "StsTask | None" = None


def sentences(data: str) -> Sentences:
    """Read the sentences that `--data` names: STS-B's, those of a file of pairs, or lines of text.

    STS-B's test set comes from `hub` or a folder of sets. A file whose name ends as files of pairs
    do is one; any other is a text of one sentence a line, of which blank lines are left out.

    Raises:
        DataError: there is no such thing, it holds no text, or it has faults.
    """
    from sempa_mlx.data.readers import has_suffix, read_lines
    from sempa_mlx.data.sts_tasks import sts_tasks
    from sempa_mlx.evaluation.sts import distinct_sentences

    path = named_path(data)
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
