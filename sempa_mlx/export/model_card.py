"""The model card: README.md of what is pushed to the Hub, from what the run recorded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from sempa_mlx import __version__
from sempa_mlx.config_terms import PAIRWISE, RANKED, parse_terms

INTRO = (
    "A language model that generates and embeds, trained with "
    "[SemPA](https://arxiv.org/abs/2601.05075) (sentence-level preference optimisation)"
)
_SECTIONS = ("data", "lora", "objective", "train", "eval")
_USES = {
    "mlx": """A LoRA adapter in mlx-lm's form, with `encoder.json`, which says how it embeds.

```sh
hf download {repo} --local-dir adapter
sempa-mlx embed notes.txt --adapter-path adapter
python -m mlx_lm generate --model {model} --adapter-path adapter --prompt "Hello"
```""",
    "peft": """An adapter of PEFT.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{repo}")
```

To embed with it: `hf download {repo} --local-dir peft`, then
`sempa-mlx import-peft peft --adapter-path adapter`.""",
    "fused": """Base and adapter in one set of weights, for transformers and mlx-lm.

```sh
python -m mlx_lm generate --model {repo} --prompt "Hello"
```""",
    "encoder": """A folder that holds base, adapter and settings.

```python
from huggingface_hub import snapshot_download
from sempa_mlx import Encoder

vectors = Encoder.load(snapshot_download("{repo}")).encode(["A cat sleeps on the warm stone."])
```""",
    "sentence-transformers": """Base and adapter in one set of weights, the prompt in the tokenizer.

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("{repo}"{cut}).encode(["A cat sleeps on the warm stone."]{unit})
```""",
}
_LIBRARIES = {"peft": "peft", "sentence-transformers": "sentence-transformers"}
_TAGS = {"mlx": ["mlx"], "sentence-transformers": ["sentence-transformers", "feature-extraction"]}
_MERGED = ("fused", "sentence-transformers")  # base and adapter are one set of weights
_TASKS = {"fused": "text-generation", "sentence-transformers": "sentence-similarity"}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says.

    Attributes:
        form: of the export: mlx, peft, fused, encoder, sentence-transformers.
        repo: owner/name.
        base: Hub id of the base, if it is known.
        model: what mlx-lm opens as base once the export lies in the folder `adapter`.
        scale: strength of the adapter in what was exported.
        settings: dotted key to value, as in the run's config.yaml; empty if there is none.
        results: the run's results.json; empty if there is none.
        metric: name of the score that chose the adapter.
        scores: (step, score as shown) of the evaluations of the run.
        notes: further sentences, such as how the export was verified.
        truncate_dim: length that vectors are cut to, if they are.
        renormalize: they then have to be made unit length again.
    """

    form: str
    repo: str
    base: str | None
    model: str
    scale: float
    settings: Mapping[str, object] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    scores: Sequence[tuple[int, str]] = ()
    notes: Sequence[str] = ()
    truncate_dim: int | None = None
    renormalize: bool = False


def model_card(facts: CardFacts) -> str:
    """Write the card as Markdown with the Hub's header."""
    cut = "" if facts.truncate_dim is None else f", truncate_dim={facts.truncate_dim}"
    unit = ", normalize_embeddings=True" if facts.renormalize else ""
    parts = [
        f"---\n{_header(facts)}---",
        f"# {facts.repo.rpartition('/')[2]}",
        f"{INTRO} by sempa-mlx {__version__}.",
        "## Use",
        _USES[facts.form].format(repo=facts.repo, model=facts.model, cut=cut, unit=unit),
        "## Base",
        f"`{facts.base}`" if facts.base else "A local model; its name was not given.",
        f"Adapter scale: {facts.scale:g} (0 is the base, 1 the adapter as trained).",
        *_measured(facts),
        *_training(facts),
        *facts.notes,
    ]
    return "\n\n".join(parts) + "\n"


def _header(facts: CardFacts) -> str:
    library = _LIBRARIES.get(facts.form, "mlx")
    header: dict[str, object] = {
        "library_name": library,
        "pipeline_tag": _TASKS.get(facts.form, "feature-extraction"),
        "tags": ["sempa", "sentence-embeddings", *_TAGS.get(library, ()), *_loss_tags(facts)],
    }
    if facts.base:
        header["base_model"] = facts.base
        header["base_model_relation"] = "finetune" if facts.form in _MERGED else "adapter"
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _loss_tags(facts: CardFacts) -> list[str]:
    """Return the Hub's tag of a loss that prefers by log-ratios to a reference."""
    try:
        terms = parse_terms(str(facts.settings.get("objective.loss")))
    except ValueError:  # of another version, or none was recorded
        return []
    return ["dpo"] if terms.keys() & {*PAIRWISE, *RANKED} else []


def _dev_data(facts: CardFacts) -> str:
    """Say what the scores are of: scored pairs, or held-out rows."""
    if "Spearman" not in facts.metric:
        return f"rows ({_named(facts.settings.get('data.dev'))})"
    data = facts.results.get("data")
    dev = data.get("dev") if isinstance(data, dict) else None
    used = dev.get("name") if isinstance(dev, dict) else None
    return f"pairs ({_named(used or facts.settings.get('eval.data'))})"


def _measured(facts: CardFacts) -> list[str]:
    """Return the tables of scores, if there are any."""
    found = []
    if facts.scores:
        rows = [f"| {step} | {score} |" for step, score in facts.scores]
        best = facts.results.get("best_step")
        kept = "" if best is None else f" The adapter of step {best} was kept."
        about = f"On the run's own dev {_dev_data(facts)}.{kept}"
        table = "\n".join([f"| step | {facts.metric} |", "| --- | --- |", *rows])
        found += ["## Measured", f"{about} Step 0 is the base.", table]
    dial = facts.results.get("dial")
    if found and isinstance(dial, dict) and dial:
        rows = [f"| {scale} | {_number(score)} |" for scale, score in dial.items()]
        lines = ["| adapter scale | dev Spearman × 100 |", "| --- | --- |", *rows]
        found.append("\n".join(lines))
    return found


def _number(score: object) -> str:
    return f"{score:.2f}" if isinstance(score, int | float) else "—"


def _training(facts: CardFacts) -> list[str]:
    """Return data and settings, if the run kept them."""
    kept = {
        key: _named(value)
        for key, value in facts.settings.items()
        if key.partition(".")[0] in _SECTIONS and value is not None
    }
    if not kept:
        return []
    pairs, steps = facts.results.get("pairs"), facts.results.get("steps")
    about = f"Data: {kept.get('data.train', 'not recorded')}"
    about += f", {pairs} pairs, {steps} steps." if pairs and steps else "."
    lines = [f"{key}: {value}" for key, value in kept.items()]
    versions = facts.results.get("versions")
    made = f"Versions: {json.dumps(versions)}" if versions else ""
    settings = "```text\n" + "\n".join(lines) + "\n```"
    return ["## Training", about, settings, *([made] if made else [])]


def _named(value: object) -> str:
    """Write a setting without the folders of the machine it was made on."""
    text = f"{value}"
    return text.replace("\\", "/").rstrip("/").rpartition("/")[2]
