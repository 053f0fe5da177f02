"""The group of all commands: typer's, but for error panels, a closed pipe and the order of help."""

import difflib
import re
from typing import Any

from typer.core import TyperGroup

from sempa_mlx.errors import Problem, UsageError

FIRST = ("demo", "train", "embed", "search", "paraphrase", "eval", "report", "export", "serve")


class ReaderGoneError(Exception):
    """Whoever reads our output has closed it."""


class Commands(TyperGroup):
    """Lets `main` see what typer would print itself, or turn into another exit code."""

    def main(self, *args: Any, **options: Any) -> int:  # noqa: ANN401 - as typer has it
        """Parse the line, run its command, and return the command's code; errors pass."""
        code = super().main(*args, **options | {"standalone_mode": False})
        return code if isinstance(code, int) else 0

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer keeps the types to itself
        """Name the commands in the order in which a user meets them."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer keeps the types to itself
        """Run the command that the line names.

        Raises:
            ReaderGoneError: the reader of our output has gone, such as `head`.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error


def usage_error(error: Any) -> UsageError | None:  # noqa: ANN401 - typer keeps the type to itself
    """Return what typer says about a line, with the closest match; None for other errors."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    command = context.command if context else None
    what, close = error.format_message(), ""
    if name := getattr(error, "option_name", ""):
        what = what.partition(" (Possible")[0]
        options = [opt for each in command.params for opt in each.opts] if command else []
        close = next(iter(difflib.get_close_matches(name, options, n=1, cutoff=0.7)), "")
    elif guess := re.search(r"\.? Did you mean '?(.+?)'?\?", what):
        what, close = what[: guess.start()], guess[1]
    what = re.sub(
        r"Value error, |Input (?=should)|, unable to parse.*|\.$", "", " ".join(what.split())
    )
    hint = f"did you mean `{close}`? " if close else ""
    if context and isinstance(command, TyperGroup):
        hint += f"commands: {', '.join(command.list_commands(context))}; "
    fix = f"{hint}see {context.command_path if context else 'sempa-mlx'} --help"
    return UsageError(Problem(what[:1].lower() + what[1:], fix=fix), state="nothing was started")


def help_of_group(error: Any) -> str | None:  # noqa: ANN401 - likewise
    """Return the help of a group of commands if the line ends with its name, else None.

    Where there is rich, typer prints the help itself, and the text is empty.
    """
    command = getattr(getattr(error, "ctx", None), "command", None)
    if not hasattr(command, "commands") or "Missing command" not in str(error):
        return None
    return str(error.ctx.get_help())
