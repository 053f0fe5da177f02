"""The seven STS tasks as PromptEOL's and SemPA's evaluation runs them, on torch.

SentEval goes set by set, in the order of the first sentences' lengths, in batches of 16: first
sentences, then second ones, every one again wherever it occurs. The whole model runs, its head
and all hidden states included, on rows padded on the left with token 0.
"""

from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import read_job, write_report

from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.data.sts_tasks import sts_tasks
from sempa_mlx.data.templates import PROMPTEOL

BATCH = 16


class Model:
    """A causal language model that embeds a batch."""

    def __init__(self, folder: str) -> None:
        """Load it in float32."""
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token_id = 0
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(self, sentences: list[str]) -> np.ndarray:
        """Return the last states of the last layer."""
        prompts = [PROMPTEOL.render(sentence) for sentence in sentences]
        inputs = self.tokenizer(prompts, padding=True, return_tensors="pt")
        with torch.no_grad():
            outputs = self.model(**inputs, output_hidden_states=True, return_dict=True)
        found: np.ndarray = outputs.hidden_states[-1][:, -1, :].numpy()
        return found


def sets(task: StsTask) -> list[tuple[StsPair, ...]]:
    """Return the pairs of a task's sets."""
    if not task.subsets:
        return [task.pairs]
    parts, start = [], 0
    for subset in task.subsets:
        parts.append(task.pairs[start : start + subset.num_pairs])
        start += subset.num_pairs
    return parts


def score(model: Model, task: StsTask) -> float:
    """Return Spearman x 100 over all pairs of a task."""
    cosines: list[float] = []
    gold: list[float] = []
    for pairs in sets(task):
        order = sorted(pairs, key=lambda p: (len(p.sentence1), len(p.sentence2), p.score))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            left = model.embed([pair.sentence1 for pair in batch])
            right = model.embed([pair.sentence2 for pair in batch])
            products = (left * right).sum(axis=1)
            norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
            cosines += (products / norms).tolist()
            gold += [pair.score for pair in batch]
    return 100 * float(spearmanr(gold, cosines).statistic)


def evaluate(job: dict[str, Any]) -> dict[str, Any]:
    """Score all tasks."""
    torch.set_num_threads(job["threads"])
    model = Model(job["base"])
    tasks = sts_tasks(job["data"], None, "senteval")
    return {"scores": {task.name: score(model, task) for task in tasks}}


write_report(evaluate(read_job()))
