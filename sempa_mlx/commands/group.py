"""The group of all commands: typer's, but for a closed pipe."""

from typing import Any

from typer.core import TyperGroup


class ReaderGoneError(Exception):
    """Whoever reads our output has closed it."""


class Commands(TyperGroup):
    """Lets `main` see a closed pipe, which typer would turn into exit code 1."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer keeps the types to itself
        """Run the command that the line names.

        Raises:
            ReaderGoneError: the reader of our output has gone, such as `head`.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error
