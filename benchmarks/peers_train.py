"""DPO steps of sempa-mlx beside TRL + PEFT, mlx-lm-lora and mlx-tune: speed, memory, losses.

    python benchmarks/peers_train.py --peers .venv-bench/bin/python [--quick]

One model in float32, one fresh adapter (LoRA r 8, alpha 32, all linear layers), the same tokens in
the same batches, beta 0.1, AdamW without weight decay or clipping at a constant rate, no dropout.
Each system takes `--steps` steps in a process of its own; they take turns, medians count.

  steps      pairs a second in steps with the reference known, without the first step
  epoch      the same with the time it takes to know the reference, as in the first epoch
  memory     the largest of the process
  tokens     all that ran in policy and reference passes, over what is needed: each pair's prompt
             once and its completions, twice, and what all prompts share once a batch

Systems that score the reference inside every step have one figure for both.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from side_by_side import (
    Ran,
    Report,
    Runs,
    System,
    alternate,
    chosen,
    markdown,
    matmul_gflops,
    median,
    options,
    write,
)

SHOWN_LOSSES = 10


def systems(peers: str) -> list[System]:
    """Return all that train."""
    return [
        System("sempa-mlx", sys.executable, "train_sempa.py"),
        System("TRL + PEFT", peers, "train_trl.py"),
        System("mlx-lm-lora", peers, "train_mlx_lm_lora.py"),
        System("mlx-tune", peers, "train_mlx_tune.py"),
    ]


def preference_file(data: str | None) -> str:
    """Return the rows to train on: those asked for, NLI where SEMPA_DATA has it, or demo rows."""
    if data is None and "SEMPA_DATA" in os.environ:
        return str(Path(os.environ["SEMPA_DATA"], "nli", "train.jsonl.gz"))
    if data is not None:
        return data
    from sempa_mlx.data.sources import training_source

    return str(training_source("demo").path)


def pairs_per_second(ran: Ran, batch_size: int) -> float:
    """Return the rate of steps with the reference known; the first step warms up."""
    seconds = ran.report["step_seconds"][1:]
    return float(len(seconds) * batch_size / sum(seconds))


def epoch_pairs_per_second(ran: Ran, batch_size: int) -> float:
    """Return the rate of an epoch that starts by scoring its reference."""
    steps = len(ran.report["step_seconds"])
    reference = ran.report["reference_seconds"] / (steps * batch_size)
    return 1.0 / (1.0 / pairs_per_second(ran, batch_size) + reference)


def figures(runs: dict[str, list[Ran]], batch_size: int, needed: int) -> dict[str, Report]:
    """Return the medians of every system, and how much faster ours is in the same run."""
    found: dict[str, Report] = {}
    for name, each in runs.items():
        losses = each[0].report["losses"]
        found[name] = {
            "pairs_per_second": median(each, lambda ran: pairs_per_second(ran, batch_size)),
            "epoch_pairs_per_second": median(
                each, lambda ran: epoch_pairs_per_second(ran, batch_size)
            ),
            "peak_gb": median(each, lambda ran: ran.peak_gb),
            "tokens_over_needed": each[0].report["computed_tokens"] / (2 * needed),
            "losses": losses[:SHOWN_LOSSES],
            "note": each[0].report.get("note", ""),
        }
    ours = found["sempa-mlx"]
    for each in found.values():
        for figure in ("pairs_per_second", "epoch_pairs_per_second"):
            each[f"ours_over_{figure}"] = ours[figure] / each[figure]
        gaps = [abs(a - b) for a, b in zip(each["losses"], ours["losses"], strict=True)]
        each["largest_loss_gap"] = max(gaps)
    return found


def tables(found: dict[str, Report]) -> list[str]:
    """Return the figures, and the losses side by side."""
    columns = ["", "pairs/s", "ours is", "with reference", "ours is", "memory", "tokens / needed"]
    rows = [
        [
            name,
            f"{each['pairs_per_second']:.2f}",
            f"{each['ours_over_pairs_per_second']:.2f}x",
            f"{each['epoch_pairs_per_second']:.2f}",
            f"{each['ours_over_epoch_pairs_per_second']:.2f}x",
            f"{each['peak_gb']:.2f} GB",
            f"{each['tokens_over_needed']:.2f}",
        ]
        for name, each in found.items()
    ]
    steps = len(found["sempa-mlx"]["losses"])
    losses = [
        [name, *(f"{loss:.4f}" for loss in each["losses"]), f"{each['largest_loss_gap']:.1e}"]
        for name, each in found.items()
    ]
    head = ["loss of step", *map(str, range(1, steps + 1)), "largest gap"]
    notes = "".join(f"- {name}: {each['note']}\n" for name, each in found.items() if each["note"])
    return [markdown(columns, rows), markdown(head, losses), notes]


def measure(arguments: argparse.Namespace) -> None:
    """Run everything and write it down, after each round as well."""
    if arguments.quick:
        arguments.steps, arguments.batch_size, arguments.repeats = 3, 2, 1
    threads = arguments.threads
    with tempfile.TemporaryDirectory() as folder:
        wanted = {
            "for": "training",
            "folder": folder,
            "model": arguments.model,
            "data": preference_file(arguments.data),
            "pairs": arguments.steps * arguments.batch_size,
            "batch_size": arguments.batch_size,
            "seed": 0,
        }
        prepared = System("prepare", sys.executable, "prepare.py").run(wanted, threads).report
        job = wanted | prepared | {"beta": 0.1, "learning_rate": arguments.learning_rate}
        chosen_systems = chosen(systems(arguments.peers), arguments.only)
        rates = [matmul_gflops(threads)]

        def publish(runs: Runs, failed: dict[str, str]) -> None:
            rates.append(matmul_gflops(threads))
            found = figures(runs, arguments.batch_size, prepared["needed_tokens"])
            settings = ("model", "steps", "batch_size", "repeats", "threads", "learning_rate")
            document = {
                "settings": {name: vars(arguments)[name] for name in settings},
                "matmul_gflops": rates,
                "rounds": len(runs["sempa-mlx"]),
                "systems": found,
                "did_not_run": failed,
            }
            write(arguments.out, "peers_train", document, tables(found))

        alternate(chosen_systems, job, arguments.repeats, threads, publish)


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--data", help="preference file; default: NLI under SEMPA_DATA, else demo")
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    measure(parser.parse_args())
