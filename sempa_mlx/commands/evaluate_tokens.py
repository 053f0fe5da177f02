"""`sempa-mlx eval tokens`: the words that embeddings of several systems align with."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sempa_mlx.commands.evaluate import Systems, defined, finish
from sempa_mlx.commands.evaluate_data import sentences
from sempa_mlx.console import Console, fitting
from sempa_mlx.errors import Problem, RunError, UsageError
from sempa_mlx.files import refuse_read

if TYPE_CHECKING:
    from sempa_mlx.encoder.encoder import Encoder

SENTENCE_ROOM, WORDS_ROOM = 58, 36  # columns, for a terminal of 60
COLUMNS = {
    "hit": "Hit@{top}",
    "lar": "LAR",
    "gar": "GAR",
    "lar_cut": "LAR cut",
    "gar_cut": "GAR cut",
}
NOTE = """LAR: share of a text's n tokens among its first n aligned
GAR: the same over the tokens of all texts together
cut: among the first {top} at most, as in the paper's code"""


def run_eval_tokens(
    console: Console, systems: Systems, data: str, *, top: int, show: int, out: Path | None
) -> None:
    """Print the aligned words of some sentences under each system, and the rates over all."""
    refuse_read(out, data)
    found = sentences(data)
    results: list[dict[str, Any]] = []
    for name, encoder in systems.encoders(console):
        if not encoder.reads_last_layer:
            console.warn(f"{name} is left out: the output head cannot read an inner layer")
            continue
        with console.progress(name, len(found.texts), "texts") as advance:
            try:
                row = _measure(encoder, found.texts, top, show, advance)
            except ValueError as error:
                what = f"the embeddings of {name} align with nothing: {error}"
                raise RunError(Problem(what, fix="look at how it was trained")) from error
        results.append({"system": name, **row, "encoder": encoder.describe()})
    if not results:
        raise UsageError("nothing to measure: no method reads the last layer")
    _report_words(console, results)
    _report_rates(console, results, top)
    document = {"data": found.label, "texts": len(found.texts), "top": top, "results": results}
    finish(console, document, out)


def _measure(
    encoder: "Encoder",
    texts: Sequence[str],
    top: int,
    show: int,
    on_progress: Callable[[int], None],
) -> dict[str, Any]:
    from sempa_mlx.evaluation.tokens import find_key_tokens, fold, measure_alignment, spell

    found = find_key_tokens(encoder, texts, top=top, on_progress=on_progress)
    tokenizer = encoder.loaded.tokenizer
    form = cache(partial(fold, tokenizer))
    shown = []
    for text, own, aligned in list(zip(texts, found.texts, found.aligned, strict=True))[:show]:
        forms = {form(token) for token in own}
        tokens = [
            {"id": token, "text": spell(tokenizer, token), "in_text": form(token) in forms}
            for token in aligned[:top]
        ]
        shown.append({"text": text, "tokens": tokens})
    return {
        "exact": defined(asdict(measure_alignment(found))),
        "folded": defined(asdict(measure_alignment(found, form))),
        "shown": shown,
    }


def _report_words(console: Console, results: list[dict[str, Any]]) -> None:
    """Print each shown sentence, and below it one line of words a system."""
    width = max(len(row["system"]) for row in results)
    lines = []
    for shown in zip(*(row["shown"] for row in results), strict=True):
        lines.append(_shortened(shown[0]["text"]))
        for row, each in zip(results, shown, strict=True):
            lines.append(f"  {row['system'].ljust(width)}  {_words(each['tokens'])}")
    if lines:
        note = "* in the sentence; case and leading blanks are ignored"
        console.result("\n".join(["\naligned words\n", *lines, "", note]))


def _shortened(text: str) -> str:
    plain = _visible(" ".join(text.split()))
    return plain if len(plain) <= SENTENCE_ROOM else plain[: SENTENCE_ROOM - 1] + "…"


def _words(tokens: list[dict[str, Any]]) -> str:
    words: dict[str, str] = {}
    for token in tokens:
        # Heads of some models have more rows than their tokenizers have tokens.
        plain = token["text"].strip() or token["text"] or f"<{token['id']}>"
        visible = _visible(plain).replace(" ", "␣")
        words.setdefault(plain.casefold(), visible + "*" * token["in_text"])
    return fitting(list(words.values()), WORDS_ROOM)


def _visible(text: str) -> str:
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _report_rates(console: Console, results: list[dict[str, Any]], top: int) -> None:
    columns = ["system", *(title.format(top=top) for title in COLUMNS.values())]
    counts = results[0]["exact"]
    title = f"own tokens aligned, {counts['num_texts']:,} texts"
    if counts["num_empty"]:
        title += f" ({counts['num_empty']:,} without tokens left out)"
    for kind, remark in (("exact", "token by token"), ("folded", "case and blanks ignored")):
        rows = [[row["system"], *(_cell(row[kind][name]) for name in COLUMNS)] for row in results]
        note = NOTE.format(top=top) if kind == "folded" else ""
        console.table(f"{title}: {remark}", columns, rows, note)


def _cell(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
