"""`sempa-mlx report`: one page about a training run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sempa_mlx.console import Console
from sempa_mlx.errors import DataError, ModelError, Problem, UsageError
from sempa_mlx.files import named_path, refuse_existing, write_text

if TYPE_CHECKING:
    from sempa_mlx.data.records import StsTask
    from sempa_mlx.report.measure import Measured
    from sempa_mlx.report.run_record import RunRecord

REPORT_FILE = "report.html"
NOTHING = "no report was written"
NUM_PAIRS = 200


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """A run, what to measure it on (None: its dev pairs), and results files."""

    run: Path
    data: str | None = None
    num_pairs: int = NUM_PAIRS
    results: Sequence[Path] = ()
    is_measured: bool = True


def run_report(console: Console, request: ReportRequest, *, out: Path | None, force: bool) -> None:
    """Gather what is known of a run, measure base and trained model, write the page."""
    from sempa_mlx.report.documents import read_documents
    from sempa_mlx.report.report import report_page
    from sempa_mlx.report.run_record import read_run

    path = out or request.run / REPORT_FILE
    if request.data is not None and not request.is_measured:
        fix = "leave out --data or --no-measure"
        raise UsageError(Problem("--data names pairs to measure on", fix=fix), state=NOTHING)
    record = read_run(request.run)
    _check_target(path, force=force)
    documents = read_documents(request.results)
    measured: Measured | str = "Nothing was measured for this report (--no-measure)."
    remarks: list[str] = []
    if request.is_measured and not record.has_adapter:
        measured = "Nothing was measured: the folder holds no adapter."
    elif request.is_measured:
        task = _pairs(record, request.data, remarks)
        measured = _measured(console, request, task)
    for remark in (*record.remarks, *remarks):
        console.warn(remark)
    text = report_page(record, measured, documents, remarks)
    write_text(path, text)
    console.result(str(path))
    console.document(_document(path, text, record, measured))


def _check_target(path: Path, *, force: bool) -> None:
    """Let an earlier report be replaced, and nothing else without `force`."""
    from sempa_mlx.report.page import is_report

    if str(path) == "-":
        raise UsageError(Problem("a report is a file", fix="name one: -o FILE.html"), state=NOTHING)
    if path.is_dir():
        raise UsageError(Problem("is a folder", str(path), fix="name a file"), state=NOTHING)
    is_ours = False
    if path.is_file():
        with path.open("rb") as file:
            is_ours = is_report(file.read(512).decode("utf-8", errors="replace"))
    refuse_existing(path, force=force or is_ours)


def _pairs(record: "RunRecord", data: str | None, remarks: list[str]) -> "StsTask":
    """Read the pairs to measure on: as asked, else the run's dev pairs, else packaged ones."""
    from sempa_mlx.data.records import StsTask
    from sempa_mlx.data.sources import dev_source
    from sempa_mlx.data.sts_sets import load_dev_pairs
    from sempa_mlx.data.sts_tasks import sts_tasks

    if data is not None:
        is_file = named_path(data).is_file()
        (task,) = sts_tasks(data, None if is_file else ("STSB",), None)
        return task if is_file else StsTask("STS-B test", task.protocol, task.pairs)
    spec = record.setting("eval.data") or "demo"
    try:
        source = dev_source(spec)
        pairs = load_dev_pairs(source.path, None)
    except DataError as error:
        remarks.append(f"The run's dev pairs are not there ({error}); packaged pairs are measured.")
        source = dev_source("demo")
        pairs = load_dev_pairs(source.path, None)
    if source.note:
        remarks.append(source.note)
    return StsTask(source.label, "dev", pairs)


def _measured(console: Console, request: ReportRequest, task: "StsTask") -> "Measured | str":
    from sempa_mlx.data.batching import spread
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.evaluation.sts import distinct_sentences
    from sempa_mlx.report.measure import measure

    try:
        with console.working(f"loading {request.run}"):
            encoder = Encoder.load(request.run)
    except ModelError as error:
        state = f"{NOTHING}; --no-measure makes one of what is in the folder"
        raise ModelError(error.problems, state=state) from error
    pairs = tuple(spread(task.pairs, request.num_pairs))
    num_texts = len(distinct_sentences([type(task)(task.name, task.protocol, pairs)]))
    with console.progress("base and trained", 2 * num_texts, "texts") as advance:
        return measure(encoder, task, request.num_pairs, advance)


def _document(
    path: Path, text: str, record: "RunRecord", measured: "Measured | str"
) -> dict[str, object]:
    """Return what was done, for JSON."""
    from sempa_mlx.commands.evaluate import defined

    found: dict[str, object] = {
        "report": str(path),
        "bytes": len(text.encode()),
        "remarks": list(record.remarks),
        "measured": None,
    }
    if not isinstance(measured, str):
        found["measured"] = {"pairs": measured.num_pairs, "data": measured.label} | defined(
            {
                "base": 100 * measured.base.spearman.value,
                "trained": 100 * measured.trained.spearman.value,
                "gain": 100 * measured.gain.value,
            }
        )
    return found
