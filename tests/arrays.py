"""Named arrays, as of weights or gradients: read as numpy, and compared name by name."""

import numpy as np
from mlx.utils import tree_flatten


def as_numpy(tree):
    """Copies of the arrays of a tree, by their dotted names."""
    return {name: np.array(value) for name, value in tree_flatten(tree)}


def assert_equal(found, expected):
    """Two trees hold the same names and, under each, the same values."""
    found, expected = as_numpy(found), as_numpy(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def assert_close(found, expected, *, share=0.0, atol=0.0):
    """Two trees hold the same names; values differ by `atol` and a share of the largest there."""
    found, expected = as_numpy(found), as_numpy(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        bound = atol + share * np.abs(value).max()
        np.testing.assert_allclose(found[name], value, atol=bound, err_msg=name)
