"""From stored vectors back to the encoder that made them, so that a query is embedded alike."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.fitting import default_folder
from sempa_mlx.encoder.postprocess import PostFit, read_post
from sempa_mlx.encoder.settings import POST_FILE, settings_from
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.load import LoadedModel, load_model
from sempa_mlx.model.lora import CONFIG_FILE, load_adapter, read_adapter_config


def origin(encoder: Encoder, adapter_path: Path | None) -> dict[str, Any]:
    """Return what finds an encoder again, and tells it from others: the header of a store.

    That is its description; `vectors`, the key of what made the vectors; `adapter_path`, the run
    folder as an absolute path, or null.
    """
    return {
        **encoder.describe(),
        "vectors": encoder.vectors_key,
        "adapter_path": None if adapter_path is None else str(adapter_path.resolve()),
    }


def reopen(
    about: dict[str, Any],
    place: str,
    *,
    model: str | None = None,
    adapter_path: Path | None = None,
    post: Path | None = None,
) -> Encoder:
    """Load the encoder that made stored vectors.

    Args:
        about: what `origin` returned.
        place: the file that says so, for messages.
        model: where the model lies now, or the folder of an encoder; by default where it was.
        adapter_path: the same of the run folder; one that holds its base needs no `model`.
        post: the file of the fitted map; by default that in the run folder or among those kept.

    Raises:
        ModelError: `about` is something else; model, adapter or map cannot be had; or what was
            found would make other vectors.
    """
    settings = settings_from(about, place)
    try:
        key, stored = str(about["vectors"]), about["adapter_path"]
        name, revision = str(about["model"]["name"]), about["model"]["revision"]
        fingerprint, described = about["model"]["fingerprint"], about["post"]
    except (KeyError, TypeError) as error:
        what = f"does not say what made the vectors ({error!r})"
        raise ModelError(Problem(what, place, fix="embed again")) from error
    if model is not None and adapter_path is None and (Path(model) / CONFIG_FILE).is_file():
        adapter_path, model = Path(model), None  # an exported encoder, which holds both
    model = model or _base_inside(adapter_path)
    loaded = _load(model or name, None if model else revision, place)
    if loaded.fingerprint != fingerprint:
        what = f"made by another model than `{loaded.location.name}`"
        found = f"by `{name}` ({fingerprint}), not {loaded.fingerprint}"
        raise ModelError(Problem(what, place, found, "name that model: --model"))
    run = adapter_path or (Path(stored) if stored else None)
    if run is not None:
        if adapter_path is None and not (run / CONFIG_FILE).is_file():
            what = f"the adapter that made the vectors is no longer in {run}"
            raise ModelError(Problem(what, place, fix="say where it is: --adapter-path DIR"))
        load_adapter(loaded, run)
    encoder = Encoder(loaded, settings)
    if encoder.vectors_key != key and about["model"].get("setup") != loaded.setup:
        what = f"made by the weights of `{loaded.location.name}` with other settings or tokenizer"
        fix = "embed again: --force; or name the model as it was: --model"
        raise ModelError(Problem(f"{what}, or by an earlier version", place, fix=fix))
    if encoder.vectors_key != key:
        adapter = f"the adapter in {run}" if run else "no adapter"
        what = f"made by another encoder than `{loaded.location.name}` with {adapter}"
        found = f"its vectors are {key}, not {encoder.vectors_key}"
        raise ModelError(Problem(what, place, found, "name the adapter that it was made with"))
    if described is None:
        return encoder
    fit = _find_fit(described, key, _candidates(run, post), place)
    return Encoder(loaded, replace(settings, post=fit))


def _base_inside(run: Path | None) -> str | None:
    """Return the base that lies in an adapter's own folder, as in an exported encoder."""
    if run is None or not (run / CONFIG_FILE).is_file():
        return None
    base = str(read_adapter_config(run).get("model"))
    return base if Path(base).is_relative_to(run) else None


def _load(name: str, revision: str | None, place: str) -> LoadedModel:
    try:
        return load_model(name, revision=revision)
    except ModelError as error:
        state = f"{place} names the model that made it; --model says where it is now"
        raise ModelError(error.problems, state=state) from error


def _candidates(run: Path | None, post: Path | None) -> Iterator[Path]:
    """Yield the files that may hold the map, the likeliest first."""
    if post is not None:
        yield post
        return
    if run is not None:
        yield run / POST_FILE
    yield from sorted(default_folder().glob("*.safetensors"))


def _find_fit(
    described: dict[str, Any], key: str, candidates: Iterator[Path], place: str
) -> PostFit:
    """Return the map that is described, and fitted to the vectors of that key."""
    for path in candidates:
        with suppress(ModelError):  # none there, or damaged
            fit = read_post(path)
            if fit.describe() == described and fit.vectors == key:
                return fit
    what = f"the map of the vectors ({described.get('kind')} {described.get('fit')}) was not found"
    raise ModelError(Problem(what, place, fix="name its file: --post FILE.safetensors"))
