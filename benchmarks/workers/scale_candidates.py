"""One listwise step over rows of K candidates: loss and gradient, the reference known."""

import time
from itertools import islice
from pathlib import Path
from typing import Any

from worker import read_job, write_report

from sempa_mlx import runtime
from sempa_mlx.config import LoraConfig, ObjectiveConfig, TrainConfig
from sempa_mlx.data.preferences import read_preferences
from sempa_mlx.data.records import PreferenceRecord
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import attach
from sempa_mlx.model.prompts import tokenize_preferences
from sempa_mlx.model.scoring import choose_scoring
from sempa_mlx.training.preference_term import PreferenceTerm
from sempa_mlx.training.reference import Reference
from sempa_mlx.training.trainer import micro_batch_tokens
from sempa_mlx.world import World


def with_candidates(records: tuple[PreferenceRecord, ...], count: int) -> list[PreferenceRecord]:
    """Give every record `count` candidates: its own two, then those of the records after it."""
    found = []
    for index, record in enumerate(records):
        texts = dict.fromkeys(
            text for other in records[index:] + records[:index] for text in other.candidates
        )
        candidates = tuple(islice(texts, count))
        found.append(PreferenceRecord(record.prompt, candidates, record.line, record.anchor))
    return found


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Take one step to warm up, then the timed one."""
    loaded = load_model(job["base"], dtype="float32")
    model = loaded.model
    records = read_preferences(Path(job["data"]), limit=job["rows"]).records
    texts = with_candidates(records, job["candidates"])
    rows = tokenize_preferences(texts, loaded.tokenizer, 512).rows
    attach(model, LoraConfig(), 0)
    scorer = choose_scoring(model, rows, loaded.dtype)
    term = PreferenceTerm(
        model,
        rows,
        scorer,
        Reference(model, scorer, rows),
        ObjectiveConfig(loss="listwise"),
        micro_batch_tokens(TrainConfig()),
    )
    batch = range(len(rows))
    model.train()
    term.contribution(batch, World(), 0)
    start, start_cpu = time.perf_counter(), time.process_time()
    term.contribution(batch, World(), 0)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "tokens": scorer.tokens(rows),
        "array_gb": runtime.peak_memory_gb(),
    }


write_report(measure(read_job()))
