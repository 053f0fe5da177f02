"""What the workers of other embedders share: texts in, vectors out, or the best size of a batch."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TRIED = (4, 8, 16, 32, 64)
TRIED_TEXTS = 192


def embed_or_try(
    job: dict[str, Any], embed: Callable[[list[str], int], np.ndarray], texts: str
) -> dict[str, Any]:
    """Embed a file of one text a line into the job's output; or find the fastest batch."""
    lines = Path(texts).read_text(encoding="utf-8").splitlines()
    if job.get("try"):
        some = lines[:: max(1, len(lines) // TRIED_TEXTS)][:TRIED_TEXTS]
        embed(some[: TRIED[0]], TRIED[0])
        seconds = {}
        for size in TRIED:
            # CPU time: other programs may run beside.
            start = time.process_time()
            embed(some, size)
            seconds[size] = time.process_time() - start
        return {"batch_size": min(seconds, key=lambda size: seconds[size]), "tried": seconds}
    np.save(job["out"], embed(lines, job["batch_size"]))
    return {}


def longest_first(
    texts: list[str], size: int, embed: Callable[[list[str]], np.ndarray]
) -> np.ndarray:
    """Embed texts of like length together; return their vectors in input order."""
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    parts = [
        embed([texts[index] for index in order[start : start + size]])
        for start in range(0, len(order), size)
    ]
    vectors = np.concatenate(parts)
    return vectors[np.argsort(order)]
