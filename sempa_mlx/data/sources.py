"""What a data name in the settings stands for: packaged rows, a file on the Hub, a local path.

Two files come from SimCSE's data set repository on the Hugging Face Hub: the NLI triplets, and
SentEval's data as a tar, of which the STS and SICK folders are unpacked beside the Hub cache.
What was once fetched is found again without a network.
"""

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from sempa_mlx.data.hub import NO_ROOM, fetch_file, no_room
from sempa_mlx.errors import DataError, Problem
from sempa_mlx.files import cache_folder, named_path, staging

HUB_REPO = "princeton-nlp/datasets-for-simcse"

_NLI_FILE = "nli_for_simcse.csv"
_SENTEVAL_FILE = "senteval.tar"
_UNPACKED = "senteval-"  # and the commit: name of the folder that holds the unpacked files
_DEMO = Path(__file__).parent / "demo"
_GENERAL_TEXT = Path(__file__).parent / "general" / "text.txt"

# SentEval's STS and SICK files hold a few megabytes; more than this is not SentEval.
_MEMBER_BYTES = 32 * 2**20
_TOTAL_BYTES = 128 * 2**20
_MEMBERS = 2000


@dataclass(frozen=True)
class Source:
    """A file to read, a short name for it, and a remark that the user should see.

    A downloaded file has the Hub commit that it is of, and is not the user's to mend: its faulty
    rows are dropped and counted.
    """

    path: Path
    label: str
    note: str = ""
    revision: str | None = None

    @property
    def is_downloaded(self) -> bool:
        """Tell whether the file is the Hub's."""
        return self.revision is not None


def training_source(spec: str) -> Source:
    """Return the preference file that `spec` names.

    `demo`: rows packaged with the program; `nli`: SimCSE's NLI triplets (275,601 rows) from the Hub
    or its cache; `auto`: `nli`, or `demo` with a note if the Hub cannot be reached; else a path
    (write `./demo` for a file of such a name).

    Raises:
        DataError: no such file, or the Hub cannot be reached or does not give it out.
        ResourceError: the cache cannot be written.
    """
    return _source(spec, "nli", "triplets.jsonl", lambda: _fetch(_NLI_FILE))


def dev_source(spec: str) -> Source:
    """Return the STS file that `spec` names.

    `demo`: pairs packaged with the program; `stsb`: the dev set of the STS Benchmark as SentEval
    has it, from the Hub or its cache; `auto`: `stsb`, or `demo` with a note if the Hub cannot be
    reached; else a path.

    Raises:
        DataError: no such file, or the Hub cannot be reached or does not give it out.
        ResourceError: the cache cannot be written.
    """
    return _source(spec, "stsb", "sts.tsv", _benchmark_dev)


def sts_root(spec: str) -> Path:
    """Return the folder of STS sets that `spec` names: a path, or `hub` for SentEval's data.

    Raises:
        DataError: no such folder, or the Hub cannot be reached or does not give it out.
        ResourceError: the cache cannot be written.
    """
    if spec == "hub":
        found = _senteval()
        if isinstance(found, Problem):
            raise DataError(found, state="nothing was started")
        return found
    folder = named_path(spec)
    if not folder.is_dir():
        fix = "give the folder of your STS sets, or `hub` to download SentEval's"
        raise DataError(Problem("no such folder", spec, fix=fix))
    return folder


def general_text(spec: str) -> Path:
    """Return the text file that `spec` names.

    `general`: a hundred passages of many kinds, packaged with the program; else a path (write
    `./general` for a file of such a name).

    Raises:
        DataError: no such file.
    """
    return _GENERAL_TEXT if spec == "general" else _local_file(spec, ("general",)).path


def _source(spec: str, hub: str, demo: str, find: Callable[[], Path | Problem]) -> Source:
    packaged = Source(_DEMO / demo, "demo")
    if spec == "demo":
        return packaged
    if spec not in (hub, "auto"):
        return _local_file(spec, ("auto", "demo", hub))
    found = find()
    if isinstance(found, Path):
        return Source(found, hub, revision=_commit(found))
    if spec == "auto":
        return replace(packaged, note=f"{found}; the few packaged demo rows stand in for it")
    offer = replace(found, fix=f"{found.fix} or `demo`")
    raise DataError(offer, state="nothing was started")


