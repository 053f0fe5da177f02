"""The one way to data sets on the Hugging Face Hub: from its cache, else asked once, then fetched.

Out of reach is a `Problem`, for a caller may have another way; a refusal or a full disk is raised.
"""

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from sempa_mlx.errors import DataError, Problem, ResourceError, without_secrets

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

_PROBE_SECONDS = 5.0


def fetch_file(repo: str, filename: str, *, instead: str) -> Path | Problem:
    """Return a file of a data set from the cache or the Hub; a Problem if out of reach.

    Args:
        repo: owner/name of the data set.
        filename: path within it.
        instead: what else the user may do when the Hub cannot be reached.

    Raises:
        DataError: the Hub does not give it out.
        ResourceError: the cache cannot be written.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    def download(*, local: bool = False) -> Path:
        # The commit is not chosen here; it is in the path, and from there in a run's results.
        found = hf_hub_download(  # nosec B615
            repo, filename, repo_type="dataset", local_files_only=local
        )
        return Path(found)

    def fetch() -> Path:
        with suppress(errors.LocalEntryNotFoundError):
            return download(local=True)
        # Without a connection hf_hub_download tries again for minutes; this asks once.
        url = hf_hub_url(repo, filename, repo_type="dataset")
        get_hf_file_metadata(url, timeout=_PROBE_SECONDS)
        return download()

    return _reached(repo, filename, instead, fetch)


def cached_snapshot(repo: str, revision: str) -> Path | None:
    """Return the folder of a revision in the cache, which may hold but some files, or None."""
    from huggingface_hub import errors, snapshot_download

    try:
        found = snapshot_download(
            repo, repo_type="dataset", revision=revision, local_files_only=True
        )
        return Path(found)
    except errors.LocalEntryNotFoundError as error:
        return partial_snapshot(error)


def partial_snapshot(error: Exception) -> Path | None:
    """Return the folder that an error of a snapshot found in the cache, or None.

    Newer versions remember all files of a revision, and miss those that nobody asked for.
    """
    found = getattr(error, "snapshot_path", None)
    return None if found is None else Path(found)


def fetch_snapshot(
    repo: str,
    revision: str,
    what: str,
    choose: Callable[[Sequence[str]], Sequence[str]],
    *,
    instead: str,
) -> Path | Problem:
    """Fetch files of a revision and return its folder in the cache; a Problem if out of reach.

    Args:
        repo: owner/name of the data set.
        revision: commit to read.
        what: name of the files for messages.
        choose: takes the paths of all files, returns those to fetch.
        instead: what else the user may do when the Hub cannot be reached.

    Raises:
        DataError: the Hub does not give it out; or what `choose` raises.
        ResourceError: the cache cannot be written.
    """
    from huggingface_hub import dataset_info, snapshot_download

    def fetch() -> Path:
        info = dataset_info(repo, revision=revision, timeout=_PROBE_SECONDS)
        names = choose([each.rfilename for each in info.siblings or ()])
        folder = snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=list(names)
        )
        return Path(folder)

    return _reached(repo, what, instead, fetch)


def broken_connections() -> tuple[type[Exception], ...]:
    """Return the errors of a connection that breaks; not all of them are OSErrors."""
    from huggingface_hub import errors

    # The HTTP library under huggingface_hub changes its name with the version; HfHubHTTPError
    # inherits from the base of its errors. RuntimeError: what the hf_xet transfer raises.
    return (cast("type[Exception]", errors.HfHubHTTPError.__bases__[0]), OSError, RuntimeError)


def no_room(what: str, error: OSError) -> ResourceError:
    """Return the error of a cache that is full or may not be written to."""
    fix = "free some space, or set HF_HOME to a folder that can be written"
    place = str(error.filename or "")
    return ResourceError(Problem(f"cannot store {what}: {error.strerror}", place, fix=fix))


def _reached(repo: str, what: str, instead: str, fetch: Callable[[], Path]) -> Path | Problem:
    from huggingface_hub import errors

    try:
        return fetch()
    except errors.LocalEntryNotFoundError as error:
        return _out_of_reach(what, instead, error)
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.EntryNotFoundError,
    ) as error:
        raise DataError(_refused(repo, what, error), state="nothing was started") from error
    except broken_connections() as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise no_room(what, error) from error
        return _out_of_reach(what, instead, error)


def _out_of_reach(what: str, instead: str, error: Exception) -> Problem:
    from huggingface_hub import constants

    step = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "go online"
    return Problem(
        f"the Hugging Face Hub cannot be reached and {what} is not in the cache",
        evidence=_first_line(error),
        fix=f"{step} and {instead}",
    )


def _refused(repo: str, what: str, error: Exception) -> Problem:
    return Problem(
        f"the Hub does not give out {what} of the data set {repo}",
        evidence=_first_line(error),
        fix=f"look at https://huggingface.co/datasets/{repo}; if it asks for an account, "
        "run `hf auth login`; or name a local path",
    )


def _first_line(error: Exception) -> str:
    return without_secrets(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
