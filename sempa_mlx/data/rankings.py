"""The distinct sentences of preference rows, and which of them a row ranks."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sempa_mlx.data.records import PreferenceRecord


class RankedSentences(NamedTuple):
    """Distinct texts, and for each row the numbers of its anchor and candidates, best first."""

    texts: tuple[str, ...]
    rankings: tuple[tuple[int, ...], ...]


def ranked_sentences(records: Sequence[PreferenceRecord], limit: int) -> RankedSentences:
    """Take the sentences of the first rows that have no more than `limit` of them in all."""
    rows: dict[str, int] = {}
    rankings = []
    for record in records:
        sentences = (record.anchor, *record.candidates)
        if len(rows) + len({text for text in sentences if text not in rows}) > limit:
            break
        rankings.append(tuple(rows.setdefault(text, len(rows)) for text in sentences))
    return RankedSentences(tuple(rows), tuple(rankings))


def unranked(texts: Iterable[str], limit: int) -> RankedSentences:
    """Take the first `limit` distinct texts that are not blank."""
    distinct = dict.fromkeys(text for text in texts if text.strip())
    return RankedSentences(tuple(distinct)[:limit], ())
