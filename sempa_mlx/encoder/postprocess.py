"""Affine maps of vectors, fitted on unlabelled text: ABTT, standardisation, whitening.

States of language models lie in a narrow cone: a common mean and a few directions outweigh what
tells texts apart. These maps are fitted once on texts that have nothing to do with a test, and kept
in a file, since vectors can only be compared if one fit made them.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sempa_mlx.errors import DataError, ModelError, Problem, UsageError
from sempa_mlx.files import replacing

KINDS = ("abtt", "standardize", "whiten")
FORMAT = "1"
NO_VARIANCE = 1e-10  # of the largest variance: less is rounding


def at_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Return (n, dim) vectors at length 1, in their precision; zero stays zero, infinity is NaN."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = vectors / np.where(norms > 0, norms, 1.0)
    return found


@dataclass(frozen=True, slots=True)
class PostFit:
    """A fitted map of vectors.

    `abtt` (all but the top, arXiv 1702.01417) subtracts the mean and takes the leading
    `components` principal directions away. `standardize` (arXiv 2109.04404) gives each dimension
    mean 0 and variance 1, so that the few that vary most do not decide alone. `whiten` (arXiv
    2103.15316) subtracts the mean and gives each principal direction variance 1, the strongest
    first, so that the first n numbers of a vector are its best n. `vectors` names what was fitted:
    a map fits no other vectors.
    """

    kind: str
    components: int
    vectors: str
    num_texts: int
    digest: str
    mean: np.ndarray = field(compare=False, repr=False)
    basis: np.ndarray = field(compare=False, repr=False)

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Map (n, dim) float32 vectors, as they leave the model, to vectors of the same shape."""
        centred = vectors - self.mean
        if self.kind == "standardize":
            standard: np.ndarray = centred * self.basis[0]
            return standard
        shares: np.ndarray = centred @ self.basis.T
        return shares if self.kind == "whiten" else centred - shares @ self.basis

    def describe(self) -> dict[str, Any]:
        """Return what tells this map from others."""
        return {
            "kind": self.kind,
            "components": self.components,
            "num_texts": self.num_texts,
            "fit": self.digest,
        }


def parse_kind(text: str) -> tuple[str, int]:
    """Read a map such as `abtt:3` or `whiten` as kind and number of directions to take away.

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(abtt)(?::([1-9]\d*))?|(standardize|whiten)", text)
    if found is None:
        fix = "abtt, abtt:N to take N directions away, standardize, whiten, or a file fitted before"
        raise UsageError(Problem(f"no post-processing `{text}`", fix=fix))
    return found[1] or found[3], int(found[2] or 1) if found[1] else 0


def fit_post(raw: np.ndarray, kind: str, components: int, vectors: str) -> PostFit:
    """Fit a map to vectors of unlabelled texts.

    Args:
        raw: (n, dim) float32 as they leave the model, of distinct texts; for whitening n should be
            several times dim.
        kind: `abtt`, `standardize` or `whiten`.
        components: directions that `abtt` takes away.
        vectors: what made the vectors (`Encoder.vectors_key`).

    Raises:
        DataError: there are too few texts, or their vectors are not finite or all one.
    """
    count, dim = raw.shape
    least = {"whiten": dim, "standardize": 1}.get(kind, components)
    if count <= least:
        what = f"{count} distinct texts are too few to fit {kind} to {dim} dimensions"
        raise DataError(Problem(what, fix=f"give more than {least}"), state="nothing was fitted")
    if kind == "abtt" and components >= dim:
        raise UsageError(f"abtt cannot take {components} of {dim} directions away")
    if not np.isfinite(raw).all():
        raise DataError("embeddings hold NaN or infinity", state="nothing was fitted")
    if (raw == raw[0]).all():
        raise DataError("the texts all have one embedding", state="nothing was fitted")
    mean = raw.mean(axis=0, dtype=np.float64)
    centred = raw.astype(np.float64) - mean
    if kind == "standardize":
        variances = (centred**2).mean(axis=0)
        basis = _inverse_roots(variances, variances.max())[None]
    else:
        variances, directions = _principal(centred)
        basis = directions[:components]
        if kind == "whiten":
            basis = directions * _inverse_roots(variances, variances[0])[:, None]
    # In the layout that a file gives back, so that products round alike.
    arrays = mean.astype(np.float32), np.ascontiguousarray(basis, dtype=np.float32)
    return PostFit(kind, components, vectors, count, _digest(*arrays), *arrays)


def _principal(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return variances and directions (a row each) of principal components, strongest first."""
    variances, columns = np.linalg.eigh(centred.T @ centred / len(centred))
    variances, directions = variances[::-1], columns[:, ::-1].T
    # Eigenvectors have no sign of their own: the largest entry is made positive.
    largest = np.abs(directions).argmax(axis=1)
    return variances, directions * np.sign(directions[np.arange(len(largest)), largest])[:, None]


def _inverse_roots(variances: np.ndarray, largest: float) -> np.ndarray:
    """Return 1 / standard deviation; what does not vary is not blown up."""
    roots: np.ndarray = 1 / np.sqrt(np.maximum(variances, NO_VARIANCE * largest))
    return roots


def _digest(mean: np.ndarray, basis: np.ndarray) -> str:
    """Return 16 hex digits of the arrays' values."""
    content = b"".join(np.ascontiguousarray(each, dtype="<f4").tobytes() for each in (mean, basis))
    return hashlib.sha256(content).hexdigest()[:16]


def write_post(path: Path, fit: PostFit) -> None:
    """Write a fitted map as a safetensors file.

    Raises:
        ResourceError: it cannot be written.
    """
    from safetensors.numpy import save

    about = {"format": FORMAT, "vectors": fit.vectors, **fit.describe()}
    arrays = {"mean": fit.mean, "basis": fit.basis}
    with replacing(path) as temporary:  # `save_file` would let nobody else read it
        temporary.write_bytes(save(arrays, metadata={"sempa_post": json.dumps(about)}))


def read_post(path: Path) -> PostFit:
    """Read a fitted map.

    Raises:
        ModelError: there is no such file, or it is not whole.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(Problem("no such file", str(path), fix="fit it: --post abtt"))
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["sempa_post"])
            arrays = file.get_tensor("mean"), file.get_tensor("basis")
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}")
        fit = PostFit(
            str(about["kind"]),
            int(about["components"]),
            str(about["vectors"]),
            int(about["num_texts"]),
            str(about["fit"]),
            *arrays,
        )
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise ModelError(Problem(f"not a fitted map ({error!r})", str(path))) from error
    if fit.kind not in KINDS or fit.digest != _digest(*arrays):
        raise ModelError(Problem("the fitted map is damaged", str(path), fix="fit it anew"))
    return fit
