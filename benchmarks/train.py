"""What each idea of the trainer gains: pairs per second, memory and use of the machine, in one run.

    python benchmarks/train.py [--data FILE] [--pairs 64] [--rows 16] [--repeats 3]

Every rung keeps the ideas of those before it:
  plain        whole sequences, logits at every position, the reference in every step, file order
  head         logits at completion tokens only, block by block
  shared       prompts computed once
  reference    the reference's log-probabilities known beforehand, as in every epoch but the first
  bucketing    rows of like length together, as many in a forward pass as training takes

On a CPU mlx computes everything but matrix products on one core, so the share of the matmul rate is
that of one core with OPENBLAS_NUM_THREADS=1, and two processes under `mlx.launch` use both.

All rungs run the same pairs, alternately, the first four `--rows` of them in one forward pass;
medians count. The loss is that of DPO. Needed operations are those of shared tokens without
padding: four for a weight of a matrix (forward, and backward to the inputs: frozen weights need no
gradient), six for a weight of LoRA's, and four for each weight of the head at completion tokens.
Attention, norms and activations are not counted.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sempa_mlx import runtime

# isort: split
# mlx comes second: importing sempa_mlx first gives it a fast BLAS on Linux CPUs.
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from sempa_mlx.config import LoraConfig, TrainConfig
from sempa_mlx.data.batching import batches_by_length
from sempa_mlx.data.preferences import read_preferences
from sempa_mlx.data.sources import training_source
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.forward import pad_right
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import attach, dialled
from sempa_mlx.model.prompts import tokenize_preferences
from sempa_mlx.model.scoring import Scorer, choose_scoring, score_states
from sempa_mlx.training.objectives import implicit_rewards, plackett_luce_nll
from sempa_mlx.training.trainer import micro_batch_tokens

BETA = 0.1
# mlx's own log-sum-exp, which the first rung uses, is off by 1e-4 nats a token on a CPU.
SAME_NATS = {mx.float32: 1e-2, mx.float16: 0.1, mx.bfloat16: 1.0}
Score = Callable[[nn.Module, Sequence[TokenRow]], mx.array]


def full_logits(model: nn.Module, rows: Sequence[TokenRow]) -> mx.array:
    """Score whole sequences, logits at every position, completion tokens picked afterwards."""
    flat = [(row.prompt, completion) for row in rows for completion in row.completions]
    tokens = mx.array(pad_right([prompt + completion for prompt, completion in flat]))
    logits = model(tokens[:, :-1]).astype(mx.float32)
    picked = mx.take_along_axis(logits, tokens[:, 1:][..., None], axis=-1)[..., 0]
    logps = picked - mx.logsumexp(logits, axis=-1)
    places = mx.arange(1, tokens.shape[1])[None, :]
    first = mx.array([len(prompt) for prompt, _ in flat])[:, None]
    last = first + mx.array([len(completion) for _, completion in flat])[:, None]
    scored = (places >= first) & (places < last)
    return mx.where(scored, logps, 0.0).sum(axis=1).reshape(len(rows), -1)


def scored_by(scorer: Scorer) -> Score:
    """Score as training does."""

    def score(model: nn.Module, rows: Sequence[TokenRow]) -> mx.array:
        return score_states(model, scorer.states(model, rows), training=True).sums

    return score


@dataclass(frozen=True)
class Rung:
    """One way to train: how it scores, and whether it knows the reference and sorts by length."""

    name: str
    score: Score
    knows_reference: bool = False
    length_of: Callable[[TokenRow], int] | None = None


@dataclass(frozen=True)
class Run:
    """What one run of a rung took."""

    seconds: float
    peak_gb: float


def run(rung: Rung, model: nn.Module, rows: Sequence[TokenRow], per_pass: int) -> Run:
    """Compute the gradient of the DPO loss over all rows, and the reference if it is not known."""

    def loss(members: Sequence[TokenRow], reference: mx.array) -> mx.array:
        rewards = implicit_rewards(rung.score(model, members), reference, BETA)
        return plackett_luce_nll(rewards).sum()

    loss_and_grad = nn.value_and_grad(model, loss)
    if rung.length_of:
        passes = batches_by_length(rows, rung.length_of, micro_batch_tokens(TrainConfig()))
    else:
        passes = [list(rows[start : start + per_pass]) for start in range(0, len(rows), per_pass)]
    known = [references(rung, model, members) for members in passes if rung.knows_reference]
    total = None
    mx.reset_peak_memory()
    start = time.perf_counter()
    for index, members in enumerate(passes):
        reference = known[index] if known else references(rung, model, members)
        _, gradients = loss_and_grad(members, reference)
        total = tree_map(mx.add, total, gradients) if total else gradients
        mx.eval(total)
    return Run(time.perf_counter() - start, mx.get_peak_memory() / runtime.GB)


def references(rung: Rung, model: nn.Module, rows: Sequence[TokenRow]) -> mx.array:
    """Score under the untouched base."""
    with dialled(model, 0.0):
        found = rung.score(model, rows)
        mx.eval(found)
    return found


def needed_operations(model: nn.Module, scorer: Scorer, rows: Sequence[TokenRow]) -> float:
    """Count the floating-point operations that no way of training these pairs can do without."""
    matrices: int = sum(
        module.weight.size
        for layer in model.layers
        for _, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    )
    trained: int = sum(each.size for _, each in tree_flatten(model.trainable_parameters()))
    head: int = model.model.embed_tokens.weight.size  # tied or not, the output matrix is as large
    scored = sum(len(completion) for row in rows for completion in row.completions)
    return (4.0 * matrices + 6.0 * trained) * scorer.tokens(rows) + 4.0 * head * scored


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run all rungs alternately; return medians and gains."""
    loaded = load_model(arguments.model)
    model = loaded.model
    path = Path(arguments.data) if arguments.data else training_source("demo").path
    records = read_preferences(path, limit=arguments.pairs).records
    rows = tokenize_preferences(records, loaded.tokenizer, 512).rows
    attach(model, LoraConfig(), 0)
    shared = choose_scoring(model, rows, loaded.dtype, "shared")
    plain = choose_scoring(model, rows, loaded.dtype, "plain")
    rungs = [
        Rung("plain", full_logits),
        Rung("head", scored_by(plain)),
        Rung("shared", scored_by(shared)),
        Rung("reference", scored_by(shared), knows_reference=True),
        Rung("bucketing", scored_by(shared), knows_reference=True, length_of=shared.own_tokens),
    ]
    check_equal(rungs, model, rows[:4], SAME_NATS[loaded.dtype])
    runs: dict[str, list[Run]] = {rung.name: [] for rung in rungs}
    rates = []
    for _ in range(arguments.repeats):
        for rung in rungs:
            found = run(rung, model, rows, arguments.rows)
            runs[rung.name].append(found)
            sys.stderr.write(f"{rung.name}: {found.seconds:.1f} s, {found.peak_gb:.2f} GB\n")
        rates.append(runtime.matmul_gflops())
    needed = needed_operations(model, shared, rows) / 1e9
    rate = statistics.median(rates)
    return {
        "model": arguments.model,
        "data": path.name,
        "pairs": len(rows),
        "rows_in_a_pass": arguments.rows,
        "tokens_needed": shared.tokens(rows),
        "matmul_gflops": round(rate, 1),
        "rungs": summaries(runs, len(rows), shared.tokens(rows), needed / rate),
        "machine": str(runtime.machine()),
        "versions": runtime.package_versions(),
    }


