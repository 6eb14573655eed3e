"""Mutants of a source file: copies that differ in one place, which the tests ought to notice."""

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

OPERATORS: dict[Any, Any] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Pow: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}
TURNED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
DROPPED_CALLS = ("swapaxes", "transpose", "copy")  # x.copy() becomes x
SKIPPED = {"annotation", "returns", "decorator_list", "bases"}  # and messages: see `places`


class Mutant(NamedTuple):
    """One change: in a file's tree, `new` in place of `old`, which is where (parent, field, index) says."""

    path: Path
    tree: ast.Module
    place: tuple[ast.AST, str, int | None]
    old: Any
    new: ast.AST

    line = property(lambda self: self.old.lineno)

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {short(self.old)} → {short(self.new)}"

    def changed(self) -> ast.Module:
        """The changed tree, a copy."""
        put(*self.place, self.new)
        tree = ast.fix_missing_locations(copy.deepcopy(self.tree))
        put(*self.place, self.old)
        return tree


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for *place, node in places(tree):
        for new in replacements(node):
            if not hasattr(new, "lineno"):  # a part of the old node has its own
                ast.copy_location(new, node)
            yield Mutant(path, tree, tuple(place), node, new)


def short(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()[0]
    return text if len(text) <= 100 else text[:97] + "…"


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, Any]]:
    """(parent, field, index, node) for every node whose change a test could see: no annotations, no messages."""
    for field, value in ast.iter_fields(node):
        if field in SKIPPED:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            only_text = isinstance(child, (ast.JoinedStr, ast.Import, ast.ImportFrom))
            only_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not isinstance(child, ast.AST) or only_text or only_types:
                continue
            if isinstance(child, (ast.expr, ast.stmt, ast.keyword)):
                yield node, field, index, child
            if not isinstance(child, ast.Raise):
                yield from places(child)


def replacements(node: Any) -> Iterator[ast.AST]:
    """What a mutant may have in place of this node."""
    match node:
        case ast.BinOp(left, op, right):
            yield ast.BinOp(left, OPERATORS[type(op)](), right) if type(op) in OPERATORS else ast.BinOp(right, op, left)
            yield left
            if not isinstance(op, (ast.Sub, ast.Div, ast.FloorDiv, ast.Pow, ast.Mod)):
                yield right
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert(), operand):
            yield operand
        case ast.Compare(left, [op], right):
            yield ast.Compare(left, [OPERATORS[type(op)]()], right)
            if type(op) in TURNED:
                yield ast.Compare(left, [TURNED[type(op)]()], right)
        case ast.Compare(left, [first, *others], right):
            yield ast.Compare(left, [OPERATORS[type(first)](), *others], right)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(OPERATORS[type(op)](), values)
            for i in range(len(values)):
                others = values[:i] + values[i + 1 :]
                yield ast.BoolOp(op, others) if len(others) > 1 else others[0]
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(float() as value):
            yield ast.Constant(value * 1.01 if value else 1.0)
        case ast.Attribute(value, "T", ast.Load()):
            yield value
        case ast.Call(ast.Attribute(value, name)) if name in DROPPED_CALLS:
            yield value
        case ast.keyword("axis", ast.UnaryOp(ast.USub(), ast.Constant(1))):
            yield ast.keyword("axis", ast.Constant(0))
        case ast.IfExp(_, body, orelse):
            yield body
            yield orelse
        case ast.If(_, body, orelse):
            yield ast.If(ast.Constant(True), body, orelse)
            yield ast.If(ast.Constant(False), body, orelse)
        case ast.AugAssign(target, op, value):
            yield ast.Assign([target], value)
            yield ast.AugAssign(target, OPERATORS[type(op)](), value)
            yield ast.Pass()
        case ast.Expr(value) if not isinstance(value, (ast.Constant, ast.Yield, ast.YieldFrom)):
            yield ast.Pass()
        case ast.Assign(targets) if not isinstance(targets[0], ast.Name):  # without a name all that uses it fails
            yield ast.Pass()
        case ast.Raise():
            yield ast.Pass()
