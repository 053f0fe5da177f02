"""Read and write settings as strict YAML; know lines and quotes, not which settings exist.

A settings file has two levels, `section:` and `key: value`. Scalars follow the YAML 1.2 core
schema, because PyYAML's own rules turn `no` into False, `010` into 8, `3:20` into 200 and `1e-4`
into text. Duplicated keys, aliases and tags are faults. Reading never stops at the first fault,
unless the text is not YAML at all.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sempa_mlx.errors import Problem

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 16
_MAX_SHOWN = 120
_REFUSED = "refused"
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CORE = "tag:yaml.org,2002:"
# More digits than 600 fall through to a float: `int()` refuses thousands of them.
_RESOLVERS = {
    None: [
        (_CORE + "null", re.compile(r"(?:~|null|Null|NULL|)\Z")),
        (_CORE + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
        (_CORE + "int", re.compile(r"[-+]?[0-9]{1,600}\Z")),
        (
            _CORE + "float",
            re.compile(
                r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
                r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
            ),
        ),
    ]
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One value that somebody wrote, and where.

    `key` is dotted (`train.seed`), or one word where a section was expected; `source` names the
    place shortly (`sempa.yaml:12`, `--set`), `place` in full; `evidence` is the source line.
    """

    key: str
    value: object
    source: str
    place: str
    evidence: str = ""


