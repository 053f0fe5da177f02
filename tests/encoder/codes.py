"""Coders and codes for tests, drawn by seed; nothing is fitted."""

import numpy as np
from scipy.sparse import csr_array

from sempa_mlx.encoder.sparse import SparseCoder


def drawn_codes(count=30, latents=50, *, density=0.1, seed=0):
    """Draw positive codes; some rows are empty."""
    draw = np.random.default_rng(seed)
    values = draw.lognormal(size=(count, latents)) * (draw.random((count, latents)) < density)
    values[3:count:11] = 0
    return csr_array(values.astype(np.float32))


def drawn_coder(vectors, kind="topk", *, dim=32, hidden=48, k=6, seed=0, atoms=None):
    """Make a coder of random atoms, or of these, for the vectors of that key."""
    draw = np.random.default_rng(seed)
    if atoms is None:
        atoms = draw.normal(size=(hidden, dim)).astype(np.float32)
    bias = np.zeros(len(atoms), dtype=np.float32)
    centre = draw.normal(size=dim).astype(np.float32)
    scale = draw.uniform(0.5, 2.0, size=dim).astype(np.float32)
    penalty, gain = (0.5 if kind == "fista" else 0.0), 1.0
    return SparseCoder(kind, k, vectors, 9, penalty, gain, scale, centre, atoms, bias)
