"""The shape of the house: who may import whom, who may print, how long things may be.

Data goes `data -> model -> training -> encoder -> evaluation -> export -> run -> report -> api ->
serve -> commands`, and an import may only point to the left along that line. This reads the source;
nothing is run.
"""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import sempa_mlx

pytestmark = pytest.mark.unmeasured

ROOT = Path(sempa_mlx.__file__).parent
LINE = [
    *("data", "model", "training", "encoder", "evaluation", "export", "run", "report"),
    *("api", "serve", "commands", "cli"),
]
LEAVES = {
    "",
    "errors",
    "disk",
    "memory",
    "blas",
    "malloc",
    "files",
    "config",
    "config_file",
    "config_faults",
    "config_notes",
    "config_recipes",
    "config_terms",
    "config_resolve",
}
APART = {"runtime", "world", "console"}  # with rules of their own
MODELS = {"mlx", "mlx_lm", "transformers", "tokenizers", "torch"}
HEAVY = {*MODELS, "scipy", "huggingface_hub"}
MAX_MODULE, MAX_FUNCTION = 300, 60


def part_of(module):
    """`sempa_mlx.data.readers` belongs to `data`, `sempa_mlx` itself to nothing."""
    part = module.removeprefix("sempa_mlx").removeprefix(".").partition(".")[0]
    return "cli" if part.startswith("cli_") or part == "__main__" else part


class Source:
    """One module of the package, parsed."""

    def __init__(self, path):
        relative = path.relative_to(ROOT.parent).with_suffix("")
        self.path = path
        self.name = ".".join(relative.parts).removesuffix(".__init__")
        self.part = part_of(self.name)
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)

    def at(self, node):
        return f"{self.name}:{node.lineno}"

    def imports(self, nodes=None):
        """Yield place and full name of everything imported, in functions too unless told where."""
        for node in ast.walk(self.tree) if nodes is None else nodes:
            if isinstance(node, ast.Import):
                yield from ((self.at(node), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.at(node)} imports relatively"
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield self.at(node), full if full in MODULES else node.module

    def foreign(self, packages, nodes=None):
        """List the places that import one of these packages."""
        imported = self.imports(nodes)
        return [f"{place} {name}" for place, name in imported if name.partition(".")[0] in packages]


PATHS = sorted(ROOT.rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in PATHS}
SOURCES = [Source(path) for path in PATHS]
LIGHT = [
    source
    for source in SOURCES
    if source.part in {"data", "console", *LEAVES} or source.name == "sempa_mlx.evaluation.stats"
]


def may_import(importer, imported):
    """Tell whether a module of part `importer` may import one of part `imported`."""
    if imported in LEAVES or importer == imported:
        return True
    if imported == "console":
        return importer in ("commands", "cli")
    if imported in ("runtime", "world"):
        return importer in LINE and importer != "data"
    if importer not in LINE:
        return False
    return LINE.index(imported) < LINE.index(importer)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("training", "model", True),
        ("model", "training", False),
        ("data", "runtime", False),
        ("config", "runtime", False),
        ("model", "runtime", True),
        ("encoder", "console", False),
        ("commands", "console", True),
        ("errors", "data", False),
        ("console", "data", False),
    ],
)
def test_the_rule_itself(importer, imported, allowed):
    assert may_import(importer, imported) is allowed


def test_every_part_has_its_place():
    """A new part must be put on the line before it can be used."""
    assert {source.part for source in SOURCES} == {*LINE, *LEAVES, *APART}


def test_imports_point_to_the_left():
    """But for the package itself, which lends its public names when they are asked for."""
    wrong = [
        f"{place} imports {name}"
        for source in SOURCES
        if source.name != "sempa_mlx"
        for place, name in source.imports()
        if name.partition(".")[0] == "sempa_mlx" and not may_import(source.part, part_of(name))
    ]
    assert wrong == []


def test_text_and_settings_know_nothing_of_models():
    """They start in no time: no mlx at all, and what else is heavy only inside functions."""
    assert len(LIGHT) > 12
    assert [place for s in LIGHT for place in s.foreign(MODELS)] == []
    assert [place for s in LIGHT for place in s.foreign(HEAVY, s.tree.body)] == []


def test_every_line_of_what_is_light_has_to_be_tested():
    """The Makefile's list is of the same modules."""
    (listed,) = re.findall(
        r"^LIGHT\s*:= (.*)$", (ROOT.parent / "Makefile").read_text(), re.MULTILINE
    )
    patterns = listed.split(",")
    names = {source.name: source.path.relative_to(ROOT.parent).as_posix() for source in SOURCES}
    covered = {name for name, path in names.items() if any(fnmatch(path, p) for p in patterns)}
    assert covered == {source.name for source in LIGHT}


def test_the_command_line_imports_work_only_when_it_is_asked_for():
    """What `--help` reads: console and errors, never a part that does something."""
    parts = [source for source in SOURCES if source.part == "cli"]
    assert len(parts) > 10
    imported = {name for cli in parts for _, name in cli.imports(cli.tree.body)}
    at_start = {name for name in imported if part_of(name) not in ("", "cli")}
    ours = {name for name in at_start if name.startswith("sempa_mlx.")}
    light = {"console", "errors", "disk", "memory", "commands.group"}
    assert ours == {f"sempa_mlx.{name}" for name in light}


def test_only_the_console_prints():
    others = [source for source in SOURCES if source.part != "console"]
    assert [place for source in others for place in source.foreign({"rich"})] == []
    calls = [
        f"{source.at(node)} {ast.unparse(node.func)}"
        for source in others
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
    ]
    printing = ("print", "pprint", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr")
    assert [call for call in calls if call.split(" ")[1].startswith(printing)] == []


def test_standard_output_is_handed_on_by_two_modules_alone():
    """`embed -` gives it to the store as a stream; the boundary opens and closes it."""
    streams = {
        (source.name, node.attr)
        for source in SOURCES
        if source.part != "console"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.stdout", "sys.stderr"}
    }
    boundary = {("sempa_mlx.cli_boundary", name) for name in ("stdout", "stderr")}
    assert streams == {("sempa_mlx.commands.embed", "stdout")} | boundary


def test_modules_are_short():
    lengths = {source.name: len(source.text.splitlines()) for source in SOURCES}
    assert {name: length for name, length in lengths.items() if length >= MAX_MODULE} == {}


def test_functions_are_short():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {
        source.at(node): node.end_lineno - node.lineno + 1
        for source in SOURCES
        for node in ast.walk(source.tree)
        if isinstance(node, kinds)
    }
    assert {place: length for place, length in lengths.items() if length >= MAX_FUNCTION} == {}


def test_no_error_is_swallowed_whole():
    """Only the boundary may catch everything, and a thread that hands it to the one that waits."""
    caught = [
        (source.name, ast.unparse(node.type) if node.type else "everything")
        for source in SOURCES
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler)
    ]
    everything = {"everything", "Exception", "BaseException"}
    catching = [name for name, kind in caught if kind in everything]
    assert catching == ["sempa_mlx.cli_boundary", "sempa_mlx.model.fused"]


def test_nothing_is_pickled():
    packages = {"pickle", "dill", "joblib", "shelve", "marshal"}
    assert [place for source in SOURCES for place in source.foreign(packages)] == []
    assert [source.name for source in SOURCES if "allow_pickle=True" in source.text] == []
