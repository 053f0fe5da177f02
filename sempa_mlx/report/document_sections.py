"""The tables of results files: STS, generation, geometry, frontier."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import PurePath
from shlex import quote
from typing import Any

from sempa_mlx.data.sts_sets import TEXT_FORMS
from sempa_mlx.report.documents import Document, Kind
from sempa_mlx.report.markup import Markup, joined
from sempa_mlx.report.measured_sections import MEASURES
from sempa_mlx.report.numbers import shown, span, value_of, with_error
from sempa_mlx.report.page import cell, code, paragraph, table

ABSENT = "–"


def document_tables(kind: Kind, documents: Sequence[Document]) -> list[Markup]:
    """Return the tables of all documents of a kind; STS results on the same pairs share one."""
    found = [document for document in documents if document.kind == kind]
    if kind == "sts":
        return _sts_tables(found)
    build = {"generation": _generation, "geometry": _geometry, "frontier": _frontier}[kind]
    return [build(document) for document in found]


def how_to_get(kind: Kind, folder: str) -> Markup:
    """Say which command gives what is missing."""
    text = " --text FILE" if kind == "generation" else ""
    command = f"sempa-mlx eval {kind}{text} --adapter-path {quote(folder)} --out {kind}.json"
    parts = ("No results file was given. Make one with ", code(command), " and add ")
    return paragraph(*parts, code(f"--results {kind}.json"), ".", kind="missing")


def _sts_tables(documents: Sequence[Document]) -> list[Markup]:
    def protocol(document: Document) -> tuple[str, tuple[tuple[str, Any], ...]]:
        content = document.content
        return str(content.get("protocol")), tuple(content["pairs"].items())

    ordered = sorted(documents, key=lambda each: str(protocol(each)))
    return [_sts(list(group)) for _, group in groupby(ordered, key=protocol)]


def _sts(documents: Sequence[Document]) -> Markup:
    content = documents[0].content
    pairs, protocol = content["pairs"], str(content.get("protocol"))
    tasks = list(pairs)
    rows = [
        [
            row["system"],
            *(_score(row["scores"], task, _part(row, "intervals"), task) for task in tasks),
            _score(row, "average", row, "average_interval"),
        ]
        for document in documents
        for row in document.rows
    ]
    form = f", protocol {protocol} ({TEXT_FORMS[protocol]})" if protocol in TEXT_FORMS else ""
    caption = f"STS, Spearman × 100{form}"
    counts = ", ".join(f"{task} {count}" for task, count in pairs.items())
    note = f"Pairs: {counts}. From {', '.join(document.name for document in documents)}."
    if not any("intervals" in row for document in documents for row in document.rows):
        note += " These results hold no intervals."
    else:
        note += " Below each score: its 95% bootstrap interval."
    parts = [table(["", *tasks, "avg"], rows, caption=caption), paragraph(note, kind="note")]
    gains = [row for document in documents for row in document.rows if _part(row, "difference")]
    return joined([*parts, *(_gains(row, tasks) for row in gains)])


def _score(
    values: Mapping[str, Any], key: str, intervals: Mapping[str, Any], interval: str
) -> Markup:
    ends = _part(intervals, interval)
    return cell(shown(value_of(values, key), 2), _span(ends, 1) if ends else "")


def _span(ends: Mapping[str, Any], digits: int, sign: str = "") -> str:
    return span(value_of(ends, "low"), value_of(ends, "high"), digits, sign)


def _gains(row: Mapping[str, Any], tasks: Sequence[str]) -> Markup:
    found = _part(row, "difference")
    named = {task: _part(_part(found, "scores"), task) for task in tasks}
    named["avg"] = _part(found, "average")
    rows = [
        [
            task,
            shown(value_of(gain, "score"), 2, "+"),
            _span(_part(gain, "interval"), 2, "+"),
            shown(value_of(gain, "p"), 3),
        ]
        for task, gain in named.items()
    ]
    caption = f"{row['system']}: gain over {found.get('from')} on the same pairs"
    return table(["", "gain", "95% interval", "p"], rows, caption=caption)


def _generation(document: Document) -> Markup:
    names = dict.fromkeys(
        (str(each["task"]), str(each["metric"]))
        for row in document.rows
        for each in row.get("figures", ())
    )
    has_text = any("perplexity" in row for row in document.rows)
    has_kl = any("kl" in row for row in document.rows)
    base = next((row for row in document.rows if row["system"].split()[0] == "base"), {})
    columns = [""] + ["perplexity", "× base"] * has_text + ["KL to base, nats"] * has_kl
    columns += [task if metric == "acc" else f"{task} {metric}" for task, metric in names]
    rows = [
        [
            row["system"],
            *(_perplexity(row, base) if has_text else ()),
            *([_measured(row, "kl", "kl_standard_error", 4)] if has_kl else ()),
            *(_figure(row, *name) for name in names),
        ]
        for row in document.rows
    ]
    note = f"From {document.name}."
    first = document.rows[0]
    if has_text:
        scored, text = value_of(first, "num_scored"), PurePath(str(first.get("text"))).name
        window = value_of(first, "window")
        note += f" Perplexity: {shown(scored, 0)} tokens of {text}, windows of {shown(window, 0)}."
    if names:
        note += " Accuracies × 100."
    note += " ±: standard error, where the file has it."
    parts = [
        table(columns, rows, caption="Base and adapter as generators"),
        paragraph(note, kind="note"),
    ]
    return joined(parts)


def _perplexity(row: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    ratio = value_of(row, "perplexity") / (value_of(base, "perplexity") or math.nan)
    same = row.get("text") == base.get("text") and row.get("num_scored") == base.get("num_scored")
    return [
        _measured(row, "perplexity", "standard_error", 2),
        shown(ratio, 3) if base and same else ABSENT,
    ]


def _measured(row: Mapping[str, Any], key: str, error: str, digits: int) -> str:
    return with_error(value_of(row, key), value_of(row, error), digits) if key in row else ABSENT


def _figure(row: Mapping[str, Any], task: str, metric: str) -> str:
    for each in row.get("figures", ()):
        if (str(each["task"]), str(each["metric"])) == (task, metric):
            error = 100 * value_of(each, "standard_error")
            return with_error(100 * value_of(each, "value"), error, 1)
    return ABSENT


def _geometry(document: Document) -> Markup:
    has_scores = any("spearman" in row for row in document.rows)
    columns = ["", *(name for name, _, _ in MEASURES.values())] + ["Spearman × 100"] * has_scores
    rows = [
        [
            row["system"],
            *(shown(value_of(row, key), digits) for key, (_, digits, _) in MEASURES.items()),
            *([shown(value_of(row, "spearman"), 2)] if has_scores else ()),
        ]
        for row in document.rows
    ]
    texts = shown(value_of(document.content, "texts"), 0)
    caption = f"Geometry of {texts} sentences, {document.content.get('data')}"
    note = paragraph(f"From {document.name}.", kind="note")
    return joined([table(columns, rows, caption=caption), note])


def _frontier(document: Document) -> Markup:
    base = next((row for row in document.rows if value_of(row, "adapter_scale") == 0), {})
    rows = [
        [
            f"{value_of(row, 'adapter_scale'):g}" + (" *" if row.get("on_frontier") else ""),
            shown(value_of(row, "spearman"), 2),
            shown(value_of(row, "spearman") - value_of(base, "spearman"), 2, "+"),
            _measured(row, "perplexity", "standard_error", 2),
            _measured(row, "kl", "kl_standard_error", 4),
        ]
        for row in document.rows
    ]
    columns = ["scale", "Spearman × 100", "gain", "perplexity", "KL to base, nats"]
    caption = (
        f"What the scale of {PurePath(str(document.content.get('adapter'))).name} gains and costs"
    )
    note = f"*: no other scale has both more Spearman and less KL. From {document.name}."
    return joined([table(columns, rows, caption=caption), paragraph(note, kind="note")])


def _part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = values.get(key)
    return part if isinstance(part, dict) else {}
