"""The JSON documents that `eval ... --out` writes: which is which, and whether it is whole."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sempa_mlx.errors import DataError, Problem

Kind = Literal["sts", "generation", "geometry", "frontier"]
EXPECTED = "what `eval sts`, `eval generation`, `eval geometry` or `eval frontier` wrote with --out"
MOST_BYTES = 2**24  # of a document: theirs have kilobytes


@dataclass(frozen=True, slots=True)
class Document:
    """One results file: its kind, its content, and its rows, one a system or scale."""

    kind: Kind
    name: str
    content: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def read_documents(paths: Sequence[Path]) -> tuple[Document, ...]:
    """Read results files.

    Raises:
        DataError: a file is missing, no JSON, or none of the four kinds; all of them are told.
    """
    found = [_read(path) for path in paths]
    problems = [each for each in found if isinstance(each, Problem)]
    if problems:
        raise DataError(problems, state="no report was written")
    return tuple(each for each in found if isinstance(each, Document))


def _read(path: Path) -> Document | Problem:
    try:
        if path.stat().st_size > MOST_BYTES:
            return Problem("too big for a results file", str(path), fix=f"expected {EXPECTED}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return Problem(f"cannot be read: {error.strerror}", str(path))
    except (ValueError, RecursionError) as error:
        return Problem("not JSON", str(path), str(error)[:120], f"expected {EXPECTED}")
    kind = _kind(content)
    if kind is None:
        return Problem("not a results file", str(path), _keys(content), f"expected {EXPECTED}")
    return Document(kind, path.name, content, content["results"])


def _keys(content: object) -> str:
    return f"its keys: {', '.join(content)}"[:120] if isinstance(content, dict) else ""


def _kind(content: object) -> Kind | None:
    """Tell the kind of a document by what its rows hold; None if it is none of the four."""
    rows = content.get("results") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(rows, list) or not rows:
        return None
    if not all(isinstance(row, dict) for row in rows):
        return None
    kinds: dict[Kind, bool] = {
        "sts": all(_is_sts(row, content) for row in rows),
        "frontier": all(map(_is_frontier, rows)),
        "geometry": all(map(_is_geometry, rows)),
        "generation": all(map(_is_generation, rows)),
    }
    return next((kind for kind, fits in kinds.items() if fits), None)


def _is_sts(row: Mapping[str, Any], content: Mapping[str, Any]) -> bool:
    scores = row.get("scores")
    return (
        _has_name(row)
        and isinstance(content.get("pairs"), dict)
        and "coders" not in content
        and isinstance(scores, dict)
        and _numbers(scores, *scores)
        and _numbers(row, "average")
    )


def _is_frontier(row: Mapping[str, Any]) -> bool:
    return _numbers(row, "adapter_scale", "spearman", "perplexity", "kl")


def _is_geometry(row: Mapping[str, Any]) -> bool:
    return _has_name(row) and _numbers(row, "alignment", "uniformity", "average_cosine")


def _has_name(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("system"), str) and bool(row["system"].strip())


def _is_generation(row: Mapping[str, Any]) -> bool:
    figures = row.get("figures", [])
    return (
        _has_name(row)
        and ("perplexity" in row or "figures" in row)
        and (_numbers(row, "perplexity") or "perplexity" not in row)
        and isinstance(figures, list)
        and all(
            isinstance(each, dict) and _numbers(each, "value") and {"task", "metric"} <= each.keys()
            for each in figures
        )
    )


def _numbers(row: Mapping[str, Any], *keys: str) -> bool:
    """Tell whether all keys are there with a number or null."""
    return all(key in row and (row[key] is None or type(row[key]) in (int, float)) for key in keys)
