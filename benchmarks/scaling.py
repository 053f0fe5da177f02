"""How time and memory of sempa-mlx grow with rows, with length, and with candidates.

    SEMPA_DATA=DIR python benchmarks/scaling.py [--rows 1000 10000 100000]

  rows         `sempa-mlx embed` on files of distinct sentences: memory has to stay flat
  length       vectors of texts of 16 to 512 tokens, the same number of tokens for each length
  candidates   a listwise training step over rows of 2 to 8 candidates that share their prompt

Every point is a process of its own; points take turns, medians count.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peers_embed import real_sentences
from peers_train import preference_file
from side_by_side import (
    Ran,
    Report,
    System,
    alternate,
    markdown,
    matmul_gflops,
    median,
    options,
    write,
)


def embed_files(rows: Sequence[int], folder: Path) -> list[System]:
    """Write files of so many sentences; return what embeds them."""
    texts = real_sentences(max(rows))
    found = []
    for count in dict.fromkeys(min(each, len(texts)) for each in rows):
        path = folder / f"{count}.txt"
        path.write_text("\n".join(texts[:count]) + "\n", encoding="utf-8")
        extra = {"texts": str(path), "out": str(folder / "vectors.npy"), "count": count}
        found.append(System(f"{count:,}", sys.executable, "embed_sempa.py", extra))
    return found


def by_rows(systems: list[System], runs: dict[str, list[Ran]]) -> list[Report]:
    """Return time and memory for each number of rows."""
    return [
        {
            "rows": each.extra["count"],
            "seconds": median(runs[each.name], lambda ran: ran.seconds),
            "rows_per_second": each.extra["count"]
            / median(runs[each.name], lambda ran: ran.seconds),
            "peak_gb": median(runs[each.name], lambda ran: ran.peak_gb),
        }
        for each in systems
        if each.name in runs
    ]


def by_length(runs: dict[str, list[Ran]]) -> list[Report]:
    """Return rates and memory for each length."""
    return [
        {
            "length": int(name),
            "tokens_per_second": median(
                each, lambda ran: ran.report["tokens"] / ran.report["seconds"]
            ),
            "texts_per_second": median(
                each, lambda ran: ran.report["texts"] / ran.report["seconds"]
            ),
            "peak_gb": median(each, lambda ran: ran.peak_gb),
        }
        for name, each in runs.items()
    ]


def by_candidates(runs: dict[str, list[Ran]]) -> list[Report]:
    """Return time, tokens and memory for each number of candidates."""
    return [
        {
            "candidates": int(name),
            "seconds": median(each, lambda ran: ran.report["seconds"]),
            "tokens": each[0].report["tokens"],
            "array_gb": median(each, lambda ran: ran.report["array_gb"]),
            "peak_gb": median(each, lambda ran: ran.peak_gb),
        }
        for name, each in runs.items()
    ]


def table(points: list[Report]) -> str:
    """Return points as a table."""
    rows = [
        [f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" for value in each.values()]
        for each in points
    ]
    return markdown([name.replace("_", " ") for name in points[0]], rows)


def measure(arguments: argparse.Namespace) -> None:
    """Run everything and write it down."""
    if arguments.quick:
        arguments.rows, arguments.lengths, arguments.candidates = [16, 32], [16, 64], [2, 4]
        arguments.tokens, arguments.pairs, arguments.repeats = 256, 2, 1
    threads, repeats = arguments.threads, arguments.repeats
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wanted = {"for": "model", "folder": temporary, "model": arguments.model, "seed": 0}
        base = System("prepare", sys.executable, "prepare.py").run(wanted, threads).report["base"]
        embedders = embed_files(arguments.rows, folder)
        job = {
            "base": base,
            "data": preference_file(None),
            "texts": embedders[-1].extra["texts"],
            "tokens": arguments.tokens,
        }
        lengths = [
            System(str(each), sys.executable, "scale_length.py", {"length": each})
            for each in arguments.lengths
        ]
        listwise = [
            System(
                str(each),
                sys.executable,
                "scale_candidates.py",
                {"candidates": each, "rows": arguments.pairs},
            )
            for each in arguments.candidates
        ]
        rates = [matmul_gflops(threads)]
        found = {
            "rows": by_rows(embedders, alternate(embedders, job, repeats, threads)[0]),
            "length": by_length(alternate(lengths, job, repeats, threads)[0]),
            "candidates": by_candidates(alternate(listwise, job, repeats, threads)[0]),
        }
        rates.append(matmul_gflops(threads))
    settings = {
        name: vars(arguments)[name] for name in ("model", "tokens", "pairs", "repeats", "threads")
    }
    document = {"settings": settings, "matmul_gflops": rates, **found}
    write(arguments.out, "scaling", document, [table(each) for each in found.values() if each])


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--candidates", type=int, nargs="+", default=[2, 3, 4, 6, 8])
    parser.add_argument("--tokens", type=int, default=8192, help="of texts, for each length")
    parser.add_argument("--pairs", type=int, default=16, help="rows of a listwise step")
    measure(parser.parse_args())
