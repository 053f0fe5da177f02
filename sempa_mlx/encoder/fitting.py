"""Fitting the map after an encoder, once for the same encoder and texts."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.postprocess import PostFit, fit_post, read_post, write_post
from sempa_mlx.encoder.vector_cache import texts_key
from sempa_mlx.errors import ModelError
from sempa_mlx.files import cache_folder


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


def default_folder() -> Path:
    """Return the folder where fits are kept."""
    return cache_folder() / "post"
