"""`sempa-mlx eval sts`: Spearman of several systems, how far to trust it, and their differences."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sempa_mlx.commands.evaluate import Systems, finish
from sempa_mlx.console import Console
from sempa_mlx.data.sts_sets import Protocol
from sempa_mlx.data.sts_tasks import sts_tasks
from sempa_mlx.evaluation.stats import RESAMPLES, paired_difference
from sempa_mlx.files import refuse_read

if TYPE_CHECKING:
    from sempa_mlx.data.records import StsTask
    from sempa_mlx.evaluation.stats import Estimate, Interval
    from sempa_mlx.evaluation.sts import StsScore

CONFIDENCE = 0.95


def run_eval_sts(  # noqa: PLR0913 - the command's own parts
    console: Console,
    systems: Systems,
    data: str,
    names: Sequence[str] | None,
    protocol: Protocol | None,
    *,
    details: bool,
    out: Path | None,
    fail_under: float | None,
) -> None:
    """Print one row a system and one column a task; with `details`, one table a system as well."""
    from sempa_mlx.evaluation.sts import distinct_sentences, evaluate_sts

    refuse_read(out, data)
    tasks = sts_tasks(data, names, protocol)
    _warn_of_undefined(console, tasks)
    num_texts = len(distinct_sentences(tasks))
    results: list[dict[str, Any]] = []
    first: list[StsScore] | None = None
    for name, encoder in systems.encoders(console):
        started = time.perf_counter()
        with console.progress(name, num_texts, "texts") as advance:
            scores = evaluate_sts(encoder, tasks, advance, resamples=RESAMPLES)
        _warn_of_vectors(console, name, tasks, scores)
        row = {"system": name, "protocol": _protocol(tasks), **figures(scores)}
        if first is None:
            first = scores
        else:
            row |= {"difference": {"from": results[0]["system"], **differences(scores, first)}}
        row["seconds"] = round(time.perf_counter() - started, 1)
        results.append(row | {"encoder": encoder.describe()})
    _report(console, results, tasks, details=details)
    document = {
        "protocol": _protocol(tasks),
        "protocols": {task.name: task.protocol for task in tasks},
        "pairs": {task.name: len(task.pairs) for task in tasks},
        "origins": {task.name: task.origin for task in tasks if task.origin},
        "intervals": {"confidence": CONFIDENCE, "bootstrap": "percentile", "resamples": RESAMPLES},
        "results": results,
    }
    finish(console, document, out)
    _judge(console, [row["average"] for row in results], fail_under)


def _protocol(tasks: Sequence["StsTask"]) -> str:
    """Return the protocol of all tasks, or `mixed`."""
    protocols = {task.protocol for task in tasks}
    return protocols.pop() if len(protocols) == 1 else "mixed"


def _warn_of_undefined(console: Console, tasks: Sequence["StsTask"]) -> None:
    for task in tasks:
        if len({pair.score for pair in task.pairs}) == 1:
            what = "has one pair" if len(task.pairs) == 1 else "gives all pairs the same score"
            console.warn(f"{task.name} {what}, so Spearman's correlation is undefined")


def _warn_of_vectors(
    console: Console, name: str, tasks: Sequence["StsTask"], scores: Sequence["StsScore"]
) -> None:
    """Say it where a system's vectors leave the correlation of varied scores undefined."""
    undefined = [
        score.task
        for task, score in zip(tasks, scores, strict=True)
        if math.isnan(score.spearman) and len({pair.score for pair in task.pairs}) > 1
    ]
    if undefined:
        cause = "some vectors hold NaN or infinity, or all pairs have one cosine"
        console.warn(f"{name}: undefined on {', '.join(undefined)}: {cause}")


def figures(scores: Sequence["StsScore"]) -> dict[str, Any]:
    """Return everything known of one system, x 100, None where undefined."""
    from sempa_mlx.evaluation.sts import average

    mean = average(scores)
    return {
        "scores": {score.task: _hundredfold(score.spearman) for score in scores},
        "average": _hundredfold(mean.value),
        "intervals": {score.task: _bounds(score.estimate) for score in scores},
        "average_interval": _bounds(mean),
        "subsets": {
            score.task: {
                subset.task: {
                    "pairs": subset.num_pairs,
                    "score": _hundredfold(subset.spearman),
                    "interval": _bounds(subset.estimate),
                }
                for subset in score.subsets
            }
            for score in scores
            if score.subsets
        },
    }


def differences(scores: Sequence["StsScore"], first: Sequence["StsScore"]) -> dict[str, Any]:
    """Return what `scores` are above `first` on the same pairs, x 100, by a paired bootstrap."""
    from sempa_mlx.evaluation.sts import average

    def difference(estimate: "Estimate", reference: "Estimate") -> dict[str, Any]:
        found = paired_difference(estimate, reference, CONFIDENCE)
        p_value = None if math.isnan(found.p_value) else round(found.p_value, 6)
        return {"score": _hundredfold(found.value), "interval": _ends(found.interval), "p": p_value}

    return {
        "scores": {
            score.task: difference(score.estimate, reference.estimate)
            for score, reference in zip(scores, first, strict=True)
        },
        "average": difference(average(scores), average(first)),
    }


