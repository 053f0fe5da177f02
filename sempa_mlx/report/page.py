"""The parts of a page: tables that scroll, figures with captions, sections, the whole."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sempa_mlx.report.markup import Markup, element, joined, markup

GENERATOR = "sempa-mlx report"
STYLE_FILE = Path(__file__).with_name("report.css")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page, with the anchor that leads to it."""

    anchor: str
    title: str
    body: Markup


def page(title: str, lead: Markup, sections: Sequence[Section], footer: str) -> str:
    """Return a whole HTML document that needs nothing else; it is well-formed XML as well."""
    head = element(
        "head",
        {},
        element("meta", {"charset": "utf-8"}),
        element("meta", {"name": "generator", "content": GENERATOR}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", {}, title),
        element("style", {}, Markup(STYLE_FILE.read_text(encoding="utf-8"))),
    )
    links = (element("a", {"href": f"#{each.anchor}"}, each.title) for each in sections)
    contents = element("ul", {}, *(element("li", {}, link) for link in links))
    body = element(
        "body",
        {},
        element("header", {}, element("h1", {}, bidi(title)), lead),
        element("nav", {"aria-label": "Contents"}, contents),
        element("main", {}, *map(_section, sections)),
        element("footer", {}, footer),
    )
    return f"<!DOCTYPE html>\n{element('html', {'lang': 'en'}, head, body)}\n"


def is_report(text: str) -> bool:
    """Tell from the beginning of a file whether it is a report of ours."""
    return text.startswith("<!DOCTYPE html>") and f'content="{GENERATOR}"' in text


def _section(section: Section) -> Markup:
    heading = element("h2", {}, section.title)
    return element("section", {"id": section.anchor}, heading, section.body)


def paragraph(*parts: str, kind: str | None = None) -> Markup:
    """Return a paragraph; `kind` is `note` (small print) or `missing`."""
    return element("p", {"class": kind}, *parts)


def missing(text: str) -> Markup:
    """Say what is not there, and why."""
    return paragraph(text, kind="missing")


def heading(text: str) -> Markup:
    """Return a heading inside a section."""
    return element("h3", {}, text)


def code(text: str) -> Markup:
    """Return a piece of program text."""
    return element("code", {}, text)


def bidi(text: str) -> Markup:
    """Return foreign text whose direction cannot reach what stands around it."""
    return element("bdi", {}, text)


def listed(items: Iterable[str]) -> Markup:
    """Return a list."""
    return element("ul", {}, *(element("li", {}, item) for item in items))


def tiles(facts: Sequence[tuple[str, str, str]]) -> Markup:
    """Return a few large figures: name, value, remark."""
    return element(
        "dl",
        {"class": "tiles"},
        *(
            element("div", {}, element("dt", {}, name), element("dd", {}, value, _small(remark)))
            for name, value, remark in facts
        ),
    )


def figure(drawing: Markup, title: str, remark: str = "") -> Markup:
    """Return a drawing under its title."""
    return element("figure", {}, element("figcaption", {}, title, _small(remark)), drawing)


def grid(kind: str, parts: Iterable[str]) -> Markup:
    """Return parts beside each other as far as there is room; `kind` is charts, maps or cards."""
    return element("div", {"class": kind}, *parts)


def cell(value: str, remark: str = "") -> Markup:
    """Return the content of a table cell: a value, and small print below it."""
    return joined([value, _small(remark)])


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    words: Sequence[int] = (),
) -> Markup:
    """Return a table whose first column names the rows; numbers stand to the right.

    Args:
        columns: headings.
        rows: as many cells each.
        caption: heading above the table, and its name for those who do not see it.
        words: columns, from 0, that hold text that may wrap.
    """
    kinds = ["words" if index in words else None for index in range(len(columns))]

    def line(cells: Sequence[str], tags: Sequence[tuple[str, str | None]]) -> Markup:
        return element(
            "tr",
            {},
            *(
                element(tag, {"class": kind, "scope": scope}, content)
                for content, kind, (tag, scope) in zip(cells, kinds, tags, strict=True)
            ),
        )

    head = line(columns, [("th", "col")] * len(columns))
    tags: list[tuple[str, str | None]] = [("th", "row"), *[("td", None)] * (len(columns) - 1)]
    content = element(
        "table",
        {"aria-label": caption or None},
        element("thead", {}, head),
        element("tbody", {}, *(line(row, tags) for row in rows)),
    )
    region = {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": caption or "table"}
    return joined([heading(caption) if caption else "", element("div", region, content)])


def wide(drawing: Markup, label: str) -> Markup:
    """Return a drawing that keeps a width at which it can be read, and scrolls on a phone."""
    attributes = {"class": "scroll wide", "tabindex": 0, "role": "region", "aria-label": label}
    return element("div", attributes, drawing)


def _small(text: str) -> Markup:
    return element("small", {}, text) if text else markup("")