class _Loader(yaml.SafeLoader):
    """Compose nodes under the core schema; swap what we refuse for a node that says why."""

    yaml_implicit_resolvers = _RESOLVERS
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            return yaml.ScalarNode(_REFUSED, "aliases (`*name`) are not read", event.start_mark)
        if self.depth == _MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"more than {_MAX_DEPTH} levels", problem_mark=event.start_mark
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if event.tag is not None:
            return yaml.ScalarNode(_REFUSED, "tags (`!name`) are not read", event.start_mark)
        if isinstance(node, yaml.ScalarNode) and _SURROGATE.search(node.value):
            return yaml.ScalarNode(_REFUSED, "half a surrogate pair is no text", event.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Write text so that `_Loader` reads the same text back."""

    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Only double quotes keep every line break and control character as it is.
        return self.represent_scalar(_CORE + "str", data, None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


class _Page:
    """The lines of one text under the name that faults are to show."""

    def __init__(self, label: str, text: str) -> None:
        self.label = label
        self.text = text
        self.lines = _LINE_BREAK.split(text)

    def place(self, line: int) -> str:
        return f"{self.label}:{line}"

    def evidence(self, line: int) -> str:
        return f"{line:>6} | {visible(self.lines[line - 1])}"

    def problem(self, line: int, what: str, fix: str = "") -> Problem:
        return Problem(what, self.place(line), self.evidence(line), fix)

    def setting(self, key: str, value: object, line: int) -> Setting:
        place = self.place(line)
        return Setting(key, value, place, place, self.evidence(line))


def visible(text: str) -> str:
    r"""Return one line of text that is safe to show: `\t`-like escapes, at most 120 characters."""
    cut = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def read_settings(path: Path, label: str, sections: Collection[str]) -> list[Setting | Problem]:
    """Read a settings file into its values and its faults, in the order of its lines.

    Args:
        path: the file, UTF-8, at most 1 MiB.
        label: what to call the file in places.
        sections: the sections that may hold keys; any other top-level key comes back whole, as
            a setting whose key has no dot.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as exc:
        return [Problem(f"cannot be read: {exc.strerror}", label)]
    if len(data) > _MAX_BYTES:
        return [Problem("larger than 1 MiB, so not a settings file", label)]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        return [Problem("not UTF-8 text", f"{label}:{line}", fix="save the file as UTF-8")]
    page = _Page(label, text)
    root = _compose(page)
    return [root] if isinstance(root, Problem) else list(_read_sections(page, root, sections))


def parse_setting(key: str, text: str, source: str) -> Setting | Problem:
    """Read one override: `text` is the `1e-4` of `--set train.learning_rate=1e-4`.

    Args:
        key: dotted name of the setting.
        text: its value as YAML.
        source: the option that gave it (`--set`); with the key it makes the place.
    """
    place = f"{source} {visible(key)}"
    node = _compose(_Page(place, text))
    if isinstance(node, Problem):
        return Problem(node.what, place, fix=node.fix)
    if node is None:
        return Problem("no value after `=`", place, fix="write `null` for no value")
    refusal = _refusal(node)
    return Problem(refusal, place) if refusal else Setting(key, _value(node), source, place)


def write_settings(tree: dict[str, Any]) -> str:
    """Return YAML text, in the order of `tree`, that `read_settings` reads to the same values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)


def write_line(key: str, value: object) -> str:
    """Return `key: value` as one line of YAML, lists in brackets."""
    if not isinstance(value, list):
        return write_settings({key: value}).rstrip("\n")
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=1 << 20
    )
    return f"{key}: {text}".rstrip("\n")


def _compose(page: _Page) -> yaml.Node | Problem | None:
    """Return the root node, None for an empty text, or why the text is not YAML."""
    try:
        loader = _Loader(page.text)
    except yaml.reader.ReaderError as exc:
        line = len(_LINE_BREAK.split(page.text[: exc.position]))
        return page.problem(line, "not valid YAML: a control character")
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as exc:
        return _syntax_problem(page, exc)
    except (ValueError, OverflowError):
        # PyYAML hands the escape "\UFFFFFFFF" to chr() unchecked.
        return page.problem(loader.line + 1, "not valid YAML: no such character")


def _syntax_problem(page: _Page, error: yaml.MarkedYAMLError) -> Problem:
    marks = [mark for mark in (error.problem_mark, error.context_mark) if mark]
    lines = [mark.line + 1 for mark in marks]
    # What was opened and never closed is found at the blank end: show where it was opened.
    line = next((line for line in lines if page.lines[line - 1].strip()), lines[0])
    text = page.lines[line - 1]
    indent = text[: len(text) - len(text.lstrip())]
    fix = "indent with spaces, not with tabs" if "\t" in indent else ""
    why = ", ".join(filter(None, (error.context, error.problem)))
    return page.problem(line, f"not valid YAML: {visible(why)}", fix)


def _read_sections(
    page: _Page, root: yaml.Node | None, sections: Collection[str]
) -> Iterator[Setting | Problem]:
    if root is None or (not root.value and not isinstance(root, yaml.SequenceNode)):
        yield Problem("no settings in the file", page.label)
    elif not isinstance(root, yaml.MappingNode):
        yield page.problem(
            _line(root),
            _refusal(root) or "expected sections at the top level",
            "write `section:` and, indented under it, `key: value`",
        )
    else:
        for name, node, entry in _read_pairs(page, root, ""):
            if name in sections and isinstance(node, yaml.MappingNode) and node.value:
                if isinstance(entry, Problem):
                    yield entry
                for _, _, inner in _read_pairs(page, node, f"{name}."):
                    yield inner
            else:
                yield entry


def _read_pairs(
    page: _Page, mapping: yaml.MappingNode, prefix: str
) -> Iterator[tuple[str, yaml.Node, Setting | Problem]]:
    """Yield name, value node, and the setting or what is wrong with it, for every pair."""
    seen: dict[str, int] = {}
    for key_node, node in mapping.value:
        line = _line(key_node)
        name = str(key_node.value)
        refusal = _refusal(key_node) or _refusal(node)
        entry: Setting | Problem
        if refusal:
            entry = page.problem(line, refusal, "write the value out")
        elif not isinstance(key_node, yaml.ScalarNode):
            entry = page.problem(line, "a key must be one word")
        elif name in seen:
            what = f"duplicated key `{visible(prefix + name)}`, first on line {seen[name]}"
            entry = page.problem(line, what, "keep one of them")
        else:
            seen[name] = line
            entry = page.setting(prefix + name, _value(node), line)
        yield name, node, entry


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _refusal(node: yaml.Node) -> str:
    """Return why the node, or one in its list, is refused; else the empty text."""
    if node.tag == _REFUSED:
        return str(node.value)
    items = node.value if isinstance(node, yaml.SequenceNode) else ()
    return next(filter(None, map(_refusal, items)), "")


def _value(node: yaml.Node) -> object:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        # No setting takes a mapping, so what is in it does not matter.
        return {}
    return _scalar(node.tag.removeprefix(_CORE), str(node.value))


def _scalar(kind: str, text: str) -> str | bool | int | float | None:
    match kind:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case _:
            return text
