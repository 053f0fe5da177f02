"""How much memory a run will take, found by trying small parts of its largest forward pass.

Memory grows linearly with the rows of a pass whose padded lengths stay the same, so two small
passes over the longest rows tell the height of the large one, whatever the model.
"""

from collections.abc import Sequence

import mlx.core as mx

from sempa_mlx.errors import Problem, ResourceError
from sempa_mlx.runtime import GB, memory_limit_gb
from sempa_mlx.training.contribution import Term
from sempa_mlx.world import World

# The largest pass is tried with a quarter and half of its rows: with fewer, its completions may not
# fill one block of the head, whose memory then seems to grow with them.
PROBE_SHARES = (4, 2)
CROWDED = 0.8  # of the memory: other programs want some, and the estimate is one
SMALLER = "lower train.micro_batch_tokens or model.max_tokens, or set train.grad_checkpoint=true"


def estimate_peak_gb(terms: Sequence[Term], batches: Sequence[Sequence[int]]) -> float:
    """Return the expected peak of a run's memory in GB (1e9 bytes), as mlx counts it.

    Terms follow one another, so the largest decides. The model must be in training mode.

    Args:
        terms: of the loss.
        batches: rows of every step.
    """
    return max((_peak(term, batches) for term in terms), default=0.0) / GB


def check_peak(expected_gb: float) -> str:
    """Refuse a run that cannot fit into memory; return a warning if it only just does.

    Raises:
        ResourceError: it takes more than there is.
    """
    limit = memory_limit_gb()
    what = f"a step takes about {expected_gb:.1f} GB, and this process may take {limit:.1f} GB"
    if expected_gb > limit:
        raise ResourceError(Problem(what, fix=SMALLER), state="nothing was trained")
    return f"{what}; if it is cut off: {SMALLER}" if expected_gb > CROWDED * limit else ""


def _peak(term: Term, batches: Sequence[Sequence[int]]) -> float:
    largest = term.largest_pass(batches)
    if not largest:
        return 0.0
    counts = [len(largest) // share for share in PROBE_SHARES]
    if counts[0] == 0:
        return _tried(term, largest)  # there are no two smaller passes to tell it from
    peaks = [_tried(term, largest[-count:]) for count in counts]
    slope = (peaks[1] - peaks[0]) / (counts[1] - counts[0])
    return peaks[1] + slope * (len(largest) - counts[1])


def _tried(term: Term, rows: Sequence[int]) -> float:
    """Return the peak of one contribution, in bytes; its cached buffers are given back."""
    mx.clear_cache()
    mx.reset_peak_memory()
    term.contribution(rows, World(), 0)
    return float(mx.get_peak_memory())
