"""Fitting the map after an encoder, once for the same encoder and texts."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.postprocess import PostFit, fit_post, read_post, write_post
from sempa_mlx.encoder.vector_cache import texts_key
from sempa_mlx.errors import ModelError
from sempa_mlx.files import cache_folder, replacing


def fit_after(
    encoder: Encoder,
    texts: Sequence[str],
    kind: str,
    components: int,
    *,
    folder: Path,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[PostFit, Path]:
    """Fit a map to an encoder's vectors of some texts, or find an earlier fit.

    Args:
        encoder: makes the vectors; a map that it has already is left out.
        texts: unlabelled, and none of a test; each distinct one counts once.
        kind: `abtt`, `standardize` or `whiten`.
        components: directions that `abtt` takes away.
        folder: where fits are kept, one file each.
        on_progress: called with the number of texts done by each batch.

    Returns:
        The map, and the file that holds it.

    Raises:
        DataError: there are too few distinct texts.
        ResourceError: the file cannot be written.
    """
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    path = folder / f"{texts_key(encoder, distinct, kind, components)}.safetensors"
    with suppress(ModelError):  # none yet, or damaged
        return read_post(path), path
    layer = encoder.parameters.index(encoder.depth)
    raw, _ = encoder.read(distinct, (layer,), on_progress=on_progress)
    fit = fit_post(raw[0, 0], kind, components, encoder.vectors_key)
    write_post(path, fit)
    return fit, path


def rename_vectors(path: Path, before: str, after: str) -> None:
    """Write into the file of a map or coder another key of the vectors that it was fitted to.

    That is for vectors that stay what they are while the files of their model change; a file that
    was fitted to others than `before` is left as it is.
    """
    from safetensors import safe_open
    from safetensors.numpy import save

    with safe_open(path, framework="numpy") as file:
        about = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for each in about.values():
        if each.get("vectors") == before:
            each["vectors"] = after
    metadata = {key: json.dumps(each) for key, each in about.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(arrays, metadata=metadata))


def default_folder() -> Path:
    """Return the folder where fits are kept."""
    return cache_folder() / "post"
