"""Texts compared without case, blanks and punctuation, and found again by shared 5-grams.

Near-duplicates are a set similarity join: prefix filtering (Chaudhuri et al. 2006, Bayardo et al.
2007) leaves few candidates, each of which is then compared in full. The result is exact.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence

SHINGLE = 5
PERCENT = 80

_LEFT_OUT = {"Zs", "Zl", "Zp", "Cc", "Cf", "Sk", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"}


class _Kept(dict[int, int | None]):
    """A table for `str.translate` without blanks, punctuation, accents of their own, controls."""

    def __missing__(self, code: int) -> int | None:
        kept = None if unicodedata.category(chr(code)) in _LEFT_OUT else code
        self[code] = kept
        return kept


_KEPT = _Kept()


def normal_form(text: str) -> str:
    """Return NFKC, casefolded, without blanks and punctuation.

    "Don't  stop!" and "do n't stop ." have one form. A text of nothing but punctuation keeps it,
    so that it is not equal to every other such text.
    """
    if text.isascii():  # three times as fast, and NFKC changes nothing
        return text.lower().translate(_KEPT) or "".join(text.split())
    # An accent that stands alone would become a blank and a combining mark.
    folded = unicodedata.normalize("NFKC", text.translate(_KEPT)).casefold()
    form = unicodedata.normalize("NFKC", folded).translate(_KEPT)
    form = unicodedata.normalize("NFKC", form)  # what was left out may have kept letters apart
    return form or "".join(text.split())


def shingles(form: str) -> frozenset[str]:
    """Return the distinct runs of five characters, or the form itself if it is shorter."""
    # A list inside is a quarter faster than a generator.
    starts = range(max(1, len(form) - SHINGLE + 1))
    return frozenset([form[start : start + SHINGLE] for start in starts])


def _prefix(size: int) -> int:
    """Return how many of `size` shingles cannot all be absent from a near-duplicate.

    Sets of Jaccard t share at least t * size of them, so of any size - ceil(t * size) + 1 at least
    one.
    """
    return size + 1 - -(-PERCENT * size // 100)


class NearIndex:
    """Normal forms in which near-duplicates are looked up."""

    def __init__(self, forms: Sequence[str]) -> None:
        """Take distinct forms; they are known by their positions from now on."""
        self._sets = [shingles(form) for form in forms]
        self._positions = {form: position for position, form in enumerate(forms)}
        counts = Counter(shingle for each in self._sets for shingle in each)
        # Rare ones first: they leave the fewest candidates.
        ordered = sorted(counts, key=lambda shingle: (counts[shingle], shingle))
        self._rank = {shingle: rank for rank, shingle in enumerate(ordered)}
        self._known = frozenset(counts)
        self._having: dict[int, list[int]] = {}
        for position, each in enumerate(self._sets):
            ranks = sorted(self._rank[shingle] for shingle in each)
            for rank in ranks[: _prefix(len(ranks))]:
                self._having.setdefault(rank, []).append(position)

    def position(self, form: str) -> int | None:
        """Return the position of an equal form, or None."""
        return self._positions.get(form)

    def find(self, form: str) -> dict[int, float]:
        """Return the positions of all near-duplicates of `form`, each with its Jaccard index.

        The index, of the sets of 5-grams, is 0.8 or more; an equal form has 1.
        """
        own = shingles(form)
        known = own & self._known
        # What the index does not hold is rarer than all that it holds.
        rest = _prefix(len(own)) - (len(own) - len(known))
        if rest <= 0:
            return {}
        ranks = sorted(map(self._rank.__getitem__, known))
        near = {each for rank in ranks[:rest] for each in self._having.get(rank, ())}
        found = {}
        for position in near:
            other = self._sets[position]
            shared = len(own & other)
            union = len(own) + len(other) - shared
            if 100 * shared >= PERCENT * union:
                found[position] = shared / union
        return found
