"""Everything the user sees: the only module that prints.

Results go to stdout, talk to stderr. Three modes: `human`; `json`, one document on stdout; `quiet`,
the bare result. Data is never read as markup.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console as RichConsole
from rich.text import Text

from sempa_mlx.errors import SempaError

if TYPE_CHECKING:
    from rich.progress import Progress

Mode = Literal["human", "json", "quiet"]
PLAIN_EVERY_SECONDS = 10.0


def fitting(facts: Sequence[str], room: int) -> str:
    """Join the first facts that fit into `room` columns, two blanks between them."""
    line = ""
    for fact in facts:
        longer = f"{line}  {fact}" if line else fact
        if len(longer) > room:
            break
        line = longer
    return line


# Of data, which could move the cursor, recolour or retitle a terminal; shown as `\x1b`.
_CONTROL = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"
}


def visible(text: str) -> str:
    """Return a text whose control characters are spelled out."""
    return text.translate(_CONTROL)


class _Rich(RichConsole):
    """Rich's console; data is neither markup nor emoji codes, a closed pipe the caller's matter."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - as rich has it
        """Print; of plain text the control characters are spelled out.

        Into a file or pipe plain text goes as it is: rich would make blanks of its tabs.
        """
        shown = [visible(each) if isinstance(each, str) else each for each in objects]
        if self.is_terminal or self.quiet or not all(isinstance(each, str) for each in shown):
            super().print(*shown, **options)
        else:
            self.file.write(" ".join(shown) + "\n")
            self.file.flush()

    def on_broken_pipe(self) -> None:
        """Pass the error on; rich would exit with code 1."""
        raise BrokenPipeError


class Console:
    """Prints in one mode."""

    def __init__(self, mode: Mode = "human") -> None:
        """Look at the streams: colour and bars only on a terminal."""
        self.mode = mode
        self._out = _Rich()
        self._err = _Rich(stderr=True)

    @property
    def is_live(self) -> bool:
        """Tell whether a bar can be drawn."""
        return self.mode == "human" and self._err.is_terminal

    def mute(self) -> None:
        """Print nothing but errors from now on: another process does the talking."""
        self.mode = "quiet"
        self._out.quiet = True

    def say(self, text: str = "") -> None:
        """Talk: to stderr, in human mode only."""
        if self.mode == "human":
            self._err.print(text)

    def heading(self, text: str) -> None:
        """Announce a stage of longer work."""
        if self.mode == "human":
            self._err.print(Text(f"\n{text}", style="bold"))

    def warn(self, text: str) -> None:
        """Warn on stderr, in every mode."""
        self._err.print(Text.assemble(("warning: ", "yellow"), visible(text)))

    def facts(self, facts: dict[str, str]) -> None:
        """Print named facts, aligned, as talk."""
        width = max(map(len, facts))
        for name, value in facts.items():
            self.say(f"  {name.ljust(width)}  {value}")

    def result(self, text: str) -> None:
        """Print a result on stdout, in human and quiet mode."""
        if self.mode != "json":
            self._out.print(text)

    def document(self, document: Any) -> None:  # noqa: ANN401 - any JSON value
        """Print a JSON document on stdout, in JSON mode."""
        if self.mode == "json":
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
    ) -> None:
        """Print a result table on stdout: first column to the left, the others to the right."""
        if self.mode == "json":
            return
        self._out.print(f"\n{title}\n")
        widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
        if self._out.is_terminal and sum(widths) + 2 * len(widths) > self._out.width:
            self._stack(columns, rows)
        else:
            for row in (columns, ["-" * width for width in widths], *rows):
                first, *others = zip(row, widths, strict=True)
                cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
                self._out.print("  ".join(cells).rstrip())
        if note:
            self._out.print(f"\n{note}")

    def _stack(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table that is wider than the terminal as one block a row."""
        width = max(map(len, columns[1:]))
        for row in rows:
            self._out.print(row[0])
            for name, cell in zip(columns[1:], row[1:], strict=True):
                self._out.print(f"  {name.ljust(width)}  {cell}")

    @contextmanager
    def working(self, label: str) -> Iterator[None]:
        """Show that something without steps goes on, such as loading a model."""
        if self.is_live:
            with self._err.status(Text(label)):
                yield
        else:
            self.say(label)
            yield

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Show counted work; yields a function that takes how many items more are done."""
        if self.mode != "human":
            yield lambda _count: None
        elif self.is_live:
            with self._bar() as bar:
                task = bar.add_task(label, total=total, facts="")
                started = time.perf_counter()

                def advance(count: int) -> None:
                    bar.advance(task, count)
                    rate = bar.tasks[task].completed / (time.perf_counter() - started)
                    bar.update(task, facts=f"{rate:.0f} {unit}/s")

                yield advance
        else:
            yield self._plain_progress(label, total, unit)

    def _bar(self) -> "Progress":
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self._err,
            transient=True,
        )

    def _plain_progress(self, label: str, total: int | None, unit: str) -> Callable[[int], None]:
        """Return a counter that prints one line every few seconds."""
        started = last = time.perf_counter()
        done = 0

        def advance(count: int) -> None:
            nonlocal last, done
            done += count
            now = time.perf_counter()
            if now - last >= PLAIN_EVERY_SECONDS:
                last = now
                goal = f"/{total}" if total else ""
                self.say(f"{label}: {done}{goal} {unit}, {done / (now - started):.0f} {unit}/s")

        return advance

    @contextmanager
    def steps(self, total: int) -> Iterator[Callable[[int, Sequence[str]], None]]:
        """Show a training run; yields a function of (steps done, facts, most important first)."""
        if self.is_live:
            from rich.progress import Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("step {task.completed}/{task.total}", markup=False),
                TextColumn("{task.fields[facts]}", markup=False),
                TimeRemainingColumn(compact=True),
            )
            with Progress(*columns, console=self._err, transient=True) as bar:
                task = bar.add_task("", total=total, facts="")
                room = self._err.width - len(f"step {total}/{total}") - len(" 0:00:00") - 1

                def draw(step: int, facts: Sequence[str]) -> None:
                    bar.update(task, completed=step, facts=fitting(facts, room))

                yield draw
            return
        last = time.perf_counter()

        def show(step: int, facts: Sequence[str]) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last >= PLAIN_EVERY_SECONDS or step == total:
                last = now
                self.say(f"step {step}/{total}  {'  '.join(facts)}")

        yield show

    def error(self, error: SempaError) -> None:
        """Print every problem of an error: place and cause, evidence, fix, and the state left."""
        if self.mode == "json":
            problems = [
                {"what": p.what, "place": p.place, "evidence": p.evidence, "fix": p.fix}
                for p in error.problems
            ]
            self.document(
                {"error": {"problems": problems, "state": error.state, "code": error.exit_code}}
            )
            return
        for problem in error.problems:
            self._err.print(Text.assemble(("error: ", "bold red"), visible(str(problem))))
            for line in (problem.evidence, problem.fix):
                if line:
                    self._err.print(line if line.startswith(" ") else f"  {line}")
        count = f"{len(error.problems)} problems; " if len(error.problems) > 1 else ""
        if error.state or count:
            self._err.print(f"{count}{error.state}".removesuffix("; "))