def check_equal(
    rungs: Sequence[Rung], model: nn.Module, rows: Sequence[TokenRow], allowed: float
) -> None:
    """Demand the same log-probabilities from all rungs, and warm them up."""
    expected = rungs[0].score(model, rows)
    for rung in rungs:
        if mx.abs(rung.score(model, rows) - expected).max() > allowed:
            raise SystemExit(f"{rung.name} disagrees with {rungs[0].name}")
        run(rung, model, rows, len(rows))


def summaries(
    runs: dict[str, list[Run]], pairs: int, tokens: int, ideal_seconds: float
) -> list[dict[str, object]]:
    """Return the figures of every rung, and its gain over the one before and over the first."""
    found: list[dict[str, object]] = []
    seconds = {name: statistics.median(r.seconds for r in each) for name, each in runs.items()}
    first = before = seconds[next(iter(seconds))]
    for name, each in runs.items():
        found.append(
            {
                "name": name,
                "pairs_per_second": round(pairs / seconds[name], 3),
                "needed_tokens_per_second": round(tokens / seconds[name], 1),
                "peak_gb": round(max(r.peak_gb for r in each), 3),
                "share_of_matmul_rate": round(ideal_seconds / seconds[name], 3),
                "gain": round(before / seconds[name], 2),
                "gain_over_plain": round(first / seconds[name], 2),
            }
        )
        before = seconds[name]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", help="preference file; default: the demo triplets")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="pairs in one forward pass")
    parser.add_argument("--repeats", type=int, default=3)
    sys.stdout.write(json.dumps(measure(parser.parse_args()), indent=2) + "\n")
