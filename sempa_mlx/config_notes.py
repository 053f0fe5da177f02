"""What each setting is for, in a line: the one source of the recipes' comments and docs/config.md.

`python -m tests.written` writes those files again after a change here or in `config`.
"""

from collections.abc import Mapping
from typing import Any

from sempa_mlx.config import SempaConfig
from sempa_mlx.config_file import write_line

SECTIONS = {
    "model": "the base",
    "data": "the preferences",
    "lora": "the adapter",
    "objective": "the loss",
    "train": "the loop",
    "eval": "scoring between steps, and what the best step is chosen by",
    "sparse": "a sparse coder of the embeddings",
    "output": "the run folder",
}
NOTES: Mapping[str, str] = {
    "model.name": "alias, folder, Hub id or GGUF file",
    "model.revision": "branch, tag or commit on the Hub; null: the default branch",
    "model.dtype": "auto, float32, bfloat16 or float16; auto: what suits the device",
    "model.max_tokens": "tokens of one row; longer ones are left out of training, cut when "
    "embedded",
    "data.train": "preference file, demo, nli or auto",
    "data.dev": "preference file to validate on; null: none",
    "data.candidates": "2, or 3 with a neutral sentence in the middle; null: 3 if the loss ranks "
    "them, else 2",
    "data.template": "wording of the paraphrase prompt, P1 to P5",
    "data.system": "system prompt; null: none",
    "data.limit": "rows to use, the first ones; null: all",
    "lora.kind": "lora, dora or rslora (scaled by alpha / sqrt(rank))",
    "lora.rank": "rank of the update of each matrix",
    "lora.alpha": "the update is scaled by alpha / rank",
    "lora.dropout": "share of inputs dropped while training",
    "lora.plus_ratio": "learning rate of B over that of A (LoRA+)",
    "lora.layers": "blocks to adapt, counted from the last, >= 1; -1: all",
    "lora.keys": "list such as [self_attn.q_proj]; null: every linear layer of a block",
    "objective.loss": "terms and weights: sigmoid (DPO), sigmoid + 0.5 embedding, ...",
    "objective.beta": "weight of the log-ratio to the reference",
    "objective.label_smoothing": "share of pairs taken to be the wrong way round: sigmoid, robust, "
    "exo_pair, aot",
    "objective.ld_alpha": "weight of tokens beyond the shorter completion; null: 1",
    "objective.gamma": "margin of simpo",
    "objective.dpop_lambda": "penalty of dpop on a falling chosen text",
    "objective.second_weight": "weight of listwise's places after the first",
    "objective.temperature": "divides the cosines of the embedding term",
    "objective.adjusted": "embedding term on changes of the cosine against the base",
    "objective.kl_text": "text that the kl term holds the model to: a file, or general; null: the "
    "completions",
    "objective.kl_tokens": "tokens of that text a step",
    "train.epochs": "passes over the data",
    "train.iters": "optimizer steps, caps the epochs; null: no cap",
    "train.batch_size": "pairs in one optimizer step",
    "train.micro_batch_tokens": "tokens that one gradient is taken through; null: 2048 on a CPU, "
    "8192 on a GPU",
    "train.learning_rate": "peak rate of AdamW",
    "train.warmup": "share of the steps that warm up",
    "train.schedule": "after warm-up: cosine, linear or constant",
    "train.weight_decay": "AdamW weight decay",
    "train.beta2": "AdamW second-moment decay",
    "train.clip": "bound of the global gradient norm",
    "train.seed": "order of the data, dropout and initial weights",
    "train.scoring": "auto, shared (prefix computed once) or plain forwards",
    "train.reference": "cached (kept on disk, computed once) or online",
    "train.grad_checkpoint": "compute blocks again in the backward pass: less memory, more time",
    "eval.every": "steps between evaluations",
    "eval.metric": "what the best step is chosen by: spearman, or loss or accuracy on data.dev",
    "eval.data": "STS dev file, demo, stsb or auto",
    "eval.pairs": "evenly spread subset of the pairs; null: all",
    "eval.patience": "evaluations without a better score before stopping; null: never",
    "eval.dial": "adapter scales tried after training, if eval.metric is spearman; null: none",
    "eval.dial_always": "try them at every evaluation",
    "sparse.coder": "topk, fista or lexical: fit a sparse coder to what was trained; null: none",
    "sparse.k": "values of a code",
    "sparse.hidden": "latents of a coder; null: 4 a dimension (lexical: the vocabulary)",
    "sparse.sentences": "distinct training sentences it is fitted to, the first ones",
    "sparse.epochs": "passes over them",
    "sparse.batch_size": "sentences of one step",
    "sparse.learning_rate": "of topk",
    "sparse.preference": "weight of ranking paraphrases by their codes (topk)",
    "sparse.temperature": "divides the cosines of codes",
    "sparse.adjusted": "rank by changes of the cosine against the dense embeddings",
    "sparse.start": "topk coder of the base for the loss's term code; null: none",
    "sparse.detach": "the term code trains the coder only, not the adapter",
    "output.path": "folder of the run",
    "output.save_every": "steps between checkpoints; null: at every evaluation",
    "output.keep": "checkpoints to keep, the last ones",
    "output.report_to": "trackio, wandb or tensorboard, if installed; null: none",
}

_COLUMN = 40
_UNBOUNDED = 2**63  # how large a seed may be says nothing to a reader


def write_commented(config: SempaConfig, comments: Mapping[str, str]) -> str:
    """Return settings as YAML with a comment behind every value; they load to an equal config.

    Args:
        config: what to write, whole.
        comments: by dotted key, for every key.
    """
    lines: list[str] = []
    for section, values in config.model_dump(mode="json").items():
        lines += ["", f"{section}:"] if lines else [f"{section}:"]
        for key, value in values.items():
            line = f"  {write_line(key, value)}"
            lines.append(f"{line:<{_COLUMN - 2}}  # {comments[f'{section}.{key}']}")
    return "\n".join(lines) + "\n"


def recipe_comments() -> dict[str, str]:
    """Return what is written behind every value of a recipe: its note, its range in brackets."""
    ranges = value_ranges()
    return {key: f"{note} [{ranges[key]}]" if ranges[key] else note for key, note in NOTES.items()}


def value_ranges() -> dict[str, str]:
    """Return the range of every setting that has one, such as `0 to < 1`; else an empty text."""
    schema = SempaConfig.model_json_schema()
    return {
        f"{section}.{key}": _range(value)
        for section, entry in schema["properties"].items()
        for key, value in schema["$defs"][entry["$ref"].rpartition("/")[2]]["properties"].items()
    }


def _range(value: dict[str, Any]) -> str:
    bounded = value.get("anyOf", [value])[0]
    bounded = bounded.get("items", bounded)
    low, over = bounded.get("minimum"), bounded.get("exclusiveMinimum")
    high, under = bounded.get("maximum"), bounded.get("exclusiveMaximum")
    start = f"> {over:g}" if over is not None else "" if low is None else f"{low:g}"
    if under is not None and under < _UNBOUNDED:
        return f"{start} to < {under:g}"
    if high is not None:
        return f"{start} to {high:g}"
    return start if not start or start.startswith(">") else f">= {start}"
