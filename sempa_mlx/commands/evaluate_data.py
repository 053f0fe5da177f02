"""What the `eval` commands measure on: STS sets, files of pairs, files of sentences."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sempa_mlx.errors import DataError, Problem, UsageError

if TYPE_CHECKING:
    from sempa_mlx.data.records import StsTask

Protocol = Literal["senteval", "mteb"]


def sts_tasks(
    data: str, names: Sequence[str] | None, protocol: Protocol | None
) -> tuple["StsTask", ...]:
    """Read the STS tasks that `--data` names: `hub`, a folder of sets, or one file of pairs.

    Raises:
        UsageError: tasks or a protocol are named for a file, which is one task, read as it stands.
        DataError: there is no such thing, or it has faults; all of them are told.
    """
    from sempa_mlx.data.records import StsTask
    from sempa_mlx.data.sources import sts_root
    from sempa_mlx.data.sts_files import read_sts_file
    from sempa_mlx.data.sts_sets import TASKS, load_sts_tasks

    path = Path(data).expanduser()
    if data != "hub" and not path.exists():
        fix = "give a file of pairs, a folder of STS sets, or `hub`"
        raise DataError(Problem("no such file or folder", data, fix=fix))
    if data == "hub" or path.is_dir():
        return load_sts_tasks(sts_root(data), names or TASKS, protocol=protocol or "senteval")
    if names or protocol:
        option = "--tasks" if names else "--protocol"
        what = f"{option} is for the seven sets; a file is one task, read as it stands"
        raise UsageError(Problem(what, data, fix=f"leave out {option}"))
    return (StsTask(path.name, "file", read_sts_file(path)),)
