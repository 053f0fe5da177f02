"""DPO with mlx-tune's own trainer loop, the reference beforehand.

It renders no chat template and ends no turn, so it gets the tokens of the job; and the optimizer
of all others, as its own has another schedule, decays weights and corrects no bias.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import sempa_mlx  # noqa: F401 - gives mlx a fast BLAS on Linux CPUs, which its wheel lacks

# isort: split
import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load
from mlx_tune import _perf, rl_trainers
from worker import read_job, write_report

NOTE = "its loop with the job's tokens and optimizer, as it renders no chat template"


class Times:
    """Stands in for the maker of the compiled step, and notes when steps begin, and losses."""

    def __init__(self) -> None:
        self.made = 0.0
        self.begins: list[float] = []
        self.losses: list[mx.array] = []
        self._original = _perf.compiled_step

    def __call__(self, step: Callable[..., mx.array], state: Any) -> Callable[..., mx.array]:  # noqa: ANN401
        """Compile a step; return it with a clock."""
        self.made = time.perf_counter()
        compiled = self._original(step, state)

        def timed(*args: Any) -> mx.array:  # noqa: ANN401
            self.begins.append(time.perf_counter())
            self.losses.append(compiled(*args))
            return self.losses[-1]

        return timed


def tokenized(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the job, in the order of the plan, as its loop wants them."""
    rows = [job["rows"][index] for step in job["plan"] for index in step]
    return [
        {
            "chosen_ids": prompt + chosen,
            "rejected_ids": prompt + rejected,
            "chosen_length": len(prompt + chosen),
            "rejected_length": len(prompt + rejected),
            "prompt_length": len(prompt),
        }
        for prompt, (chosen, rejected) in rows
    ]


def train(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Take the steps of the plan."""
    model, tokenizer = load(job["base"])
    model.freeze()
    load_adapters(model, job["adapter"])
    rl_trainers.optim = SimpleNamespace(
        cosine_decay=lambda rate, _steps: rate,
        AdamW=partial(optim.AdamW, weight_decay=0.0, bias_correction=True),
    )
    times = Times()
    _perf.compiled_step = times
    trainer = object.__new__(rl_trainers.DPOTrainer)
    vars(trainer).update(
        model=SimpleNamespace(model=model, lora_config={}),
        tokenizer=tokenizer,
        iters=len(job["plan"]),
        batch_size=job["batch_size"],
        learning_rate=job["learning_rate"],
        beta=job["beta"],
        label_smoothing=0.0,
        precompute_ref_logprobs=True,
        logging_steps=len(job["plan"]),
        save_steps=len(job["plan"]) + 1,
        adapter_path=folder,
        output_dir=folder,
        _prepare_dpo_batches=lambda: tokenized(job),
        _save_adapters=lambda _step: None,
    )
    start = time.perf_counter()
    trainer._train_native()
    ends = [*times.begins[1:], time.perf_counter()]
    steps = [end - begin for begin, end in zip(times.begins, ends, strict=True)]
    return {
        "losses": [float(loss) for loss in times.losses],
        "step_seconds": steps,
        "reference_seconds": times.made - start,
        "computed_tokens": computed_tokens(job),
        "note": NOTE,
    }


def computed_tokens(job: dict[str, Any]) -> int:
    """Count the tokens of steps, padded to its lengths, and of its reference, row by row."""
    total = 0
    for step in job["plan"]:
        lengths = [
            len(prompt) + max(map(len, completions))
            for prompt, completions in (job["rows"][index] for index in step)
        ]
        total += 2 * len(step) * (_perf.bucket_length(max(lengths)) - 1)
        total += sum(2 * (length - 1) for length in lengths)
    return total


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        write_report(train(read_job(), temporary))
