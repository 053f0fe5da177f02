"""Let glibc keep the memory that mlx frees on a Linux CPU.

By default glibc gives a large freed block back to the system. mlx allocates one for the result of
every operation, and the system hands each page of it out anew, cleared: a sixth of the time of a
small model's training step. Kept blocks are used again as they are.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
KEPT_BYTES = 2**30  # free memory at the end of the heap that is kept
OWN_MAPPING_BYTES = 2**25  # from here on a block is mapped alone, and given back; glibc's bound


def keep_freed_memory() -> bool:
    """Set glibc's thresholds, unless the user did; tell whether they are set.

    Other systems and other C libraries are left as they are.
    """
    if sys.platform != "linux" or any(name in os.environ for name in VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {M_TRIM_THRESHOLD: KEPT_BYTES, M_MMAP_THRESHOLD: OWN_MAPPING_BYTES}
    return all(mallopt(option, size) == 1 for option, size in options.items())
