"""Runs the commands of a page of documentation, in order, with tiny models in place of large ones."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.command import run
from tests.test_docs import BLOCK, ROOT

# What stands in for what takes minutes, or needs the Hub: (words, instead). The first that fits.
SUBSTITUTES = (
    (("make", "demo"), ("sempa-mlx", "demo")),
    (("--data", "hub"), ("--data", "sts")),  # a folder of tiny STS sets
    (("eval", "tokens"), ("eval", "tokens", "--data", "sts")),
    (("eval", "frontier"), ("eval", "frontier", "--data", "demo", "--pairs", "20")),
    (("sempa-mlx", "serve"), ()),  # runs until it is stopped; tests/serve does it
)
# Commands of other programs, and what needs several processes (tests/test_distributed.py).
OTHERS = ("cd", "make", "mlx.launch", "python", "pip", "curl", "git")
__all__ = ["ROOT", "commands", "follow"]
PROGRAM = "sempa-mlx"


@dataclass(frozen=True)
class Command:
    """One sempa-mlx command of a page: its words, and files its streams are tied to."""

    line: str
    words: tuple[str, ...]
    stdin: str = ""
    stdout: str = ""


def commands(page):
    """Return the sempa-mlx commands of the page's shell blocks that are run, in order."""
    found = []
    for block in BLOCK.findall(Path(page).read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            command = _parsed(line)
            if command is not None:
                found.append(command)
    return found


def _parsed(line):
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>")
    lexer.whitespace_split = True
    words = list(lexer)
    for given, instead in SUBSTITUTES:
        for start in range(len(words)):
            if tuple(words[start : start + len(given)]) == given:
                words[start : start + len(given)] = instead
                break
    if not words:
        return None
    stdin = stdout = ""
    if words[0] == "cat":
        stdin, words = words[1], words[words.index("|") + 1 :]
    for sign in (">", "<"):
        if sign in words:
            place = words.index(sign)
            name = words[place + 1]
            stdin, stdout = (name, stdout) if sign == "<" else (stdin, name)
            del words[place : place + 2]
    if Path(words[0]).name in OTHERS:
        return None
    assert Path(words[0]).name == PROGRAM, f"no rule for `{line}`"
    return Command(line, tuple(words[1:]), stdin, stdout)


def follow(page):
    """Run the commands of a page where we are; each has to succeed."""
    for command in commands(page):
        stdin = Path(command.stdin).read_bytes() if command.stdin else b""
        outcome = run(*command.words, stdin=stdin)
        assert outcome.code == 0, f"{command.line}\n{outcome.err}"
        if command.stdout:
            Path(command.stdout).write_text(outcome.out, encoding="utf-8")
