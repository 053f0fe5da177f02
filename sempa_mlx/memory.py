"""Memory that could not be had: how to tell, and what to say.

Not every shortage raises: OpenBLAS and some allocations of mlx end the process, as does the system
when all memory is gone. What a run keeps on disk is whole then, too.
"""

import re

from sempa_mlx.errors import Problem, ResourceError

_SHORTAGE = re.compile(
    r"malloc\]|unable to allocate|out of memory|insufficient memory|maximum allowed buffer size",
    re.IGNORECASE,
)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error is one of Python, mlx, Metal or CUDA about memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None


def out_of_memory(
    error: Exception,
    what: str = "not enough memory",
    *,
    fix: str = "close other programs, or lower --batch-tokens where there is one",
    state: str = "",
) -> ResourceError | None:
    """Return what to tell about a shortage of memory; None if the error is about something else."""
    if not is_out_of_memory(error):
        return None
    evidence = str(error).splitlines()[0] if str(error) else ""
    return ResourceError(Problem(what, evidence=evidence, fix=fix), state=state)
