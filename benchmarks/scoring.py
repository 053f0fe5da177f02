"""Pairs per second of three ways to score pairs, alternating in one process.

    python benchmarks/scoring.py [--steps 2] [--repeats 3] [--data FILE]

A pair here is what a DPO step pays for it: the reference's forward pass, the policy's, and the
backward pass into LoRA. `plain` runs whole sequences with logits at every position, as other MLX
trainers do; `plain-head` runs whole sequences with logits at completion tokens only; `shared` is
what training uses. Steps and micro-batches are made as training makes them.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sempa_mlx import runtime

# isort: split
# mlx comes second: importing sempa_mlx first gives it a fast BLAS on Linux CPUs.
import mlx.core as mx
import mlx.nn as nn

from sempa_mlx.config import LoraConfig
from sempa_mlx.data.batching import WINDOW_BATCHES, group_by_length, step_batches
from sempa_mlx.data.preferences import read_preferences
from sempa_mlx.data.sources import training_source
from sempa_mlx.model.forward import TokenRow, pad_right
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import attach, dialled
from sempa_mlx.model.prompts import tokenize_preferences
from sempa_mlx.model.scoring import Scorer, choose_scoring
from sempa_mlx.training.objectives import implicit_rewards, plackett_luce_nll
from sempa_mlx.training.trainer import CPU_MICRO_BATCH_TOKENS, GPU_MICRO_BATCH_TOKENS

BETA = 0.1
SAME_NATS = {mx.float32: 1e-3, mx.float16: 0.1, mx.bfloat16: 1.0}


class FullLogits(Scorer):
    """Whole sequences, logits at every position, completion tokens picked afterwards."""

    def __call__(self, model: nn.Module, rows: Sequence[TokenRow]) -> mx.array:
        """Return completion log-probabilities, (rows, K) float32."""
        flat = [(row.prompt, completion) for row in rows for completion in row.completions]
        tokens = mx.array(pad_right([prompt + completion for prompt, completion in flat]))
        logits = model(tokens[:, :-1]).astype(mx.float32)
        targets = tokens[:, 1:]
        picked = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        logps = picked - mx.logsumexp(logits, axis=-1)
        places = mx.arange(1, tokens.shape[1])[None, :]
        first = mx.array([len(prompt) for prompt, _ in flat])[:, None]
        last = first + mx.array([len(completion) for _, completion in flat])[:, None]
        scored = (places >= first) & (places < last)
        return mx.where(scored, logps, 0.0).sum(axis=1).reshape(len(rows), -1)


def step_seconds(model: nn.Module, scorer: Scorer, rows: list[TokenRow]) -> float:
    """Time reference, policy and gradient of all rows, in micro-batches as training makes them."""

    def loss(members: list[TokenRow], reference: mx.array) -> mx.array:
        scores = implicit_rewards(scorer(model, members), reference, BETA)
        return plackett_luce_nll(scores).sum()

    budget = GPU_MICRO_BATCH_TOKENS if runtime.is_gpu() else CPU_MICRO_BATCH_TOKENS
    loss_and_grad = nn.value_and_grad(model, loss)
    start = time.perf_counter()
    for group in group_by_length([scorer.own_tokens(row) for row in rows], budget):
        members = [rows[index] for index in group]
        with dialled(model, 0.0):
            reference = scorer(model, members)
            mx.eval(reference)
        mx.eval(loss_and_grad(members, reference))
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run both paths alternately; return medians, ratio and the machine's matmul rate."""
    loaded = load_model(arguments.model)
    path = Path(arguments.data) if arguments.data else training_source("demo").path
    records = read_preferences(path, limit=arguments.batch_size * WINDOW_BATCHES).records
    pool = tokenize_preferences(records, loaded.tokenizer, 512).rows
    attach(loaded.model, LoraConfig(), 0)
    scorers = {
        "plain": FullLogits(shared=0, mask_rank=None),
        "plain-head": choose_scoring(loaded.model, pool, loaded.dtype, "plain"),
        "shared": choose_scoring(loaded.model, pool, loaded.dtype, "shared"),
    }
    lengths = [scorers["shared"].own_tokens(row) for row in pool]
    plan = step_batches(lengths, arguments.batch_size, seed=0, epoch=0)[: arguments.steps]
    steps = [[pool[index] for index in batch] for batch in plan]
    rows = [row for step in steps for row in step]
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    expected = scorers["shared"](loaded.model, rows[:4])
    for scorer in scorers.values():
        if mx.abs(scorer(loaded.model, rows[:4]) - expected).max() > SAME_NATS[loaded.dtype]:
            raise SystemExit("the ways of scoring disagree")
        step_seconds(loaded.model, scorer, rows[:4])  # warm up
    for _ in range(arguments.repeats):
        for name, scorer in scorers.items():
            seconds[name].append(sum(step_seconds(loaded.model, scorer, step) for step in steps))
    rates = {name: len(rows) / statistics.median(times) for name, times in seconds.items()}
    return {
        "model": arguments.model,
        "data": path.name,
        "pairs": len(rows),
        "batch_size": arguments.batch_size,
        "tokens_per_pass": {name: scorer.tokens(rows) for name, scorer in scorers.items()},
        "pairs_per_second": {name: round(rate, 3) for name, rate in rates.items()},
        "shared_over": {
            name: round(rates["shared"] / rate, 2)
            for name, rate in rates.items()
            if name != "shared"
        },
        "device": str(runtime.machine()),
        "matmul_gflops": round(runtime.matmul_gflops(), 1),
        "versions": runtime.package_versions(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", help="preference file; default: the demo triplets")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    sys.stdout.write(json.dumps(measure(parser.parse_args()), indent=2) + "\n")
