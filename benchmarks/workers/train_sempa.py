"""DPO with sempa-mlx: the trainer's own steps, the reference before them as in a run."""

import time
from typing import Any

from counted import counting
from worker import read_job, write_report

from sempa_mlx.config import EvalConfig, LoraConfig, ObjectiveConfig, TrainConfig
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.head import text_model
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import attach
from sempa_mlx.model.scoring import choose_scoring
from sempa_mlx.training.events import Score, StepDone
from sempa_mlx.training.preference_term import PreferenceTerm
from sempa_mlx.training.reference import Reference
from sempa_mlx.training.trainer import Trainer, micro_batch_tokens

NO_CLIP = 1e9


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Take the steps of the plan."""
    loaded = load_model(job["base"], dtype="float32")
    model = loaded.model
    rows = [
        TokenRow(tuple(prompt), tuple(map(tuple, completions)))
        for prompt, completions in job["rows"]
    ]
    attach(model, LoraConfig(), job["seed"])
    settings = TrainConfig(
        batch_size=job["batch_size"],
        learning_rate=job["learning_rate"],
        warmup=0.0,
        schedule="constant",
        weight_decay=0.0,
        beta2=0.999,
        clip=NO_CLIP,
        seed=job["seed"],
    )
    scorer = choose_scoring(model, rows, loaded.dtype)
    reference = Reference(model, scorer, rows)
    objective = ObjectiveConfig(beta=job["beta"])
    term = PreferenceTerm(model, rows, scorer, reference, objective, micro_batch_tokens(settings))
    lengths = [scorer.own_tokens(row) for row in rows]
    trainer = Trainer(model, {"sigmoid": term}, lengths, settings)
    with counting(type(text_model(model).model)) as tokens:
        start = time.perf_counter()
        for step in job["plan"]:
            reference.scored(step)
        reference_seconds = time.perf_counter() - start
        losses, seconds = [], []
        start = time.perf_counter()
        never = EvalConfig(every=len(job["plan"]))
        for event in trainer.run(lambda _: Score(0.0), never):
            if isinstance(event, StepDone):
                losses.append(event.metrics["loss"])
                seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
    return {
        "losses": losses,
        "step_seconds": seconds,
        "reference_seconds": reference_seconds,
        "computed_tokens": tokens.count,
    }


write_report(train(read_job()))
