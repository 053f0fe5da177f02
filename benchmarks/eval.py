"""What the evaluation gains over straightforward code, in one run.

    python benchmarks/eval.py --sts FILE --lm DIR [--sentences 512] [--items 100] [--repeats 3]

Sentences embedded a second (PromptEOL, `--sentences` spread over a file of scored pairs):
  naive     batches of 16 in file order, padded to the longest, output head on, repeats again
  encoder   what `embed` and `eval sts` do: repeats once, like lengths together, the template's
            leading tokens once a batch, no head

HellaSwag items scored a second:
  plain     every prompt again with each of its four endings
  shared    every prompt once, its endings branch off

Ways run alternately; medians count. Vectors and choices have to agree. Both ways of HellaSwag run
the head at the tokens of endings only, in batches of like length and of at most `--batch-tokens`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sempa_mlx import runtime

# isort: split
# sempa_mlx comes before mlx, to give it a fast BLAS on Linux CPUs.
import mlx.core as mx
import numpy as np

from sempa_mlx.data.lm_tasks import ChoiceTask, load_lm_tasks
from sempa_mlx.data.sts_sets import load_dev_pairs
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.evaluation.choices import ChoiceScoring, accuracy
from sempa_mlx.evaluation.stats import cosines
from sempa_mlx.model.forward import pad_right
from sempa_mlx.model.head import head_logits, text_model
from sempa_mlx.model.load import LoadedModel

NAIVE_BATCH = 16
LEAST_COSINE = 0.9999


def embed_naively(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Embed texts as a loop of a few lines does; (texts, dim) float32."""
    model = encoder.loaded.model
    tokenized = encoder.tokenize(texts)
    found = []
    for start in range(0, len(tokenized), NAIVE_BATCH):
        rows = tokenized[start : start + NAIVE_BATCH]
        lengths = mx.array([len(row) for row in rows])
        hidden = text_model(model).model(mx.array(pad_right(rows)))
        logits = head_logits(model, hidden.reshape(-1, hidden.shape[-1]))
        last = mx.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        mx.eval(logits, last)
        found.append(np.array(last))
    return np.concatenate(found)


def measure_embedding(encoder: Encoder, texts: Sequence[str], repeats: int) -> dict[str, object]:
    """Time both ways of embedding; compare their vectors."""
    ways: dict[str, Callable[[], np.ndarray]] = {
        "naive": lambda: embed_naively(encoder, texts),
        "encoder": lambda: encoder.encode(texts),
    }
    found = {way: embed() for way, embed in ways.items()}
    least = float(cosines(found["naive"], found["encoder"]).min())
    if least < LEAST_COSINE:
        raise SystemExit(f"both ways give other vectors: cosine {least}")
    return {
        "sentences": len(texts),
        "distinct": len(set(texts)),
        **rates(ways, len(texts), repeats),
        "least_cosine": least,
    }


def measure_choices(
    loaded: LoadedModel, task: ChoiceTask, batch_tokens: int, repeats: int
) -> dict[str, object]:
    """Time both ways of scoring choices; compare their likelihoods."""
    scorings = {
        way: ChoiceScoring(loaded, task.questions, batch_tokens=batch_tokens, scoring=way)
        for way in ("plain", "shared")
    }
    ways = {way: scoring.log_likelihoods for way, scoring in scorings.items()}
    pairs = list(zip(*(score() for score in ways.values()), strict=True))
    other = sum(
        accuracy(plain, question) != accuracy(shared, question)
        for (plain, shared), question in zip(pairs, task.questions, strict=True)
    )
    return {
        "items": len(task.questions),
        "batch_tokens": batch_tokens,
        **rates(ways, len(task.questions), repeats),
        "largest_difference_nats": float(max(np.abs(a - b).max() for a, b in pairs)),
        "other_choices": other,
    }


def rates(ways: Mapping[str, Callable[[], object]], count: int, repeats: int) -> dict[str, object]:
    """Return items a second of two ways, and the second's gain over the first."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - start)
            sys.stderr.write(f"{repeat + 1}/{repeats} {way}: {seconds[way][-1]:.1f} s\n")
    first, second = (count / statistics.median(each) for each in seconds.values())
    found = {way: round(rate, 3) for way, rate in zip(ways, (first, second), strict=True)}
    return {"per_second": found, "gain": round(second / first, 2)}


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run what has data."""
    encoder = Encoder.load(arguments.model)
    document: dict[str, object] = {"model": arguments.model}
    if arguments.sts:
        pairs = load_dev_pairs(Path(arguments.sts), arguments.sentences // 2)
        texts = [text for pair in pairs for text in (pair.sentence1, pair.sentence2)]
        document["embedding"] = measure_embedding(encoder, texts, arguments.repeats)
    if arguments.lm:
        (task,) = load_lm_tasks(Path(arguments.lm), ["hellaswag"], arguments.items)
        assert isinstance(task, ChoiceTask)
        found = measure_choices(encoder.loaded, task, arguments.batch_tokens, arguments.repeats)
        document["hellaswag"] = found
    return document | {
        "matmul_gflops": round(runtime.matmul_gflops(), 1),
        "machine": str(runtime.machine()),
        "versions": runtime.package_versions(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sts", help="file of scored pairs")
    parser.add_argument("--lm", help="folder with a HellaSwag file")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sentences", type=int, default=512, help="so many, spread")
    parser.add_argument("--items", type=int, default=100, help="the first n")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    sys.stdout.write(json.dumps(measure(parser.parse_args()), indent=2) + "\n")