def _commit(path: Path) -> str:
    """Return the commit that a folder above the file is named after, as in the Hub's cache."""
    names = (each.name for each in path.parents)
    parents = (each.parent.name for each in path.parents)
    return next(
        name.removeprefix(_UNPACKED)
        for name, parent in zip(names, parents, strict=True)
        if name.startswith(_UNPACKED) or parent == "snapshots"
    )


def _local_file(spec: str, names: tuple[str, ...]) -> Source:
    path = named_path(spec)
    if path.is_dir():
        raise DataError(Problem("is a folder", spec, fix="name a file in it"))
    if not path.exists():
        close = get_close_matches(spec, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        fix = f"{hint}Give a path or one of: {', '.join(names)}"
        raise DataError(Problem("no such file", spec, fix=fix))
    return Source(path, path.name)


def _fetch(filename: str) -> Path | Problem:
    instead = "run `sempa-mlx data download`, or name a local path"
    return fetch_file(HUB_REPO, filename, instead=instead)


def _benchmark_dev() -> Path | Problem:
    root = _senteval()
    if isinstance(root, Problem):
        return root
    return root / "STS" / "STSBenchmark" / "sts-dev.csv"


def _senteval() -> Path | Problem:
    """Return the folder with SentEval's STS and SICK data, unpacked before or now."""
    home = cache_folder()
    unpacked = max(home.glob(f"{_UNPACKED}*"), key=lambda path: path.stat().st_mtime, default=None)
    if unpacked:
        return unpacked
    archive = _fetch(_SENTEVAL_FILE)
    if isinstance(archive, Problem):
        return archive
    # The cache keeps a file as snapshots/COMMIT/NAME.
    return _unpack(archive, home / f"{_UNPACKED}{archive.parent.name}")


def _unpack(archive: Path, target: Path) -> Path:
    """Unpack the wanted members of a tar into `target`: all of them, or nothing at all."""
    try:
        with staging(target.parent) as made, tarfile.open(archive, "r:") as tar:
            for member, name in _wanted(tar, archive):
                _write(tar, member, made / name)
            made.chmod(0o755)
            made.rename(target)
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        fix = f"delete {archive} and download it again"
        raise DataError(Problem(f"broken tar file: {error}", str(archive), fix=fix)) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room(_SENTEVAL_FILE, error) from error
        if not target.is_dir():  # else another process was quicker
            raise DataError(Problem(f"cannot be unpacked: {error}", str(archive))) from error
    return target


def _wanted(tar: tarfile.TarFile, archive: Path) -> list[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Return the text files of the STS and SICK folders and where to put them.

    Raises:
        DataError: a member of those folders is no plain file, points outside, stands twice or is
            too big, or there are none; nothing may be unpacked then.
    """
    chosen: dict[str, tuple[tarfile.TarInfo, PurePosixPath]] = {}
    problems = []
    for member in tar:
        path = PurePosixPath(member.name)
        top = next((each for each in ("STS", "SICK") if each in path.parts), None)
        if top is None or member.isdir():
            continue
        name = PurePosixPath(*path.parts[path.parts.index(top) :])
        wrong = _member_fault(member, path)
        if wrong or (name.suffix in (".txt", ".csv") and str(name).casefold() in chosen):
            problems.append(Problem(wrong or "stands twice", f"{archive}:{member.name}"))
        elif name.suffix in (".txt", ".csv"):
            chosen[str(name).casefold()] = (member, name)
    total = sum(member.size for member, _ in chosen.values())
    if total > _TOTAL_BYTES or len(chosen) > _MEMBERS or not chosen:
        what = f"{len(chosen):,} STS and SICK files of {total:,} bytes; this is not SentEval's data"
        problems.append(Problem(what, str(archive)))
    if problems:
        raise DataError(problems, state="nothing was unpacked")
    return list(chosen.values())


def _member_fault(member: tarfile.TarInfo, path: PurePosixPath) -> str:
    if path.is_absolute() or ".." in path.parts:
        return "points outside the folder"
    if not member.isreg():
        return "is a link or a device, not a plain file"
    return "" if 0 <= member.size <= _MEMBER_BYTES else f"is too big: {member.size:,} bytes"


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None, "a plain file has content"
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as sink:
        shutil.copyfileobj(source, sink)
