"""`sempa-mlx embed` beside sentence-transformers, transformers and mlx-embeddings.

    SEMPA_DATA=DIR python benchmarks/peers_embed.py --peers .venv-bench/bin/python

One model in float32, the same distinct sentences in the same prompt (PromptEOL), vectors into a
.npy file; each run is a process of its own, they take turns, medians count.

  start      a file of one sentence, the whole process
  rate       sentences a second: all of them, less the start
  memory     the largest of the process with all sentences
  cosine     least, between its vectors and those of sempa-mlx

Other systems run with the size of batch that was fastest on 192 of the sentences, sentence-
transformers also with its own default. mlx-embeddings knows no plain Llama: it gets a Qwen 3 of the
same shape with random weights, and sempa-mlx that one too.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from side_by_side import (
    DidNotRunError,
    Ran,
    Report,
    System,
    alternate,
    chosen,
    markdown,
    matmul_gflops,
    median,
    options,
    say,
    write,
)

DEFAULT_BATCH = 32  # of sentence-transformers


def real_sentences(count: int) -> list[str]:
    """Return distinct sentences of NLI and STS under SEMPA_DATA, evenly spread over them.

    Without that, the sentences of the demo data, which are few.
    """
    from sempa_mlx.data.preferences import read_preferences
    from sempa_mlx.data.sources import training_source

    root = os.environ.get("SEMPA_DATA")
    rows = Path(root, "nli", "train.jsonl.gz") if root else training_source("demo").path
    found: dict[str, None] = {}
    for record in read_preferences(rows).records:
        found |= dict.fromkeys((record.anchor, *record.candidates))
    for path in sorted(Path(root).glob("sts/*/*.tsv")) if root else []:
        for line in path.read_text(encoding="utf-8").splitlines():
            found |= dict.fromkeys(line.split("\t")[1:3])
    texts = [text for text in found if len(text.splitlines()) == 1]
    count = min(count, len(texts))
    return [texts[index * len(texts) // count] for index in range(count)]


def systems(peers: str, made: Report) -> list[System]:
    """Return all that embed, those of one model after another."""
    llama, qwen = {"base": made["base"]}, {"base": made["qwen3"]}
    st = {"sentence_transformers": made["sentence_transformers"]}
    return [
        System("sempa-mlx", sys.executable, "embed_sempa.py", llama),
        System("sentence-transformers", peers, "embed_sentence_transformers.py", st),
        System(
            "sentence-transformers, batches of 32",
            peers,
            "embed_sentence_transformers.py",
            st | {"batch_size": DEFAULT_BATCH},
        ),
        System("transformers", peers, "embed_transformers.py", llama),
        System("sempa-mlx, Qwen 3", sys.executable, "embed_sempa.py", qwen),
        System("mlx-embeddings, Qwen 3", peers, "embed_mlx_embeddings.py", qwen),
    ]


def with_best_batches(
    wanted: list[System], job: Report, threads: int
) -> tuple[list[System], dict[str, str]]:
    """Give each system the size of batch that is fastest for it; say which do not start."""
    found, failed = [], {}
    for system in wanted:
        if system.worker == "embed_sempa.py" or "batch_size" in system.extra:
            found.append(system)
            continue
        try:
            tried = system.run(job | {"try": True}, threads).report
        except DidNotRunError as error:
            failed[system.name] = str(error)
            say(f"{system.name}: {error}")
            continue
        say(f"{system.name}: CPU seconds by size of batch {tried['tried']}")
        found.append(replace(system, extra={**system.extra, "batch_size": tried["batch_size"]}))
    return found, failed


def figures(
    starts: dict[str, list[Ran]],
    runs: dict[str, list[Ran]],
    vectors: dict[str, np.ndarray],
    wanted: list[System],
    count: int,
) -> dict[str, Report]:
    """Return the medians of every system, and how much faster ours is on the same model."""
    found: dict[str, Report] = {}
    for system in wanted:
        if system.name not in runs:
            continue
        start = median(starts[system.name], lambda ran: ran.seconds)
        cpu = median(starts[system.name], lambda ran: ran.cpu_seconds)
        rate = (count - 1) / (median(runs[system.name], lambda ran: ran.seconds) - start)
        cpu_rate = (count - 1) / (median(runs[system.name], lambda ran: ran.cpu_seconds) - cpu)
        ours = "sempa-mlx, Qwen 3" if "Qwen" in system.name else "sempa-mlx"
        products = (vectors[system.name] * vectors[ours]).sum(axis=1)
        found[system.name] = {
            "sentences_per_second": rate,
            "sentences_per_cpu_second": cpu_rate,
            "start_seconds": start,
            "peak_gb": median(runs[system.name], lambda ran: ran.peak_gb),
            "batch_size": system.extra.get("batch_size"),
            "least_cosine": float(products.min()),
        }
        ratio = found[ours]["sentences_per_second"] / rate
        found[system.name]["ours_over"] = ratio
        found[system.name]["ours_over_by_cpu_time"] = (
            found[ours]["sentences_per_cpu_second"] / cpu_rate
        )
    return found


def table(found: dict[str, Report]) -> str:
    """Return the figures as a table."""
    columns = ["", "sentences/s", "ours is", "start", "memory", "batch", "least cosine"]
    rows = [
        [
            name,
            f"{each['sentences_per_second']:.1f}",
            f"{each['ours_over']:.2f}x",
            f"{each['start_seconds']:.1f} s",
            f"{each['peak_gb']:.2f} GB",
            each["batch_size"] or "by tokens",
            f"{each['least_cosine']:.6f}",
        ]
        for name, each in found.items()
    ]
    return markdown(columns, rows)


def prepare(arguments: argparse.Namespace, folder: Path) -> tuple[Report, int]:
    """Write models and texts; return the job, and how many texts there are."""
    wanted = {"for": "embedding", "folder": str(folder), "model": arguments.model, "seed": 0}
    texts = real_sentences(arguments.sentences)
    files = {"all": folder / "all.txt", "one": folder / "one.txt"}
    files["all"].write_text("\n".join(texts) + "\n", encoding="utf-8")
    files["one"].write_text(texts[0] + "\n", encoding="utf-8")
    job = wanted | {"files": {name: str(path) for name, path in files.items()}}
    made = System("prepare", sys.executable, "prepare.py").run(job, arguments.threads).report
    return made, len(texts)


def measure(arguments: argparse.Namespace) -> None:
    """Run everything and write it down."""
    if arguments.quick:
        arguments.sentences, arguments.repeats = 64, 1
    threads, repeats = arguments.threads, arguments.repeats
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made, count = prepare(arguments, folder)
        jobs = {
            name: {"texts": str(folder / f"{name}.txt"), "prompts": str(folder / f"{name}.prompts")}
            for name in ("all", "one")
        }
        wanted = [
            replace(each, extra={**each.extra, "out": str(folder / f"{index}.npy")})
            for index, each in enumerate(systems(arguments.peers, made))
        ]
        keep = None if arguments.only is None else [*arguments.only, "sempa-mlx, Qwen 3"]
        wanted, failed = with_best_batches(chosen(wanted, keep), jobs["all"], threads)
        rates = [matmul_gflops(threads)]
        starts, not_started = alternate(wanted, jobs["one"], repeats, threads)
        runs, not_run = alternate(
            [each for each in wanted if each.name in starts], jobs["all"], repeats, threads
        )
        rates.append(matmul_gflops(threads))
        vectors = {
            each.name: np.load(str(each.extra["out"])) for each in wanted if each.name in runs
        }
        found = figures(starts, runs, vectors, wanted, count)
    document = {
        "settings": {
            "model": arguments.model,
            "sentences": count,
            "repeats": repeats,
            "threads": threads,
        },
        "matmul_gflops": rates,
        "systems": found,
        "did_not_run": failed | not_started | not_run,
    }
    write(arguments.out, "peers_embed", json.loads(json.dumps(document)), [table(found)])


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--sentences", type=int, default=10_000)
    measure(parser.parse_args())
