"""Mutants of a module: its source with one small change each, as a careless hand would make it."""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.MatMult: ast.Add,
}
Change = Callable[[ast.AST], None]


@dataclass(frozen=True)
class Mutant:
    """One change: the line it is on, what it says, and the whole source with it."""

    line: int
    what: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """Return all mutants of a source, in order of their lines.

    Types, docstrings and the words of messages are left alone: no test should hang on them.
    """
    tree = ast.parse(source)
    found = []
    for index, node in enumerate(ast.walk(tree)):
        for what, change in _changes(node):
            twin = copy.deepcopy(tree)
            target = next(each for place, each in enumerate(ast.walk(twin)) if place == index)
            before = ast.unparse(target)
            change(target)
            after = ast.unparse(target)
            if (text := ast.unparse(twin)) != ast.unparse(tree):
                shown = what if "\n" in before else f"{before}  ->  {after or 'nothing'}"
                found.append(Mutant(getattr(node, "lineno", 0), shown, text))
    skipped = _untouched(tree)
    return sorted(
        (each for each in found if each.line not in skipped),
        key=lambda each: (each.line, each.what),
    )


def _untouched(tree: ast.Module) -> set[int]:
    """Return the lines of imports, of decorators, and of annotations."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.AnnAssign) and node.value is None:
            lines.add(node.lineno)
        if isinstance(node, ast.Assign) and "Literal" in ast.unparse(node.value):
            lines.add(node.lineno)
        for decorator in getattr(node, "decorator_list", ()):
            lines.add(decorator.lineno)
        for annotation in _annotations(node):
            if "|" in ast.unparse(annotation):
                lines.add(annotation.lineno)
    return lines


def _annotations(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.arg) and node.annotation:
        yield node.annotation
    if isinstance(node, ast.FunctionDef) and node.returns:
        yield node.returns


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    match node:
        case ast.If() | ast.IfExp() | ast.While():
            yield f"the condition `{ast.unparse(node.test)}` is turned round", _turn
        case ast.Expr(value=ast.Call()):
            yield "", _setting("value", ast.Constant(None))
        case ast.Continue() | ast.Break():
            other = ast.Break if isinstance(node, ast.Continue) else ast.Continue
            yield "", _setting("__class__", other)
        case ast.keyword(arg=str()) if not isinstance(node.value, ast.Constant):
            yield "", _setting("value", ast.Constant(None))
        case ast.UnaryOp(op=ast.Not()):
            yield "", _doubled
        case _:
            yield from _operator_changes(node)


def _operator_changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    match node:
        case ast.Compare(ops=[only]) if type(only) in COMPARISONS:
            yield "", _setting("ops", [COMPARISONS[type(only)]()])
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield "", _setting("op", OPERATORS[type(op)]())
        case ast.BoolOp(op=op):
            yield "", _setting("op", ast.And() if isinstance(op, ast.Or) else ast.Or())
        case ast.UnaryOp(op=ast.USub()):
            yield "", _setting("op", ast.UAdd())
        case ast.Constant(value=bool() as value):
            yield "", _setting("value", not value)
        case ast.Constant(value=int() | float() as number):
            yield "", _setting("value", number + 1)


def _setting(name: str, value: object) -> Change:
    return lambda node: setattr(node, name, value)


def _doubled(node: ast.AST) -> None:
    """Make `not x` `not not x`."""
    assert isinstance(node, ast.UnaryOp)
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _turn(node: ast.AST) -> None:
    assert isinstance(node, ast.If | ast.IfExp | ast.While)
    node.test = ast.UnaryOp(ast.Not(), node.test)
