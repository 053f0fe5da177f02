"""What running each prompt once gains in multiple choice: HellaSwag items a second, in one run.

    python benchmarks/eval.py --data DIR [--items 100] [--repeats 3]

Two ways to score the same items, alternately; medians count:
  plain    every prompt again with each of its four endings
  shared   every prompt once, its endings branch off

Both run the head at the tokens of endings only, in batches of like length and at most
`--batch-tokens` tokens. The choices have to be the same.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from sempa_mlx import runtime

# isort: split
# sempa_mlx comes before mlx, to give it a fast BLAS on Linux CPUs.
import numpy as np

from sempa_mlx.data.lm_tasks import ChoiceTask, load_lm_tasks
from sempa_mlx.evaluation.choices import ChoiceScoring, accuracy
from sempa_mlx.model.load import load_model

WAYS = ("plain", "shared")


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Time both ways; return rates, their ratio and how far their likelihoods lie apart."""
    (task,) = load_lm_tasks(Path(arguments.data), ["hellaswag"], arguments.items)
    assert isinstance(task, ChoiceTask)
    loaded = load_model(arguments.model)
    ways = {
        way: ChoiceScoring(loaded, task.questions, batch_tokens=arguments.batch_tokens, scoring=way)
        for way in WAYS
    }
    found = {way: scoring.log_likelihoods() for way, scoring in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(arguments.repeats):
        for way, scoring in ways.items():
            start = time.perf_counter()
            scoring.log_likelihoods()
            seconds[way].append(time.perf_counter() - start)
            sys.stderr.write(f"{repeat + 1}/{arguments.repeats} {way}: {seconds[way][-1]:.1f} s\n")
    count = len(task.questions)
    rates = {way: count / statistics.median(each) for way, each in seconds.items()}
    pairs = list(zip(found["plain"], found["shared"], strict=True))
    return {
        "model": arguments.model,
        "items": count,
        "batch_tokens": arguments.batch_tokens,
        "items_per_second": {way: round(rate, 3) for way, rate in rates.items()},
        "gain": round(rates["shared"] / rates["plain"], 2),
        "largest_difference_nats": float(max(np.abs(one - other).max() for one, other in pairs)),
        "other_choices": sum(
            accuracy(one, question) != accuracy(other, question)
            for (one, other), question in zip(pairs, task.questions, strict=True)
        ),
        "machine": str(runtime.machine()),
        "versions": runtime.package_versions(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with a HellaSwag file")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--items", type=int, default=100, help="the first n")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    sys.stdout.write(json.dumps(measure(parser.parse_args()), indent=2) + "\n")
