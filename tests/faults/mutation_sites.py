"""Small mistakes in a module, one at a time: every place where one can be made, and the source with it made."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants", "without_key"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one mistake in it."""

    module: str
    line: int
    mistake: str
    source: str

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line} {self.mistake}"


Change = tuple[str, Callable[[ast.AST], ast.AST]]
"""What is done to a node, and how; a new node comes back."""

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
}
_OTHER_NAMES = {
    "earliest": "latest",
    "latest": "earliest",
    "ENQUEUED": "FAILED",
    "DEQUEUED": "ENQUEUED",
    "FAILED": "DEQUEUED",
    "COMPLETED": "CANCELLED",
    "CANCELLED": "COMPLETED",
    "cancelled_retention": "retention",
    "retention": "cancelled_retention",
}


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """Yields every mutant of a module."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    for place, node in enumerate(nodes):
        for mistake, change in _changes(node):
            changed = copy.deepcopy(tree)
            _replace(changed, place, change)
            yield Mutant(module, getattr(node, "lineno", 0), mistake, ast.unparse(ast.fix_missing_locations(changed)))


def without_key(source: str, key: str) -> str:
    """Returns a module in which no literal document says `key`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            kept = [each for each in zip(node.keys, node.values, strict=True) if not _is_text(each[0], key)]
            node.keys, node.values = [each[0] for each in kept], [each[1] for each in kept]
    return ast.unparse(tree)


def _is_text(node: ast.AST | None, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text


def _changes(node: ast.AST) -> Iterator[Change]:
    match node:
        case ast.Dict():
            for position, key in enumerate(node.keys):
                shown = "**" if key is None else ast.unparse(key)
                yield f"without {shown}: {ast.unparse(node.values[position])[:40]}", _without(position)
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARISONS:
            other = _COMPARISONS[type(operator)]
            yield f"{ast.unparse(node)} with {other.__name__}", lambda it: _with(it, ops=[other()])
        case ast.BoolOp():
            other_way = ast.Or if isinstance(node.op, ast.And) else ast.And
            yield f"{ast.unparse(node)} with {other_way.__name__}", lambda it: _with(it, op=other_way())
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            reverse = _ARITHMETIC[type(node.op)]
            yield f"{ast.unparse(node)} with {reverse.__name__}", lambda it: _with(it, op=reverse())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield f"{ast.unparse(node)} without its sign", lambda it: it.operand  # type: ignore[attr-defined]
        case ast.IfExp():
            yield f"{ast.unparse(node)} the other way", lambda it: _with(it, body=it.orelse, orelse=it.body)  # type: ignore[attr-defined]
        case ast.Attribute() if node.attr in _OTHER_NAMES:
            yield (
                f"{ast.unparse(node)} as {_OTHER_NAMES[node.attr]}",
                lambda it: _with(it, attr=_OTHER_NAMES[node.attr]),
            )
        case ast.Raise():
            yield f"without {ast.unparse(node)}", lambda it: ast.Pass()
        case ast.Constant(value=0 | 1) if not isinstance(node.value, bool | float):
            yield f"{node.value} as {node.value + 1}", lambda it: ast.Constant(node.value + 1)


def _without(position: int) -> Callable[[ast.AST], ast.AST]:
    def change(it: ast.AST) -> ast.AST:
        assert isinstance(it, ast.Dict)
        del it.keys[position]
        del it.values[position]
        return it

    return change


def _with(node: ast.AST, **fields: object) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _replace(tree: ast.AST, place: int, change: Callable[[ast.AST], ast.AST]) -> None:
    """Changes the node at a place of the walk. A mistake's node is copied with its tree, and keeps its place."""
    target = list(ast.walk(tree))[place]
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, change(target))
                return
            if isinstance(value, list) and any(item is target for item in value):
                value[next(index for index, item in enumerate(value) if item is target)] = change(target)
                return
    raise AssertionError(f"no node at {place}")
