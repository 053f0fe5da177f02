"""Sparse codes as JSON lines for search engines: one text and its weighted terms a line.

`{"id": 0, "text": ..., "vector": {term: weight}}`: what Anserini's JsonVectorCollection indexes,
and what fills a sparse field of Lucene, OpenSearch or Qdrant. Weights are whole numbers, 100 times
the value, as impact indexes want them.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

WEIGHT = 100
BLANK = "\u2581"  # as SentencePiece writes it


def term_keys(latents: int, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return a term for each latent, no two alike and none with white space.

    Engines cut terms at white space, so a blank of a name is written `▁`. A name that is empty,
    holds other white space, or belongs to several latents (such as bytes that are no character)
    would lose or mix up weights: there the term is `#` and the latent's number.

    Args:
        latents: how many.
        names: texts of the latents, if they are tokens; else terms are the latents' numbers.
    """
    if names is None:
        return tuple(map(str, range(latents)))
    if len(names) != latents:
        raise ValueError(f"{len(names)} names of {latents} latents")
    spelled = [name.replace(" ", BLANK) for name in names]
    counts = Counter(spelled)
    keys = []
    for number, name in enumerate(spelled):
        if counts[name] > 1 or name.split() != [name]:
            name = f"#{number}"
            while name in counts:  # a token that reads so
                name = f"#{name}"
        keys.append(name)
    return tuple(keys)


def write_code_lines(
    handle: IO[str],
    texts: Sequence[str],
    codes: "csr_array",
    keys: Sequence[str],
    first_id: int = 0,
) -> None:
    """Write a line a text, its strongest term first; a weight that rounds to 0 is left out.

    Args:
        handle: takes the lines.
        texts: n of them.
        codes: (n, latents), of finite values.
        keys: a term for each latent.
        first_id: id of the first text; ids count on from there.
    """
    for row, text in enumerate(texts):
        start, end = codes.indptr[row : row + 2]
        latents = codes.indices[start:end]
        weights = np.rint(WEIGHT * codes.data[start:end].astype(np.float64)).astype(np.int64)
        order = np.lexsort((latents, -weights))
        vector = {keys[latents[at]]: int(weights[at]) for at in order if weights[at]}
        line = {"id": first_id + row, "text": text, "vector": vector}
        handle.write(json.dumps(line, ensure_ascii=False) + "\n")
