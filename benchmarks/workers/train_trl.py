"""DPO with TRL and PEFT on torch: the reference beforehand, the adapter of the job."""

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer
from worker import read_job, write_report


class Times(TrainerCallback):
    """Notes how long each step takes, and its loss."""

    def __init__(self) -> None:
        self.start = 0.0
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401, D102
        self.start = time.perf_counter()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401, D102
        self.seconds.append(time.perf_counter() - self.start)

    def on_log(self, *_args: Any, logs: dict[str, Any], **_kwargs: Any) -> None:  # noqa: ANN401, D102
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


class Timed(DPOTrainer):
    """Notes how long the reference takes."""

    reference_seconds = 0.0

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        start = time.perf_counter()
        found = super()._precompute_ref_logps(*args, **kwargs)
        self.reference_seconds += time.perf_counter() - start
        return found


def train(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Take the steps of the plan."""
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    base = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, job["peft"], is_trainable=True)
    tokens = [0]
    base.model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.__setitem__(0, tokens[0] + _size(args, kwargs)),
        with_kwargs=True,
    )
    order = [index for step in job["plan"] for index in step]
    rows = [
        {
            "prompt": job["texts"][index]["prompt"],
            "chosen": job["texts"][index]["completions"][0],
            "rejected": job["texts"][index]["completions"][1],
        }
        for index in order
    ]
    settings = DPOConfig(
        output_dir=folder,
        beta=job["beta"],
        per_device_train_batch_size=job["batch_size"],
        precompute_ref_log_probs=True,
        max_length=None,
        num_train_epochs=1,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        optim="adamw_torch",
        gradient_checkpointing=False,
        bf16=False,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=job["seed"],
    )
    times = Times()
    trainer = Timed(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[times],
    )
    check_tokens(trainer.train_dataset, [job["rows"][index] for index in order])
    trainer.train()
    return {
        "losses": times.losses,
        "step_seconds": times.seconds,
        "reference_seconds": trainer.reference_seconds,
        "computed_tokens": tokens[0],
    }


def _size(args: Any, kwargs: Any) -> int:  # noqa: ANN401
    ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
    return int(ids.numel())


def check_tokens(dataset: Dataset, rows: list[Any]) -> None:
    """Demand the tokens of the job: else these would be other rows."""
    for found, (prompt, (chosen, rejected)) in zip(dataset, rows, strict=True):
        if [found[f"{name}_ids"] for name in ("prompt", "chosen", "rejected")] != [
            prompt,
            chosen,
            rejected,
        ]:
            raise SystemExit(f"other tokens than the job's: {found}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        write_report(train(read_job(), temporary))
