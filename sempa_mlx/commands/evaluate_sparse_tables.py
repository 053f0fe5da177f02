"""The tables of `sempa-mlx eval sparse`."""

from typing import Any

from sempa_mlx.console import Console

STATISTICS = {  # measure: title, format
    "mean_values": ("values", ".1f"),
    "unexplained": ("unexplained", ".1%"),
    "dead_share": ("dead", ".1%"),
    "usage_entropy": ("entropy", ".2f"),
    "effective_latents": ("eff. latents", ".0f"),
}
SIZES = """bytes: of a vector at most; a value of a code takes 2 and its index 2, or 4 if there are
more than 65,536 latents; vectors are rounded to what they take before they are compared"""
MEASURES = """unexplained: share of the variance that codes do not rebuild
dead: latents that no text fires
entropy: of the use of latents, in nats; its exp is their effective number"""


def report(console: Console, document: dict[str, Any]) -> None:
    """Print scores, statistics of codes, and retrieval if there was any."""
    _scores(console, document)
    _statistics(console, document)
    if document["retrieval"]:
        _retrieval(console, document["retrieval"])


def _scores(console: Console, document: dict[str, Any]) -> None:
    names = list(document["pairs"])
    columns = ["system", "k or dims", "bytes", *names, *_average(names)]
    rows = [
        [
            *(row["system"], _setting(row), f"{row['bytes']:,}"),
            *(_cell(row["scores"][name], "z.2f") for name in names),
            *(_cell(row["average"], "z.2f") for _ in _average(names)),
        ]
        for row in document["results"]
    ]
    pairs = ", ".join(f"{name} {count}" for name, count in document["pairs"].items())
    fitted = f"mean, deviations, PCA and int8 are fitted to {document['fit_texts']:,} other texts"
    console.table("Spearman x 100", columns, rows, f"pairs: {pairs}\n{fitted}\n{SIZES}")


def _average(names: list[str]) -> list[str]:
    """Return the title of the average, or nothing where it would repeat the only task."""
    return ["avg"] if len(names) > 1 else []


def _statistics(console: Console, document: dict[str, Any]) -> None:
    coded = [row for row in document["results"] if row["codes"]]
    columns = ["coder", "k", *(title for title, _ in STATISTICS.values())]
    rows = [
        [
            *(row["system"], _setting(row)),
            *(_cell(row["codes"][name], form) for name, (_, form) in STATISTICS.items()),
        ]
        for row in coded
    ]
    console.table("codes", columns, rows, MEASURES)


def _retrieval(console: Console, found: list[dict[str, Any]]) -> None:
    from sempa_mlx.evaluation.retrieval import AT

    first = found[0]
    title = f"{first['num_queries']:,} queries, {first['num_candidates']:,} candidates"
    columns = ["system", "k", "bytes", f"recall@{AT}", "std. error", "ms a query"]
    rows = [
        [
            *(row["system"], _setting(row), f"{row['bytes']:,}"),
            *(_cell(row[name], ".3f") for name in ("recall", "standard_error")),
            "undefined" if row["seconds"] is None else f"{1000 * row['seconds']:.3f}",
        ]
        for row in found
    ]
    note = "sought: the best candidate of an anchor; ms: median, exact search, one query at a time"
    console.table(title, columns, rows, note)


def _setting(row: dict[str, Any]) -> str:
    return "" if row["setting"] is None else str(row["setting"])


def _cell(value: float | None, form: str) -> str:
    return "undefined" if value is None else f"{value:{form}}"
