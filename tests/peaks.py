"""How much memory arrays take at most while something is computed."""

import mlx.core as mx


def peak_bytes(compute):
    """The most memory that `compute` adds while it runs.

    It is the least of three runs: mlx allocates ahead of the thread that computes and frees, and on
    a busy machine that thread may lag far behind.
    """
    mx.eval(compute())  # the first time also builds what stays
    found = []
    for _ in range(3):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(compute())
        found.append(mx.get_peak_memory() - before)
    return min(found)
