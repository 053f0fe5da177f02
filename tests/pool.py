"""mlx's pool of freed buffers, which has no getter of its own."""

import mlx.core as mx

from sempa_mlx import runtime


def pool_share():
    """The bound of the pool, as a share of the memory that the device has."""
    bound = mx.set_cache_limit(0)
    mx.set_cache_limit(bound)
    return bound / (runtime.machine().memory_gb * runtime.GB)
