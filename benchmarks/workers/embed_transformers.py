"""A plain loop over transformers: texts of like length together, no head, the last token."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from batches import embed_or_try, longest_first
from transformers import AutoModel, AutoTokenizer
from worker import read_job, write_report


def opened(job: dict[str, Any]) -> Callable[[list[str], int], np.ndarray]:
    """Load the model; return what embeds prompts in batches of a size."""
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["base"], padding_side="left")
    model = AutoModel.from_pretrained(job["base"], dtype=torch.float32).eval()

    def embed(prompts: list[str]) -> np.ndarray:
        inputs = tokenizer(prompts, padding=True, return_tensors="pt", split_special_tokens=True)
        with torch.inference_mode():
            last = model(**inputs, use_cache=False).last_hidden_state[:, -1]
        found: np.ndarray = torch.nn.functional.normalize(last, dim=-1).numpy()
        return found

    return lambda prompts, size: longest_first(prompts, size, embed)


job = read_job()
write_report(embed_or_try(job, opened(job), job["prompts"]))
