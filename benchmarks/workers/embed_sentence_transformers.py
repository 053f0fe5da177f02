"""sentence-transformers on our export, whose tokenizer puts the prompt around each sentence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from batches import embed_or_try
from sentence_transformers import SentenceTransformer
from worker import read_job, write_report


def opened(job: dict[str, Any]) -> Callable[[list[str], int], np.ndarray]:
    """Load the model; return what embeds texts in batches of a size."""
    torch.set_num_threads(job["threads"])
    model = SentenceTransformer(job["sentence_transformers"], device="cpu")
    return lambda texts, size: model.encode(texts, batch_size=size, show_progress_bar=False)


job = read_job()
write_report(embed_or_try(job, opened(job), job["texts"]))