def _bounds(estimate: "Estimate") -> dict[str, Any]:
    return _ends(estimate.interval(CONFIDENCE))


def _ends(interval: "Interval") -> dict[str, Any]:
    ends = {"low": _hundredfold(interval.low), "high": _hundredfold(interval.high)}
    return ends | {"undefined_resamples": interval.num_undefined}


def _hundredfold(value: float) -> float | None:
    """Return the correlation x 100, or None where it is undefined (JSON knows no NaN)."""
    return None if math.isnan(value) else round(value * 100, 4)


def _report(
    console: Console, results: list[dict[str, Any]], tasks: Sequence["StsTask"], *, details: bool
) -> None:
    names = [task.name for task in tasks]
    rows = [
        [row["system"], *(_cell(row["scores"][name]) for name in names), _cell(row["average"])]
        for row in results
    ]
    counts = ", ".join(f"{task.name} {len(task.pairs)}" for task in tasks)
    note = f"pairs: {counts}\n{_origins(tasks)}".rstrip()
    console.table(f"STS, Spearman x 100{_form(tasks)}", ["system", *names, "avg"], rows, note)
    if details:
        _report_details(console, results, tasks)


def _form(tasks: Sequence["StsTask"]) -> str:
    """Return the protocol and its form of text, with the tasks under it if there are several."""
    from sempa_mlx.data.sts_sets import TEXT_FORMS

    named: dict[str, list[str]] = {}
    for task in tasks:
        named.setdefault(task.protocol, []).append(task.name)
    forms = {
        f"protocol {protocol} ({TEXT_FORMS[protocol]})": names
        for protocol, names in named.items()
        if protocol in TEXT_FORMS
    }
    if len(forms) < 2:
        return "".join(f", {form}" for form in forms)
    return "".join(f"\n{form}: {', '.join(names)}" for form, names in forms.items())


def _origins(tasks: Sequence["StsTask"]) -> str:
    """Return the data sets of the Hub that were read, with their commits."""
    origins = dict.fromkeys(task.origin for task in tasks if task.origin)
    return f"read: {', '.join(origins)}" if origins else ""


def _report_details(
    console: Console, results: list[dict[str, Any]], tasks: Sequence["StsTask"]
) -> None:
    """Print each system with the intervals and subsets of its scores, and its gain on the first."""
    for row in results:
        columns = ["task", "pairs", "Spearman", "95% interval"]
        console.table(row["system"], columns, _interval_rows(row, tasks))
        if "difference" in row:
            title = f"{row['system']}: gain over {row['difference']['from']} on the same pairs"
            console.table(title, ["task", "gain", "95% interval", "p"], _gain_rows(row, tasks))
    note = f"intervals: percentiles of {RESAMPLES:,} bootstrap resamples"
    undefined = max(_undefined(row) for row in results)  # all systems draw the same pairs
    if undefined:
        note += f"\n{undefined:,} resamples drew equal scores only; they are left out"
    if len(results) > 1:
        note += "\np: paired bootstrap, two-sided, not corrected for many tests"
    console.result(f"\n{note}")


def _interval_rows(row: dict[str, Any], tasks: Sequence["StsTask"]) -> list[list[str]]:
    rows = []
    for task in tasks:
        score, ends = row["scores"][task.name], row["intervals"][task.name]
        rows.append([task.name, f"{len(task.pairs)}", _cell(score), _range(ends)])
        for name, part in row["subsets"].get(task.name, {}).items():
            cells = [_cell(part["score"]), _range(part["interval"])]
            rows.append([f"  {name}", f"{part['pairs']}", *cells])
    total = sum(len(task.pairs) for task in tasks)
    mean = [_cell(row["average"]), _range(row["average_interval"])]
    return [*rows, ["avg", f"{total}", *mean]]


def _gain_rows(row: dict[str, Any], tasks: Sequence["StsTask"]) -> list[list[str]]:
    found = row["difference"]
    named = {task.name: found["scores"][task.name] for task in tasks} | {"avg": found["average"]}
    return [
        [
            name,
            _cell(gain["score"], "+z.2f"),
            _range(gain["interval"], "+z.2f"),
            "undefined" if gain["p"] is None else f"{gain['p']:.3f}",
        ]
        for name, gain in named.items()
    ]


def _undefined(row: dict[str, Any]) -> int:
    parts = [part["interval"] for task in row["subsets"].values() for part in task.values()]
    return sum(ends["undefined_resamples"] for ends in (*row["intervals"].values(), *parts))


def _range(ends: dict[str, Any], form: str = "z.2f") -> str:
    if ends["low"] is None:
        return "undefined"
    return f"{ends['low']:{form}} to {ends['high']:{form}}"


def _cell(value: float | None, form: str = "z.2f") -> str:
    return "undefined" if value is None else f"{value:{form}}"


def _judge(console: Console, averages: Sequence[float | None], fail_under: float | None) -> None:
    """Exit with 1 if even the best average is too low, or none is defined."""
    if fail_under is None:
        return
    defined = [value for value in averages if value is not None]
    if not defined:
        console.warn(f"no average is defined, so none reaches {fail_under:g}")
    elif max(defined) < fail_under:
        console.warn(f"the best average, {max(defined):.2f}, is under {fail_under:g}")
    else:
        return
    sys.exit(1)
