"""A sparse coder that is trained beside the adapter, as a part of the model."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.config import SempaConfig
from sempa_mlx.encoder.coder_file import describe_coder, identify, read_coder, write_coder
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.sparse import SparseCoder, check_k
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.files import named_path
from sempa_mlx.training.code_loss import CoderWeights

NAME = "sparse_coder"  # of the module in the model


class JointCoder(nn.Module):  # type: ignore[misc]
    """The weights of a `topk` coder as trainable parameters; centre and scale stay."""

    def __init__(self, start: SparseCoder) -> None:
        """Start as that coder is."""
        super().__init__()
        self.atoms, self.bias = mx.array(start.atoms), mx.array(start.bias)
        self.shift = mx.zeros(start.dim)
        self._start = start
        self._centre, self._scale = mx.array(start.centre), mx.array(start.scale)

    def __call__(self, vectors: mx.array) -> tuple[mx.array, CoderWeights]:
        """Return (n, dim) embeddings as the coder sees them, and its weights."""
        seen = (vectors - self._centre) / self._scale
        return seen, CoderWeights(self.atoms, self.bias, self.shift)

    @property
    def digest(self) -> str:
        """16 hex digits of the coder it started as."""
        return str(identify(self._start)["digest"])

    def coder(self, made_by: str, k: int, num_texts: int) -> SparseCoder:
        """Return the coder as it is now, for vectors of that key."""
        start = self._start
        return SparseCoder(
            kind="topk",
            k=k,
            vectors=made_by,
            num_texts=num_texts,
            penalty=0.0,
            gain=1.0,
            centre=start.centre + start.scale * np.array(self.shift),
            scale=start.scale,
            atoms=np.array(self.atoms),
            bias=np.array(self.bias),
        )


def attach_coder(config: SempaConfig, encoder: Encoder) -> JointCoder | None:
    """Put the coder that the loss's `code` term starts from into the model; None without the term.

    Raises:
        ModelError: there is no such coder, it is not of kind `topk`, or codes other vectors than
            the untrained base's.
        UsageError: k is larger than the number of latents.
    """
    if "code" not in config.objective.terms or config.sparse.start is None:
        return None
    path = named_path(config.sparse.start)
    kind = describe_coder(path)["kind"]
    if kind != "topk":
        what = f"a {kind} coder cannot be trained beside an adapter"
        fix = "fit one of kind topk"
        raise ModelError(Problem(what, str(path), fix=fix), state="nothing was trained")
    start = read_coder(path)
    if start.vectors != encoder.with_scale(0.0).vectors_key:
        what = "the coder belongs to other vectors than the untrained base's"
        fix = f"fit one: sempa-mlx sparse fit --model {config.model.name} --data FILE --out {path}"
        raise ModelError(Problem(what, str(path), fix=fix), state="nothing was trained")
    check_k(config.sparse.k, start.hidden)
    found = JointCoder(start)
    model: Any = encoder.loaded.model
    setattr(model, NAME, found)
    return found


def write_joint_coder(
    path: Path, coder: JointCoder, encoder: Encoder, k: int, num_texts: int
) -> None:
    """Write the coder as it is beside the adapter as it is.

    Raises:
        ResourceError: it cannot be written.
    """
    write_coder(path, coder.coder(encoder.vectors_key, k, num_texts))
