"""The report: what is known of a run, on one page."""

from collections.abc import Sequence

from sempa_mlx import __version__
from sempa_mlx.report.document_sections import document_tables, how_to_get
from sempa_mlx.report.documents import Document, Kind
from sempa_mlx.report.markup import Markup, joined
from sempa_mlx.report.measure import Measured
from sempa_mlx.report.measured_sections import (
    geometry,
    maps_section,
    neighbours_section,
    scores,
    words_section,
)
from sempa_mlx.report.outcome import read_outcome
from sempa_mlx.report.page import Section, missing, page
from sempa_mlx.report.run_record import RunRecord
from sempa_mlx.report.run_sections import settings_section, summary, training_section


def report_page(
    record: RunRecord,
    measured: Measured | str,
    documents: Sequence[Document] = (),
    remarks: Sequence[str] = (),
) -> str:
    """Return the page as HTML text, which needs no other file, no network and no script.

    Args:
        record: the run.
        measured: base and trained model on scored pairs, or why they were not measured.
        documents: results files.
        remarks: what the reader has to know besides what `record` and `measured` tell.
    """
    outcome = read_outcome(record)
    more = () if isinstance(measured, str) else measured.remarks
    sections = [
        training_section(record, outcome),
        _tables("sts", "Similarity", record, documents, _scores(measured)),
        _tables("geometry", "Geometry", record, documents, _geometry(measured)),
        *_looks(measured),
        _tables("generation", "Generation", record, documents, None),
    ]
    if any(document.kind == "frontier" for document in documents):
        sections.append(_tables("frontier", "Gain and cost of the scale", record, documents, None))
    sections.append(settings_section(record, __version__))
    lead = summary(record, outcome, (*record.remarks, *more, *remarks))
    footer = f"Made by sempa-mlx {__version__}. This page is one file: it loads nothing."
    return page(f"Training run {record.name}", lead, sections, footer)


def _scores(measured: Measured | str) -> Markup:
    return missing(measured) if isinstance(measured, str) else scores(measured)


def _geometry(measured: Measured | str) -> Markup:
    return missing(measured) if isinstance(measured, str) else geometry(measured)


def _looks(measured: Measured | str) -> list[Section]:
    """Return what shows single sentences; without measurements there is nothing of it."""
    if isinstance(measured, str):
        what = f"Maps, aligned words and nearest neighbours are not here. {measured}"
        return [Section("sentences", "Sentences", missing(what))]
    return [maps_section(measured), words_section(measured), neighbours_section(measured)]


def _tables(
    kind: Kind,
    title: str,
    record: RunRecord,
    documents: Sequence[Document],
    first: Markup | None,
) -> Section:
    """Return a section: what was measured, if this kind is, and the tables of results files."""
    tables = document_tables(kind, documents)
    parts = [*([first] if first else []), *tables]
    return Section(kind, title, joined(parts or [how_to_get(kind, str(record.folder))]))
