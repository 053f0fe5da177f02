"""The settings of a run: what exists, and their ranges.

Functions below the command line take the section they need, never the whole tree. How settings are
read from files and the command line is in `config_resolve`.
"""

import math
import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sempa_mlx.config_terms import parse_terms


def _all_or_last(layers: int) -> int:
    if layers != -1 and layers < 1:
        raise ValueError("-1 (all blocks) or >= 1 (the last ones)")
    return layers


def _not_empty(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("null or a list of at least one")
    return names


def _terms(text: str) -> str:
    parse_terms(text)
    return text


def _from_home(path: str) -> str:
    expanded = os.path.expanduser(path)  # noqa: PTH111 - Path's own raises
    if expanded.startswith("~"):
        raise ValueError(f"a path; there is no home folder `{path.split('/')[0]}`")
    return expanded


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
# YAML has lists only; strict mode would ask for a tuple.
Names = Annotated[tuple[Text, ...], Field(strict=False), AfterValidator(_not_empty)]
Scales = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False), AfterValidator(_not_empty)
]


class _Section(BaseModel):
    """Frozen and strict: no unknown key, no `"1"` for 1, no `true` for 1, no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """The base: alias, folder, Hub id or GGUF file; `max_tokens` bounds one row, in tokens."""

    name: Text = "smollm2-135m"
    revision: Text | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_tokens: Annotated[int, Field(ge=16)] = 512


class DataConfig(_Section):
    """Preferences: `train` is a path, `demo`, `nli` or `auto`; the first `limit` rows are used.

    `dev` is a file of preference rows to validate on (None: none). `candidates` 3 ranks a neutral
    sentence between the entailed and the contradicting one (None: 3 if the loss ranks, else 2).
    """

    train: Text = "auto"
    dev: Text | None = None
    candidates: Literal[2, 3] | None = None
    template: Literal["P1", "P2", "P3", "P4", "P5"] = "P1"
    system: str | None = "You are a helpful assistant"
    limit: Count | None = None


class LoraConfig(_Section):
    """The adapter: LoRA, DoRA (arXiv 2402.09353) or rsLoRA (arXiv 2312.03732).

    `plus_ratio` multiplies the learning rate of B (LoRA+, arXiv 2402.12354). `layers` counts blocks
    from the last (-1: all); `keys` names layers inside a block, such as `self_attn.q_proj` (None:
    every linear layer).
    """

    kind: Literal["lora", "dora", "rslora"] = "lora"
    rank: Count = 8
    alpha: Positive = 32.0
    dropout: Fraction = 0.0
    plus_ratio: Positive = 1.0
    layers: Annotated[int, AfterValidator(_all_or_last)] = -1
    keys: Names | None = None

    @property
    def scale(self) -> float:
        """Return what the low-rank update is multiplied with.

        It is alpha / rank, and alpha / sqrt(rank) for rsLoRA.
        """
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)


class ObjectiveConfig(_Section):
    """The loss: a weighted sum of terms, written `sigmoid + 0.5 embedding`.

    `beta` weighs the log-ratio to the reference (SemPA, eq. of DPO); the other settings belong to
    single terms, see `docs/objectives.md`; those of `code` are in the section `sparse`.
    """

    loss: Annotated[Text, AfterValidator(_terms)] = "sigmoid"
    beta: Positive = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    gamma: Annotated[float, Field(ge=0)] = 1.0
    dpop_lambda: Annotated[float, Field(ge=0)] = 50.0
    second_weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Positive = 0.05
    adjusted: bool = False
    kl_text: Text | None = None
    kl_tokens: Annotated[int, Field(ge=2)] = 512

    @property
    def terms(self) -> dict[str, float]:
        """Return the weight of every term."""
        return parse_terms(self.loss)


class TrainConfig(_Section):
    """The loop.

    A step is one optimizer update over `batch_size` pairs, accumulated over forwards of at most
    `micro_batch_tokens` tokens (None: by device). `iters` counts steps and caps the epochs;
    `warmup` is a fraction of the steps; `clip` bounds the global gradient norm.
    """

    epochs: Count = 1
    iters: Count | None = None
    batch_size: Count = 32
    micro_batch_tokens: Annotated[int, Field(ge=64)] | None = None
    learning_rate: Positive = 1e-4
    warmup: Fraction = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    clip: Positive = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    scoring: Literal["auto", "shared", "plain"] = "auto"
    reference: Literal["cached", "online"] = "cached"
    grad_checkpoint: bool = False


class EvalConfig(_Section):
    """Scoring on an STS dev set (a path, `demo`, `stsb` or `auto`) between steps.

    `metric` decides which step is the best: Spearman on that set, or loss or accuracy on the
    preference rows of `data.dev`. `pairs` are spread evenly over the set (None: all); `patience` is
    the number of evaluations without a better score before the run stops (None: never). `dial`
    holds the adapter scales that are tried besides 1 on the adapter that is kept (None: none), or
    at every evaluation if `dial_always`.
    """

    every: Count = 10
    metric: Literal["spearman", "loss", "accuracy"] = "spearman"
    data: Text = "auto"
    pairs: Annotated[int, Field(ge=2)] | None = 500
    patience: Count | None = None
    dial: Scales | None = (0.25, 0.5, 0.75)
    dial_always: bool = False


class SparseConfig(_Section):
    """The sparse coder that is fitted to the trained encoder's vectors (SPOD; None: none).

    `start` is a `topk` coder of the untrained base for the loss's `code` term, which trains it
    beside the adapter; with `detach` the term leaves the adapter alone. `hidden` is the number of
    latents (None: 4 a dimension; lexical: the vocabulary); `sentences` bounds the distinct texts it
    is fitted to, the first ones. `preference` weighs the ranking of codes, by their cosines over
    `temperature`; `adjusted` counts changes of cosines only.
    """

    coder: Literal["topk", "fista", "lexical"] | None = None
    k: Count = 32
    hidden: Count | None = None
    sentences: Annotated[int, Field(ge=2)] = 15_000
    epochs: Count = 3
    batch_size: Count = 1024
    learning_rate: Positive = 4e-4
    preference: Annotated[float, Field(ge=0)] = 1.0
    temperature: Positive = 0.05
    adjusted: bool = False
    start: Text | None = None
    detach: bool = False


class OutputConfig(_Section):
    """The run folder, and how often the run can be resumed from.

    A checkpoint is written every `save_every` steps (None: at every evaluation) and the last `keep`
    stay. `report_to` names a tracker that must be installed.
    """

    path: Annotated[Text, AfterValidator(_from_home)] = "adapters"
    save_every: Count | None = None
    keep: Count = 2
    report_to: Literal["trackio", "wandb", "tensorboard"] | None = None


class SempaConfig(_Section):
    """All settings of a run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    sparse: SparseConfig = SparseConfig()
    output: OutputConfig = OutputConfig()

    @property
    def candidates(self) -> int:
        """Return how many candidates a row has: 3 where the loss ranks them, unless told."""
        ranks = not {"listwise", "softmax"}.isdisjoint(self.objective.terms)
        return self.data.candidates or (3 if ranks else 2)
