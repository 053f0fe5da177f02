"""A sparse coder as a module of sentence-transformers: the folder of its `SparseAutoEncoder`.

The module computes top_k(ReLU(W (x - pre_bias) + latent_bias)) and rebuilds with the same W; the
coder divides by its scale in between. With W = atoms / scale the module takes embeddings as they
leave the model, neither cut nor of unit length, and gives the coder's codes. What does not carry
over is the way back: the tied W rebuilds (x - centre) / scale^2 where the coder rebuilds
x - centre; it is the same where the scale is 1.
"""

import json
from pathlib import Path

import numpy as np

from sempa_mlx.encoder.sparse import SparseCoder
from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.files import new_folder, refuse_filled

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MOST_AUXILIARY = 512  # latents of the auxiliary loss: the module's own default
DEAD_THRESHOLD = 30


def export_sparse_autoencoder(coder: SparseCoder, out: Path) -> Path:
    """Write a folder that `SparseAutoEncoder.load` opens (sentence-transformers 5 and 6).

    In inference mode, as `SparseEncoder.encode` runs it, the module gives the codes that
    `coder.encode` gives, as rows of (hidden,) float32; among equal latents at the edge of the k
    strongest either may stay. In other modes it also needs latents for 4k values.

    Args:
        coder: of kind `topk`.
        out: folder to write; returned.

    Raises:
        UsageError: the coder is of another kind, or `out` exists and is not an empty folder.
        ResourceError: it cannot be written.
    """
    from safetensors.numpy import save

    check_kind(coder.kind)
    refuse_filled(out)
    config = json.dumps(_config(coder), indent=4) + "\n"
    # Tied weights are stored once, under the name that the module's own files have.
    about = {"format": "pt", "encoder.weight": "decoder.linear.weight"}
    weights = save(_weights(coder), metadata=about)
    with new_folder(out) as stage:
        (stage / WEIGHTS_FILE).write_bytes(weights)
        (stage / CONFIG_FILE).write_text(config, encoding="utf-8")
    return out


def check_kind(kind: str) -> None:
    """Refuse coders that the module cannot stand for.

    Raises:
        UsageError: the kind is not `topk`.
    """
    if kind != "topk":
        what = f"a SparseAutoEncoder computes top-k codes; this coder is of kind {kind}"
        fix = "export one made by: sempa-mlx sparse fit --coder topk"
        raise UsageError(Problem(what, fix=fix), state="nothing was written")


def _config(coder: SparseCoder) -> dict[str, int | bool]:
    return {
        "input_dim": coder.dim,
        "hidden_dim": coder.hidden,
        "k": coder.k,
        "k_aux": min(MOST_AUXILIARY, coder.hidden),
        "normalize": False,
        "dead_threshold": DEAD_THRESHOLD,
    }


def _weights(coder: SparseCoder) -> dict[str, np.ndarray]:
    folded = (coder.atoms / np.asarray(coder.scale, dtype=np.float64)).astype(np.float32)
    return {
        "decoder.linear.weight": np.ascontiguousarray(folded),
        "latent_bias": np.ascontiguousarray(coder.bias, dtype=np.float32),
        "pre_bias": np.ascontiguousarray(coder.centre, dtype=np.float32),
        "stats_last_nonzero": np.zeros(coder.hidden, dtype=np.int64),
    }
