"""Say in words what is wrong with a setting, and what would be right."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from pydantic_core import ErrorDetails

from sempa_mlx.config_file import visible

_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_unicode": "valid text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list",
    "literal_error": "{expected}",
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
    "value_error": "{error}",
}


def name_fault(section: str, key: str, schema: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Return what is wrong with a name that is no setting, and which names there are.

    An exact name in another section is a better guess than a similar one in this section.
    """
    valid = schema.get(section, schema)
    kind = "keys" if section in schema else "sections"
    if section in schema and not key:
        names = ", ".join(sorted(valid))
        return f"`{section}` is a section and must hold settings", f"valid keys: {names}"
    word = key or section
    what = f"unknown section `{visible(section)}`"
    if section in schema:
        what = f"unknown key `{visible(key)}` in section `{section}`"
    elsewhere = [f"{name}.{word}" for name, keys in schema.items() if word in keys]
    guess = (
        elsewhere[0] if elsewhere else close_match(word if section in schema else section, valid)
    )
    hint = f"did you mean `{guess}`? " if guess else ""
    return what, f"{hint}valid {kind}: {', '.join(sorted(valid))}"


def value_fault(error: ErrorDetails) -> tuple[str, str]:
    """Return what is wrong with the value of a setting, and how to write it."""
    section, key, *rest = error["loc"]
    name = f"{section}.{key}" + "".join(f"[{item}]" for item in rest)
    value, kind = error["input"], error["type"]
    bounds = {name: _bound(item) for name, item in error.get("ctx", {}).items()}
    wanted = _WANTED[kind].format(**bounds)
    shown = visible(json.dumps(value, ensure_ascii=False, default=str))
    return f"{name} must be {wanted}, got {shown}", _value_fix(kind, value, wanted)


def _bound(item: object) -> object:
    return int(item) if isinstance(item, float) and item.is_integer() else item


def _value_fix(kind: str, value: object, wanted: str) -> str:
    if kind in {"int_type", "float_type"} and isinstance(value, str):
        return "leave out the quotes" if value and not value.strip("+-.0123456789eE") else ""
    if kind == "string_type" and isinstance(value, bool | int | float | dict):
        return "put it in quotes"
    if kind == "literal_error":
        # pydantic lists the choices as 'a', 'b' or 'c'.
        guess = close_match(str(value), [word for word in wanted.split("'") if word.isalnum()])
        return f"did you mean `{guess}`?" if guess else ""
    return ""


def close_match(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """Return the known name that is most like the word, or the empty text."""
    return next(iter(get_close_matches(word, list(known), n=1)), "")
