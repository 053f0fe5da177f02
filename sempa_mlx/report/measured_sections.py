"""The sections on what was measured for the report: STS, geometry, maps, words, neighbours."""

import numpy as np

from sempa_mlx.evaluation.geometry import Geometry
from sempa_mlx.evaluation.stats import Difference, Estimate
from sempa_mlx.report.map_svg import sentence_map
from sempa_mlx.report.markup import Markup, element, joined
from sempa_mlx.report.measure import POSITIVE_FROM, Measured, Neighbour, System, Token
from sempa_mlx.report.numbers import shown, span
from sempa_mlx.report.page import Section, bidi, cell, figure, grid, missing, paragraph, table

MEASURES = {  # measure: name, digits, meaning
    "alignment": ("Alignment", 3, "mean squared distance of paraphrases; lower is closer"),
    "uniformity": ("Uniformity", 3, "lower is more evenly spread; −4 is about the best"),
    "average_cosine": ("Average cosine", 3, "of all pairs; near 1, all vectors point one way"),
    "partition_isotropy": ("Isotropy", 3, "1 if no direction is preferred"),
    "iso_score": ("IsoScore", 4, "1 if all directions vary alike, 0 if one does"),
    "effective_rank": ("Effective rank", 1, "directions in use"),
}
NO_GOAL = "None of them is a goal: whitening perfects them and teaches nothing."


def scores(measured: Measured) -> Markup:
    """Return the table of base and trained model, with intervals and the paired test."""
    rows = [
        ["base", *_estimate(measured.base.spearman)],
        [_trained(measured), *_estimate(measured.trained.spearman)],
        ["gain", *_gain(measured.gain)],
    ]
    caption = f"Measured for this report, Spearman × 100, {_pairs(measured)}"
    note = (
        f"Intervals: percentiles of {measured.gain.interval.num_resamples:,} bootstrap resamples "
        "of the pairs. p: paired bootstrap, two-sided, for the hypothesis of no gain. The pairs "
        "need not be those that chose the best step, so the scores need not be those above."
    )
    columns = ["", "Spearman", "95% interval", "p"]
    return joined([table(columns, rows, caption=caption), paragraph(note, kind="note")])


def _trained(measured: Measured) -> str:
    return "trained" + ("" if measured.scale == 1 else f", scale {measured.scale:g}")


def _pairs(measured: Measured) -> str:
    if measured.num_pairs == measured.num_available:
        return f"{measured.num_pairs:,} pairs of {measured.label}"
    return f"{measured.num_pairs:,} of {measured.num_available:,} pairs of {measured.label}"


def _estimate(estimate: Estimate) -> list[str]:
    ends = estimate.interval()
    return [shown(100 * estimate.value, 2), span(100 * ends.low, 100 * ends.high, 2), ""]


def _gain(gain: Difference) -> list[str]:
    ends = gain.interval
    return [
        shown(100 * gain.value, 2, "+"),
        span(100 * ends.low, 100 * ends.high, 2, "+"),
        shown(gain.p_value, 3),
    ]


def geometry(measured: Measured) -> Markup:
    """Return the table of geometry before and after training."""
    before, after = measured.base.geometry, measured.trained.geometry
    rows = [
        [cell(name, meaning), *(_measure(each, key, digits) for each in (before, after))]
        for key, (name, digits, meaning) in MEASURES.items()
    ]
    count = before.num_vectors
    note = (
        f"{count:,} sentences of {measured.label}; {measured.num_positives:,} pairs scored "
        f"{POSITIVE_FROM:g} or more count as paraphrases. {NO_GOAL}"
    )
    if count <= before.dim:
        note += " So few sentences bound IsoScore and effective rank."
    zero = before.num_zero + after.num_zero
    if zero:
        note += f" {zero} zero vectors have no direction and are left out."
    content = table(["", "before", "after"], rows, caption="Before and after training")
    return joined([content, paragraph(note, kind="note")])


def _measure(found: Geometry, key: str, digits: int) -> str:
    return shown(getattr(found, key), digits)


