"""Exports on the Hugging Face Hub: a repository, made if need be, and one upload of the folder.

The token is the one that `hf auth login` keeps, or HF_TOKEN; it is neither read nor shown here.
"""

import re
import shlex
from pathlib import Path
from typing import cast

from sempa_mlx import __version__
from sempa_mlx.errors import Problem, RunError, UsageError, without_secrets

_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<![.-])", re.ASCII)


def check_repo(repo: str) -> None:
    """Refuse a name that the Hub does not allow, before there is work in vain.

    Raises:
        UsageError: it is no `owner/name`.
    """
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo:
        what = f"--push: `{repo}` is no name of a repository"
        raise UsageError(Problem(what, fix="owner/name"), state="nothing was written")


def push(folder: Path, repo: str, *, is_private: bool) -> str:
    """Upload a folder as a model repository; return its address.

    Raises:
        RunError: the Hub cannot be reached or refuses, or the repository is public and should not
            be. The folder stays.
    """
    from huggingface_hub import HfApi, errors

    # The HTTP library under huggingface_hub changes its name with the version; its errors do not
    # all become OSErrors, but HfHubHTTPError inherits from their base.
    transport = cast("type[Exception]", errors.HfHubHTTPError.__bases__[0])
    api = HfApi(library_name="sempa-mlx", library_version=__version__)
    state = f"the export is whole in {folder}"
    upload = f"push it with: hf upload {repo} {shlex.quote(str(folder))}"
    if is_private:  # `hf upload --private` does not look whether a repository that is there is so
        upload = f"before you push it by hand, see that {repo} is private"
    try:
        address = str(api.create_repo(repo, private=is_private or None, exist_ok=True))
        if is_private and not api.model_info(repo).private:
            what = f"{repo} exists and is public"
            fix = "make it private there, or leave --private out"
            raise RunError(Problem(what, fix=fix), state=state)
        message = f"Upload what sempa-mlx {__version__} exported"
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    # RuntimeError: what the hf_xet transfer raises when the connection breaks.
    except (transport, OSError, RuntimeError, ValueError) as error:
        # Its text may hold a token.
        raise RunError(_problem(repo, error), state=f"{state}; {upload}") from None
    return address


def _problem(repo: str, error: Exception) -> Problem:
    status = getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__
    if status in (401, 403) or name == "LocalTokenNotFoundError":
        what = f"the Hub does not let you write to {repo}"
        fix = "run: hf auth login   (with a token that may write), or name your own account"
    else:
        what, fix = f"cannot push to {repo}", "try again when the Hub can be reached"
    lines = str(error).splitlines() or [""]
    return Problem(what, evidence=without_secrets(f"{name}: {lines[0]}")[:200], fix=fix)
