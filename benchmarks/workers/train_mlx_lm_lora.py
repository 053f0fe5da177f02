"""DPO with mlx-lm-lora's own `train_dpo`, a second model as the reference, as its command does.

Its command does not start on a CPU, where mlx names no working-set size, and it draws batches with
replacement; so the function is called, and gets that number and the batches of the job.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sempa_mlx  # noqa: F401 - gives mlx a fast BLAS on Linux CPUs, which its wheel lacks

# isort: split
import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load
from mlx_lm_lora.trainer import dpo_trainer
from worker import read_job, write_report

NOTE = "`train_dpo` called by a harness, as its command does not start on a CPU"


class Times(TrainingCallback):  # type: ignore[misc]
    """Notes how long each step takes, and its loss."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]
        self.losses: list[float] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:  # noqa: D102
        self.ends.append(time.perf_counter())
        self.losses.append(float(train_info["train_loss"]))


def let_it_start() -> None:
    """Give a CPU what `train_dpo` asks of a GPU."""
    found = mx.device_info
    mx.device_info = lambda *args: {"max_recommended_working_set_size": 0} | found(*args)
    mx.set_wired_limit = lambda _limit: 0


def give_batches(job: dict[str, Any]) -> None:
    """Let each draw of a batch take the next one of the plan."""
    original = dpo_trainer.iterate_dpo_batches
    plan = iter(job["plan"])

    def rows(step: list[int]) -> list[dict[str, Any]]:
        return [
            {
                "chosen": prompt + chosen,
                "rejected": prompt + rejected,
                "chosen_prompt_length": len(prompt),
                "rejected_prompt_length": len(prompt),
            }
            for prompt, (chosen, rejected) in (job["rows"][index] for index in step)
        ]

    def next_batch(**options: Any) -> Iterator[Any]:  # noqa: ANN401
        batch: Iterator[Any] = original(**options | {"dataset": rows(next(plan)), "train": False})
        return batch

    dpo_trainer.iterate_dpo_batches = next_batch


def train(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Take the steps of the plan."""
    let_it_start()
    give_batches(job)
    model, reference = (load(job["base"])[0] for _ in range(2))
    model.freeze()
    load_adapters(model, job["adapter"])
    settings = dpo_trainer.DPOTrainingArgs(
        batch_size=job["batch_size"],
        iters=len(job["plan"]),
        steps_per_report=1,
        steps_per_save=len(job["plan"]) + 1,
        adapter_file=str(Path(folder, "adapters.safetensors")),
        beta=job["beta"],
    )
    optimizer = optim.AdamW(
        learning_rate=job["learning_rate"], weight_decay=0.0, bias_correction=True
    )
    # Steps are compiled once a shape, so the tokens of a pass are counted from the batches.
    tokens = sum(_padded(job, step) for step in job["plan"]) * 2
    times = Times()
    dpo_trainer.train_dpo(
        model,
        reference,
        optimizer,
        train_dataset=job["rows"],
        args=settings,
        training_callback=times,
    )
    return {
        "losses": times.losses,
        "step_seconds": [b - a for a, b in zip(times.ends, times.ends[1:], strict=False)],
        "reference_seconds": 0.0,
        "computed_tokens": tokens,
        "note": NOTE,
    }


def _padded(job: dict[str, Any], step: list[int]) -> int:
    """Count the tokens of one pass over both completions of a batch, each with its prompt."""
    rows = [job["rows"][index] for index in step]
    longest = max(len(prompt) + max(map(len, completions)) for prompt, completions in rows)
    return 2 * len(rows) * (longest - 1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        write_report(train(read_job(), temporary))