def maps_section(measured: Measured) -> Section:
    """Draw the sentences before and after, and list the pairs that are named."""
    maps = measured.maps
    both = np.concatenate([maps.before, maps.after])
    drawn = [
        figure(
            sentence_map(
                *(points, measured.sentences, measured.joined),
                box=(both.min(axis=0), both.max(axis=0)),
                label=f"Map of {len(measured.sentences)} sentences {name} training",
            ),
            f"{name.capitalize()} training",
            f"the plane shows {100 * share:.0f}% of the variance",
        )
        for name, points, share in zip(
            ("before", "after"), (maps.before, maps.after), maps.shares, strict=True
        )
    ]
    text = (
        f"Each dot is a sentence; the {len(measured.joined)} pairs that people scored highest are "
        "joined and numbered; rest the pointer on a dot to read it. Each map is the first two "
        "principal axes of its own vectors (unit length, centred); the second is turned onto the "
        "first (Procrustes), and both are scaled to the same spread, so the lengths of joining "
        "lines can be compared. A plane shows little of so many dimensions: trust the cosines "
        "below."
    )
    body = [paragraph(text), grid("maps", drawn), _named_pairs(measured)]
    return Section("map", "Map of sentences", joined(body))


def _named_pairs(measured: Measured) -> Markup:
    systems = (measured.base, measured.trained)
    rows = [
        [
            f"{index + 1}",
            joined(
                element("div", {}, bidi(measured.sentences[row])) for row in (pair.left, pair.right)
            ),
            f"{pair.score:g}",
            *(shown(each.cosines[index], 3) for each in systems),
        ]
        for index, pair in enumerate(measured.joined)
    ]
    columns = ["", "sentences", "score", "cosine before", "after"]
    return table(columns, rows, caption="The pairs on the maps", words=[1])


def words_section(measured: Measured) -> Section:
    """Show the words that example sentences align with, before and after."""
    intro = (
        "An embedding goes through the model's own output head; these are the words, or pieces of "
        "words, that come out on top, best first. Marked words stand in the sentence (case and "
        "blanks ignored)."
    )
    if not measured.trained.tokens:
        intro = "None: the method reads an inner layer, which the model's output head cannot read."
    cards = [
        _card(text, [("before", _words(before)), ("after", _words(after))])
        for text, before, after in zip(
            measured.examples, measured.base.tokens, measured.trained.tokens, strict=False
        )
    ]
    return Section("words", "Aligned words", joined([paragraph(intro), grid("cards", cards)]))


def _words(tokens: tuple[Token, ...]) -> Markup:
    spans = [
        element("span", {"class": "own" if token.in_sentence else None}, bidi(_visible(token.text)))
        for token in tokens
    ]
    return element("div", {"class": "words-list"}, *spans)


def _visible(text: str) -> str:
    """Return a token with what cannot be seen spelled out."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def neighbours_section(measured: Measured) -> Section:
    """Show the sentences nearest to some, before and after."""
    text = (
        f"The nearest of {len(measured.sentences):,} sentences, by cosine. In bold, with people's "
        "score: a sentence that is paired with it in the data."
    )
    systems: tuple[System, System] = (measured.base, measured.trained)
    cards = [
        _card(
            query,
            [
                (name, _near(each.neighbours[index]))
                for name, each in zip(("before", "after"), systems, strict=True)
            ],
        )
        for index, query in enumerate(measured.queries)
    ]
    body = (
        [paragraph(text), grid("cards", cards)] if cards else [missing("No two sentences differ.")]
    )
    return Section("neighbours", "Nearest neighbours", joined(body))


def _near(found: tuple[Neighbour, ...]) -> Markup:
    items = [
        element(
            "li",
            {},
            element("b", {}, shown(each.cosine, 3)),
            element(
                "span",
                {"class": None if each.score is None else "own"},
                bidi(each.text),
                "" if each.score is None else f" ({each.score:g})",
            ),
        )
        for each in found
    ]
    return element("ol", {"class": "near"}, *items)


def _card(title: str, parts: list[tuple[str, Markup]]) -> Markup:
    lines = [
        joined([element("dt", {}, name), element("dd", {}, content)]) for name, content in parts
    ]
    head = element("h3", {}, bidi(title))
    return element("div", {"class": "card"}, head, element("dl", {}, *lines))
