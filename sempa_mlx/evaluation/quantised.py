"""Embeddings in few bytes, as the numbers that are left: half precision, 8 bits, signs, top k.

Every function takes (n, dim) real vectors and returns what a comparison sees after the bytes are
read back. Numbers are rounded at unit length, so that none leaves the range of half precision;
cosines do not depend on length.
"""

from typing import TYPE_CHECKING

import numpy as np

from sempa_mlx.encoder.postprocess import at_unit_length
from sempa_mlx.encoder.sparse import code_lengths

if TYPE_CHECKING:
    from scipy.sparse import csr_array

LEVELS = 256  # of a byte


def halved(vectors: np.ndarray) -> np.ndarray:
    """Round vectors at unit length to half precision, (n, dim) float32: 2 bytes a number."""
    found: np.ndarray = at_unit_length(vectors).astype(np.float16).astype(np.float32)
    return found


def largest(vectors: np.ndarray, k: int) -> np.ndarray:
    """Keep the k numbers of largest magnitude of each vector, with their signs; 0 elsewhere.

    Args:
        vectors: (n, dim).
        k: 1 to dim.
    """
    dim = vectors.shape[1]
    kept = np.argpartition(np.abs(vectors), dim - k, axis=1)[:, dim - k :]
    found = np.zeros_like(vectors)
    np.put_along_axis(found, kept, np.take_along_axis(vectors, kept, axis=1), axis=1)
    return found


def int8_levels(vectors: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Round each dimension to 256 levels between its ends on other vectors: a byte a number.

    As `quantize_embeddings(..., "int8", calibration_embeddings=fit)` of sentence-transformers does
    with vectors of unit length. Its users compare the levels as they are, and level 0 is the middle
    of a dimension's range: dimensions are centred and weigh alike.

    Args:
        vectors: (n, dim).
        fit: (m, dim), m >= 1; what lies outside their range goes to its ends.

    Returns:
        (n, dim) int8.
    """
    start, step = _ranges(fit)
    levels = np.clip(np.floor((at_unit_length(vectors) - start) / step), 0, LEVELS - 1)
    found: np.ndarray = (levels - LEVELS // 2).astype(np.int8)
    return found


def int8_values(vectors: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Return the numbers in the middle of `int8_levels`, (n, dim) float32."""
    start, step = _ranges(fit)
    levels = int8_levels(vectors, fit).astype(np.float32)
    found: np.ndarray = start + step * (levels + (LEVELS // 2 + 0.5))
    return found.astype(np.float32)


def _ranges(fit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the levels of each dimension start, and the step between them; float32."""
    unit = at_unit_length(fit).astype(np.float32)
    start = unit.min(axis=0)
    step = (unit.max(axis=0) - start) / np.float32(LEVELS - 1)
    return start, np.where(step == 0, np.float32(1), step)


def signs(vectors: np.ndarray) -> np.ndarray:
    """Return 1 for a number above 0 and -1 for others, (n, dim) int8: a bit a number.

    The cosine of two rows is 1 - 2 h / dim, h their Hamming distance.
    """
    found: np.ndarray = np.where(vectors > 0, np.int8(1), np.int8(-1))
    return found


def halved_codes(codes: "csr_array") -> "csr_array":
    """Round codes at unit length to half precision, (n, hidden) float32; indices stay."""
    from scipy.sparse import csr_array

    lengths = np.repeat(code_lengths(codes), np.diff(codes.indptr))
    unit = np.divide(codes.data, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    values = unit.astype(np.float16).astype(np.float32)
    return csr_array((values, codes.indices, codes.indptr), shape=codes.shape)
