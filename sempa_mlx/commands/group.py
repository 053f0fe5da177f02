"""The group of all commands: typer's, but for a closed pipe and the order in the help."""

from typing import Any

from typer.core import TyperGroup

FIRST = ("demo", "train", "embed", "search", "paraphrase", "eval", "report", "export", "serve")


class ReaderGoneError(Exception):
    """Whoever reads our output has closed it."""


class Commands(TyperGroup):
    """Lets `main` see a closed pipe, which typer would turn into exit code 1."""

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
