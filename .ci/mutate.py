"""Try whether the tests notice small changes of the code.

    python .ci/mutate.py [FILE ...] [--sample 40] [--list] [--out mutants.json]

Each file has the tests that concern it in `[tool.mutation]` of pyproject.toml. A process is forked
for each mutant after the heavy imports and before MLX has done anything: what MLX starts does not
survive a fork, which is why mutmut cannot be used. Ends with 1 if too few mutants are noticed.
"""

import argparse
import ast
import importlib
import json
import os
import random
import signal
import sys
import time
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutations import Mutant, mutants

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("sempa_mlx", "mlx_lm.models.llama", "mlx_lm.tokenizer_utils", "hypothesis", "scipy.stats")
PASSED, FAILED = 0, 1  # pytest's exit codes
SEED = 0


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutation"]
    files: dict[str, list[str]] = settings["files"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="files of the table; all by default")
    parser.add_argument("--sample", type=int, default=settings["sample"], help="mutants a file")
    parser.add_argument("--list", action="store_true", help="show the mutants, run nothing")
    parser.add_argument("--out", type=Path, help="write what came of each as JSON")
    asked = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    chosen = {name: _sample(name, asked.sample) for name in asked.files or files}
    if asked.list:
        for name, (some, _) in chosen.items():
            sys.stdout.writelines(f"{name}:{each.line}  {each.what}\n" for each in some)
        return 0
    for name in HEAVY:
        importlib.import_module(name)
    rows = [_try_file(name, files[name], *chosen[name]) for name in chosen]
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1) + "\n")
    killed, tried = (sum(row[key] for row in rows) for key in ("killed", "tried"))
    _say(f"{killed} of {tried} mutants were noticed ({killed / tried:.0%})")
    return int(killed < settings["floor"] * tried)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _sample(name: str, most: int) -> tuple[list[Mutant], int]:
    """Return at most so many mutants of a file, the same ones each time, and how many it has."""
    every = mutants((ROOT / name).read_text())
    chosen = random.Random(f"{SEED} {name}").sample(range(len(every)), min(most, len(every)))
    return [every[index] for index in sorted(chosen)], len(every)


def _try_file(name: str, tests: list[str], some: list[Mutant], total: int) -> dict[str, object]:
    began = time.monotonic()
    plain = ast.unparse(ast.parse((ROOT / name).read_text()))
    if _run(name, plain, tests, seconds=900) != PASSED:
        raise SystemExit(f"error: {name}: the tests fail without any change")
    seconds = 20 + 4 * (time.monotonic() - began)
    survivors = []
    for number, mutant in enumerate(some, 1):
        code = _run(name, mutant.source, tests, seconds)
        if code == PASSED:
            survivors.append({"line": mutant.line, "what": mutant.what})
        outcome = {PASSED: "SURVIVED", FAILED: "killed", None: "killed (time)"}.get(code, "killed")
        _say(f"{name} {number}/{len(some)} line {mutant.line}: {outcome}  {mutant.what}")
    killed = len(some) - len(survivors)
    _say(f"{name}: {killed} of {len(some)} noticed, {total} in all")
    found = {"file": name, "mutants": total, "tried": len(some), "killed": killed}
    return {**found, "survivors": survivors}


def _run(name: str, source: str, tests: list[str], seconds: float) -> int | None:
    """Run tests over a changed module in a process of their own; None if they do not end."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os._exit(_in_child(name, source, tests))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _in_child(name: str, source: str, tests: list[str]) -> int:
    path = str(ROOT / name)
    plain = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, fullname: str) -> object:
        if loader.path == path:
            return compile(source, path, "exec")
        return plain(loader, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    pytest = importlib.import_module("pytest")
    # Plugins that were imported before the fork are not rewritten; nothing hangs on that.
    options = (
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    )
    return int(pytest.main([*options, *tests]))


if __name__ == "__main__":
    sys.exit(main())
