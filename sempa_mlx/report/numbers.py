"""Numbers in JSON documents, and how a report writes them: undefined is a word, never 0."""

import math
from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"


def value_of(values: Mapping[str, Any], key: str) -> float:
    """Return a number of a JSON object; NaN if it is null, missing or no number."""
    value = values.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:  # an integer of hundreds of digits
        return math.nan


def shown(value: float, digits: int, sign: str = "") -> str:
    """Write a number with so many decimals, `sign` "+" for differences; NaN is "undefined"."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else "infinite"
    return f"{value:{sign}z,.{digits}f}".replace("-", MINUS)


def with_error(value: float, error: float, digits: int) -> str:
    """Write a value and its standard error, or what of them is defined."""
    text = shown(value, digits)
    return text if math.isnan(error) or math.isnan(value) else f"{text} ± {shown(error, digits)}"


def span(low: float, high: float, digits: int, sign: str = "") -> str:
    """Write an interval."""
    if math.isnan(low) or math.isnan(high):
        return "undefined"
    return f"{shown(low, digits, sign)} to {shown(high, digits, sign)}"
