"""The sections that a run folder alone gives: summary, curves, settings and versions."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from sempa_mlx.report.curves import charts, compares_completions, window
from sempa_mlx.report.markup import Markup, element, joined
from sempa_mlx.report.numbers import shown, value_of
from sempa_mlx.report.outcome import DEV, Outcome
from sempa_mlx.report.page import (
    Section,
    bidi,
    code,
    figure,
    grid,
    heading,
    missing,
    paragraph,
    table,
    tiles,
)
from sempa_mlx.report.run_record import RunRecord
from sempa_mlx.report.svg import MAX_POINTS, line_chart


def summary(record: RunRecord, outcome: Outcome, remarks: Sequence[str]) -> Markup:
    """Say in plain words what was trained, on what, and what came of it."""
    parts = [paragraph(*_trained(record, outcome)), paragraph(*_came_of_it(record, outcome))]
    if outcome.scores:
        parts.insert(0, tiles(_figures(record, outcome)))
    if remarks:
        items = (element("li", {}, bidi(remark)) for remark in remarks)
        parts.append(element("div", {"class": "remarks"}, element("ul", {}, *items)))
    parts.append(element("pre", {}, code(_commands(record))))
    return joined(parts)


def _figures(record: RunRecord, outcome: Outcome) -> list[tuple[str, str, str]]:
    gain = outcome.best - outcome.base
    step = "undefined" if outcome.best_step is None else f"{outcome.best_step:,}"
    found = [
        ("before training", outcome.shown(outcome.base), outcome.name),
        ("after training", outcome.shown(outcome.best), f"change {outcome.shown(gain, '+')}"),
        ("best step", step, f"of {outcome.last_step:,} done"),
    ]
    if outcome.dial:
        tried = (
            f"best of {len(outcome.dial)} tried" if len(outcome.dial) > 1 else "best at its step"
        )
        found.append(("adapter scale", f"{outcome.scale:g}", tried))
    seconds = value_of(record.results, "seconds")
    if not math.isnan(seconds):
        machine = _part(record.results, "machine")
        where = ", ".join(str(machine[key]) for key in ("name", "device") if key in machine)
        found.append(("training time", _duration(seconds), where))
    return found


def _trained(record: RunRecord, outcome: Outcome) -> list[str]:
    """Say what was trained, on what."""
    loss, beta = record.setting("objective.loss"), record.number("objective.beta")
    kind = {"dora": "DoRA", "rslora": "rsLoRA"}.get(record.setting("lora.kind") or "", "LoRA")
    rank = record.setting("lora.rank")
    pairs = value_of(record.results, "pairs")
    count = "" if math.isnan(pairs) else f"{pairs:,.0f} "
    batch = record.setting("train.batch_size")
    return [
        f"{kind} adapter" + (f" of rank {rank}" if rank else "") + " on ",
        bidi(record.setting("model.name") or "an unknown model"),
        ", trained with the loss ",
        code(loss or "unknown"),
        f" (β {beta:g})" if beta > 0 and compares_completions(record) else "",
        f" on {count}preference rows of ",
        bidi(_data(record, "train")),
        f": {outcome.last_step:,} steps" + (f" of {batch} rows." if batch else "."),
    ]


def _data(record: RunRecord, which: str) -> str:
    """Return the name of the training rows or dev pairs that were used, or were asked for."""
    setting = {"train": "data.train", "dev": "eval.data"}[which]
    used = _part(_part(record.results, "data"), which).get("name")
    name = used if isinstance(used, str) else record.setting(setting)
    return PurePath(name or "unknown data").name


def _came_of_it(record: RunRecord, outcome: Outcome) -> list[str]:
    """Say what the evaluations showed, and what that is worth."""
    if not outcome.scores:
        return [
            "The folder tells of no evaluation, so nothing is known of how good the adapter is."
        ]
    if not record.results:
        return [
            f"The run has not finished; what follows is its state at step {outcome.last_step:,}."
        ]
    if outcome.best_step == 0:
        base = outcome.shown(outcome.base)
        return [
            f"No step beat the base ({base}): the folder holds an adapter that changes nothing."
        ]
    pairs = record.setting("eval.pairs")
    gain = outcome.shown(outcome.best - outcome.base, "+")
    change = f"{outcome.shown(outcome.base)} to {outcome.shown(outcome.best)} ({gain})"
    scale = f" at scale {outcome.scale:g}" if outcome.scale != 1 else ""
    chosen = "Step and scale were" if outcome.dial else "The step was"
    on = f"{f'up to {pairs}' if pairs else 'all'} pairs of ", _data(record, "dev")
    if outcome.key != DEV:  # of held-out rows, not of scored pairs
        on = "the rows of ", PurePath(record.setting("data.dev") or "unknown data").name
    return [
        f"Best was step {outcome.best_step}{scale}: {outcome.name} went from {change} on ",
        on[0],
        bidi(on[1]),
        f". {chosen} chosen by this very score, so expect less on other data.",
    ]


def _commands(record: RunRecord) -> str:
    folder = shlex.quote(str(record.folder))
    config = shlex.quote(str(record.folder / "config.yaml"))
    again = shlex.quote(f"{record.folder}-again")
    lines = [
        "# train it again, use it",
        f"sempa-mlx train -c {config} --adapter-path {again}",
        f"sempa-mlx embed notes.txt --adapter-path {folder}",
    ]
    if record.has_checkpoint and not record.results:
        lines += [
            "# go on with it",
            f"sempa-mlx train -c {config} --adapter-path {folder} --resume",
        ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


# Curves


def training_section(record: RunRecord, outcome: Outcome) -> Section:
    """Chart what was logged over steps."""
    found = charts(record, outcome)
    absent = [chart.title for chart in found if not chart.has_data]
    drawn = [figure(line_chart(chart), chart.title) for chart in found if chart.has_data]
    num_steps = sum("loss" in line for line in record.metrics)
    parts = [grid("charts", drawn)] if drawn else []
    if drawn:
        parts.append(paragraph(_how_drawn(num_steps), kind="note"))
    if absent:
        parts.append(missing(f"Without a value in the log, so not drawn: {'; '.join(absent)}."))
    skipped = [line["step"] for line in record.metrics if "skipped_rows" in line]
    if skipped:
        steps = ", ".join(map(str, skipped[:10])) + (", …" if len(skipped) > 10 else "")
        parts.append(paragraph(f"Skipped, as loss or gradient was not finite: step {steps}."))
    parts += _evaluations(outcome)
    return Section("training", "Training", joined(parts))


def _how_drawn(num_steps: int) -> str:
    text = "Lines break where a value is undefined."
    if window(num_steps) > 1:
        text = f"Faint: every step. Bold: mean of {window(num_steps)} steps around it. {text}"
    if num_steps > MAX_POINTS:
        text += f" Of {num_steps:,} steps, {MAX_POINTS} spread evenly are drawn."
    return text


def _evaluations(outcome: Outcome) -> list[Markup]:
    if not outcome.scores:
        return []
    rows = [
        [f"{step:,}" + (", kept" if step == outcome.best_step else ""), outcome.shown(score)]
        for step, score in outcome.scores
    ]
    content = [table(["step", outcome.name], rows)]
    if outcome.dial:
        scales = [
            [f"{scale:g}" + (", kept" if scale == outcome.scale else ""), outcome.shown(score)]
            for scale, score in sorted(outcome.dial.items())
        ]
        title = f"Scales of the adapter of step {outcome.best_step}"
        content = [grid("cards", [content[0], table([title, outcome.name], scales)])]
    label = f"All {len(outcome.scores)} evaluations as numbers"
    return [element("details", {}, element("summary", {}, label), *content)]


# Settings


def settings_section(record: RunRecord, version: str) -> Section:
    """List settings, versions, and what made the vectors."""
    tables = [_pairs(title, facts) for title, facts in _facts(record, version).items() if facts]
    settings = [
        _pairs(part, values) for part, values in _by_part(record.settings).items() if values
    ]
    body = [
        grid("settings", settings) if settings else missing("config.yaml gives no settings."),
        heading("What ran, and where"),
        grid("settings", tables),
    ]
    return Section("settings", "Settings and versions", joined(body))


def _by_part(settings: Mapping[str, object]) -> dict[str, dict[str, object]]:
    parts: dict[str, dict[str, object]] = {}
    for key, value in settings.items():
        part, _, name = key.rpartition(".")
        parts.setdefault(part or "other", {})[name] = value
    return parts


def _facts(record: RunRecord, version: str) -> dict[str, dict[str, object]]:
    machine = dict(_part(record.results, "machine"))
    memory = value_of(machine, "memory_gb")
    if not math.isnan(memory):
        machine["memory_gb"] = shown(memory, 1)
    encoder = {
        key: value for key, value in record.encoder.items() if not isinstance(value, dict | list)
    }
    template = _part(record.encoder, "template")
    if "prefix" in template:
        encoder["prompt"] = f"{template['prefix']}[sentence]{template.get('suffix', '')}"
    used = {
        key: record.results[key]
        for key in ("seconds", "peak_memory_gb", "peak_process_gb", "expected_peak_gb")
        if key in record.results
    }
    return {
        "versions": {**_part(record.results, "versions"), "this report": f"sempa-mlx {version}"},
        "model": dict(_part(record.results, "model")),
        "machine": machine | used,
        "vectors": encoder,
    }


def _part(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = document.get(key)
    return part if isinstance(part, dict) else {}


def _pairs(title: str, facts: Mapping[str, object]) -> Markup:
    rows = [
        element("div", {}, element("dt", {}, key), element("dd", {}, bidi(_written(value))))
        for key, value in facts.items()
    ]
    return element("section", {"class": "facts"}, heading(title), element("dl", {}, *rows))


def _written(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"
