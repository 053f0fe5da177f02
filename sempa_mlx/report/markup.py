"""HTML and SVG elements built from parts: text that is not markup already is escaped."""

import re
from collections.abc import Iterable, Mapping
from html import escape

# What no HTML or XML may hold: controls other than tab and line ends, surrogates, non-characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

Attributes = Mapping[str, object]


class Markup(str):
    """Text that is markup: it goes into a page as it stands."""

    __slots__ = ()


def markup(content: str) -> Markup:
    """Return markup as it is, and any other text escaped; forbidden characters become U+FFFD."""
    if isinstance(content, Markup):
        return content
    return Markup(escape(_FORBIDDEN.sub("\ufffd", content), quote=True))


def element(name: str, attributes: Attributes | None = None, *children: str) -> Markup:
    """Return an element, well-formed as XML and as HTML.

    Args:
        name: of the element.
        attributes: values are escaped; numbers are written with at most two decimals; those of
            None are left out.
        children: put one after another; those that are no `Markup` are escaped.
    """
    inside = "".join(map(markup, children))
    opening = name + "".join(
        f' {key}="{_value(value)}"'
        for key, value in (attributes or {}).items()
        if value is not None
    )
    if not inside and name in _CLOSED:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{inside}</{name}>")


_CLOSED = {"meta", "br", "circle", "line", "path", "polyline", "rect"}


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """Join parts, each escaped unless it is markup."""
    return Markup(markup(between).join(map(markup, parts)))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return markup(str(value))
