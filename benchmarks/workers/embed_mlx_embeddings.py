"""mlx-embeddings on a model of the one causal family that it knows, prompts put by us.

It is GPL-3.0 and runs in this process only; what it returns is written to a file. Its `generate`
pads all texts to the longest, so it gets batches of like length.
"""

from collections.abc import Callable
from typing import Any

import sempa_mlx  # noqa: F401 - gives mlx a fast BLAS on Linux CPUs, which its wheel lacks

# isort: split
import numpy as np
from batches import embed_or_try, longest_first
from mlx_embeddings import generate, load
from worker import read_job, write_report


def opened(job: dict[str, Any]) -> Callable[[list[str], int], np.ndarray]:
    """Load the model; return what embeds prompts in batches of a size."""
    model, tokenizer = load(job["base"])

    def embed(prompts: list[str]) -> np.ndarray:
        return np.array(generate(model, tokenizer, prompts).text_embeds)

    return lambda prompts, size: longest_first(prompts, size, embed)


job = read_job()
write_report(embed_or_try(job, opened(job), job["prompts"]))
