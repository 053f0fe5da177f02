"""One model in the forms that all systems open, one adapter likewise, and rows in one order.

The model is written in float32, the adapter as a fresh one: A drawn once, B zero.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from worker import read_job, write_report

import sempa_mlx  # noqa: F401 - before mlx, to give it a fast BLAS on Linux CPUs

# isort: split
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

from sempa_mlx.config import LoraConfig, TrainConfig
from sempa_mlx.data.preferences import read_preferences
from sempa_mlx.data.templates import PROMPTEOL
from sempa_mlx.export.mlx import export_mlx
from sempa_mlx.export.peft import export_peft
from sempa_mlx.export.sentence_transformers import export_sentence_transformers
from sempa_mlx.model.load import LoadedModel, load_model
from sempa_mlx.model.lora import attach, save_adapter, trained_weights
from sempa_mlx.model.prompts import tokenize_preferences
from sempa_mlx.model.scoring import choose_scoring
from sempa_mlx.training.schedule import plan_steps

MAX_TOKENS = 512


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Write what the job asks for; return where it is."""
    folder = Path(job["folder"])
    loaded = load_model(job["model"], dtype="float32")
    attach(loaded.model, LoraConfig(), job["seed"])
    run = folder / "run"
    save_adapter(run, trained_weights(loaded.model), LoraConfig(), loaded)
    found: dict[str, Any] = {}
    if loaded.location.path.suffix == ".gguf":
        export_mlx(run, folder / "mlx")
        found["base"] = str(folder / "mlx" / "base")
    else:
        found["base"] = str(loaded.location.path)
    if job["for"] == "model":
        return found
    if job["for"] == "embedding":
        export_sentence_transformers(run, folder / "st")
        for file in job["files"].values():
            write_prompts(Path(file))
        write_qwen3(Path(found["base"]), folder / "qwen3")
        paths = {"sentence_transformers": str(folder / "st"), "qwen3": str(folder / "qwen3")}
        return found | paths
    export_peft(run, folder / "peft", base=found["base"])
    return (
        found | {"adapter": str(run), "peft": str(folder / "peft")} | preference_rows(job, loaded)
    )


def preference_rows(job: dict[str, Any], loaded: LoadedModel) -> dict[str, Any]:
    """Return rows as texts and as tokens, and which of them each step takes."""
    records = read_preferences(Path(job["data"]), limit=job["pairs"]).records
    rows = tokenize_preferences(records, loaded.tokenizer, MAX_TOKENS).rows
    scorer = choose_scoring(loaded.model, rows, loaded.dtype)
    settings = TrainConfig(batch_size=job["batch_size"], seed=job["seed"])
    plan = plan_steps([scorer.own_tokens(row) for row in rows], settings)
    decode = loaded.tokenizer.decode
    texts = [
        {
            "prompt": decode(row.prompt),
            "completions": [decode(each[:-1]) for each in row.completions],
        }
        for row in rows
    ]
    needed = sum(scorer.tokens([rows[index] for index in step]) for step in plan)
    return {"rows": rows, "texts": texts, "plan": plan, "needed_tokens": needed}


def write_prompts(texts: Path) -> None:
    """Write the prompts of a file of texts beside it, one a line."""
    lines = texts.read_text(encoding="utf-8").splitlines()
    prompts = "".join(f"{PROMPTEOL.render(line)}\n" for line in lines)
    texts.with_suffix(".prompts").write_text(prompts, encoding="utf-8")


def write_qwen3(base: Path, folder: Path) -> None:
    """Write a Qwen 3 of the shape of a Llama, with random weights and its tokenizer."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    mx.random.seed(0)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


write_report(prepare(read_job()))
