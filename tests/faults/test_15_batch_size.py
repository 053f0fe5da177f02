"""Fault 15: padding, batch size and order must not change a vector.

For every kind of model and method: tests/encoder/test_encoder.py; scores of completions:
tests/model/test_forward.py.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.command import SENTENCES, done

UNEQUAL = (*SENTENCES, "word " * 60, "a", "A man", "word " * 30)


@pytest.mark.unmeasured
@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(len(UNEQUAL))), tokens=st.sampled_from([64, 100, 300, 4096]))
def test_a_line_has_its_vector_in_any_order_and_batch(space, here, order, tokens):
    (here / "one.txt").write_text("".join(f"{text}\n" for text in UNEQUAL))
    (here / "two.txt").write_text("".join(f"{UNEQUAL[at]}\n" for at in order))
    common = ("--adapter-path", space / "run", "--force")
    done("embed", "one.txt", *common, "--batch-tokens", 64)
    done("embed", "two.txt", *common, "--batch-tokens", tokens)
    one, two = np.load("one.txt.npy"), np.load("two.txt.npy")
    np.testing.assert_allclose(two, one[list(order)], atol=1e-5)
