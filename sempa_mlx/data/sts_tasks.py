"""STS tasks by the name of where they are: the Hub, a folder of sets, or a file of pairs."""

from collections.abc import Sequence
from typing import get_args

from sempa_mlx.data.hub_sts import check_hub_names, is_of_hub, load_hub_tasks
from sempa_mlx.data.records import StsTask
from sempa_mlx.data.sources import sts_root
from sempa_mlx.data.sts_files import read_sts_file
from sempa_mlx.data.sts_sets import TASKS, Protocol, load_sts_tasks
from sempa_mlx.errors import DataError, Problem, UsageError
from sempa_mlx.files import named_path


def sts_tasks(
    data: str, names: Sequence[str] | None, protocol: Protocol | None
) -> tuple[StsTask, ...]:
    """Read the STS tasks that `data` names: `hub`, a folder of sets, or one file of pairs.

    From `hub` come the seven sets, under `protocol`, and those of `data/hub_sts`, under `mteb`.

    Raises:
        UsageError: unknown tasks; tasks or a protocol are named that cannot be read from there.
        DataError: there is no such thing, or it has faults; all of them are told.
    """
    if protocol not in (None, *get_args(Protocol)):
        known = " or ".join(get_args(Protocol))
        raise UsageError(Problem(f"unknown protocol {protocol!r}", fix=f"name {known}"))
    path, names = named_path(data), tuple(dict.fromkeys(names or ()))
    if data != "hub" and not path.exists():
        fix = "give a file of pairs, a folder of STS sets, or `hub`"
        raise DataError(Problem("no such file or folder", data, fix=fix))
    if data == "hub" and names and not set(names) <= set(TASKS):
        return _with_hub_tasks(names, protocol)
    of_hub = next(filter(is_of_hub, names), None)
    if of_hub:
        raise UsageError(Problem(f"{of_hub} is read from the Hub", data, fix="use --data hub"))
    if data == "hub" or path.is_dir():
        return load_sts_tasks(sts_root(data), names or TASKS, protocol=protocol or "senteval")
    if names or protocol:
        option = "--tasks" if names else "--protocol"
        what = f"{option} is for the seven sets; a file is one task, read as it stands"
        raise UsageError(Problem(what, data, fix=f"leave out {option}"))
    return (StsTask(path.name, "file", read_sts_file(path)),)


def _with_hub_tasks(names: Sequence[str], protocol: Protocol | None) -> tuple[StsTask, ...]:
    """Read tasks some of which are not of the seven sets, in the order named."""
    seven = [name for name in names if name in TASKS]
    others = [name for name in names if name not in TASKS]
    check_hub_names(others, TASKS)
    if protocol == "senteval" and not seven:
        what = f"{others[0]} is raw text, protocol mteb"
        raise UsageError(Problem(what, fix="leave out --protocol"))
    found = load_hub_tasks(others)
    if seven:
        found = (*load_sts_tasks(sts_root("hub"), seven, protocol=protocol or "senteval"), *found)
    places = {name: place for place, name in enumerate(names)}
    return tuple(
        sorted(
            found, key=lambda task: places.get(task.name, places.get(task.name.split("/")[0], 0))
        )
    )
