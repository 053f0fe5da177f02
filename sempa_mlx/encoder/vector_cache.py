"""Raw embeddings of unlabelled texts, kept on disk: what is fitted after an encoder starts here."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.files import cache_folder, replacing
from sempa_mlx.runtime import dtype_name


def raw_vectors(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    folder: Path,
    on_progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Embed texts, or find their embeddings from an earlier time.

    Args:
        encoder: makes the vectors; a map after it, a cut and unit length are left out.
        texts: any number.
        folder: where embeddings are kept, one file for an encoder and its texts.
        on_progress: called with the number of texts done by each batch.

    Returns:
        (texts, hidden size) float32 as they leave the model.

    Raises:
        ResourceError: the file cannot be written.
    """
    path = folder / f"{texts_key(encoder, texts)}.npy"
    with suppress(OSError, ValueError, EOFError):  # none yet, or not whole
        found: np.ndarray = np.load(path, allow_pickle=False)
        if found.shape == (len(texts), encoder.hidden_size) and found.dtype == np.float32:
            return found
    layer = encoder.parameters.index(encoder.depth)
    states, _ = encoder.read(texts, (layer,), on_progress=on_progress)
    vectors: np.ndarray = states[0, 0]
    with replacing(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, vectors, allow_pickle=False)
    return vectors


def texts_key(encoder: Encoder, texts: Sequence[str], *others: str | int) -> str:
    """Return 16 hex digits for an encoder's raw vectors of some texts, and what else counts."""
    parts = [encoder.vectors_key, dtype_name(encoder.loaded.dtype), *others, list(texts)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def default_folder() -> Path:
    """Return the folder where embeddings are kept; it may be deleted at any time."""
    return cache_folder() / "vectors"
