"""An exported folder on the Hub, with a model card of what was trained and what was measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sempa_mlx import __version__
from sempa_mlx.config_resolve import resolve_config
from sempa_mlx.errors import ConfigError, Problem, RunError, UsageError
from sempa_mlx.files import write_text

CARD = "README.md"
PAPER = "[SemPA](https://arxiv.org/abs/2601.05075)"
USES = {
    "mlx": "python -m mlx_lm generate --model {base} --adapter-path {repo}",
    "peft": "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('{base}'), '{repo}')",
    "fused": "python -m mlx_lm generate --model {repo}",
    "encoder": "sempa-mlx embed notes.txt --adapter-path {repo}",
    "sentence-transformers": "SentenceTransformer('{repo}').encode(['A man plays guitar.'])",
}
LIBRARIES = {"mlx": "mlx", "peft": "peft", "fused": "mlx", "encoder": "mlx"}
SETTINGS = (
    *("data.train", "data.template", "lora.kind", "lora.rank", "lora.alpha", "objective.loss"),
    *("objective.beta", "train.batch_size", "train.learning_rate", "train.schedule", "train.seed"),
)


def check_repo(repo: str) -> None:
    """Refuse a name that the Hub cannot have, before anything is written.

    Raises:
        UsageError: it is not OWNER/NAME.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("a repository is named OWNER/NAME")
    except HFValidationError as error:
        raise UsageError(Problem(f"--push {repo}: {error}"), state="nothing was written") from error


def write_card(folder: Path, run: Path, form: str, base: str, repo: str) -> None:
    """Write the model card: base, data, settings, measured scores, how to use it.

    Only what the run folder holds is told; scores are those of its `results.json`.
    """
    front = {"base_model": base, "library_name": LIBRARIES.get(form, form)}
    tags = ["sentence-embeddings", "feature-extraction", "sempa-mlx", "mlx"]
    head = "\n".join(["---", *(f"{k}: {v}" for k, v in front.items()), "tags:"])
    use = USES[form].format(base=base, repo=repo)
    parts = [
        f"{head}\n" + "".join(f"- {tag}\n" for tag in tags) + "---",
        f"# {repo.rpartition('/')[2]}",
        _about(base, form),
        f"```\n{use}\n```",
        _measured(_read(run / "results.json")),
        _settings(run),
    ]
    write_text(folder / CARD, "\n\n".join(part for part in parts if part) + "\n")


def _about(base: str, form: str) -> str:
    return (
        f"`{base}`, trained with {PAPER}: sentence-level preference optimisation on paraphrases, "
        f"so that one model generates and embeds. Made by sempa-mlx {__version__}, exported as "
        f"`{form}`."
    )


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload a folder as one commit of a model repository, made if it is not there.

    Args:
        folder: what an export wrote.
        repo: OWNER/NAME on the Hub; the token is the one that `hf auth login` keeps.
        private: for a repository that is made now.

    Returns:
        The commit's address.

    Raises:
        RunError: the Hub cannot be reached or refuses; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="model",
            commit_message=f"Upload from sempa-mlx {__version__}",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            Problem(
                f"the Hub refused: {reason}",
                repo,
                fix=f"hf auth login, then: hf upload {repo} {folder}",
            ),
            state=f"{folder} is written",
        ) from error
    return str(commit.commit_url) if hasattr(commit, "commit_url") else str(commit)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _measured(results: Mapping[str, Any]) -> str:
    """Return the table of dev scores; a run that did not finish has none."""
    if not {"base_dev_score", "best_dev_score", "best_step", "best_scale"} <= results.keys():
        return ""
    base, best = (_shown(results[f"{which}_dev_score"]) for which in ("base", "best"))
    name = {"spearman": "Spearman x 100"}.get(str(results.get("metric")), results.get("metric"))
    machine = results.get("machine") or {}
    return (
        f"## Measured\n\n| dev set, {name} | |\n| --- | ---: |\n| base | {base} |\n"
        f"| trained, step {results['best_step']}, scale {results['best_scale']:g} | {best} |\n\n"
        f"The step and the scale were chosen on these very pairs. {results.get('pairs')} training "
        f"pairs, {results.get('seconds')} s on {machine.get('name')} ({machine.get('device')})."
    )


def _shown(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.2f}"


def _settings(run: Path) -> str:
    path = run / "config.yaml"
    if not path.is_file():
        return ""
    try:
        tree = resolve_config(path).config.model_dump(mode="json")
    except ConfigError:  # of another version
        return ""
    rows = []
    for key in SETTINGS:
        section, _, name = key.partition(".")
        value = tree[section][name]
        shown = Path(value).name if key == "data.train" else value  # a path is of one machine
        rows.append(f"| {key} | {shown} |")
    return "## Settings\n\n| | |\n| --- | --- |\n" + "\n".join(rows)
