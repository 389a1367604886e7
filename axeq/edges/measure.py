"""Measures Python source with `ast`: the work of `axeq demo`. It knows its job, and nothing of queues or screens."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from axeq.documents.model import Model
from axeq.faces.context import Context

__all__ = ["KEPT", "Function", "Measure", "Measured", "measure_file", "measure_source"]

KEPT = 10
"""How many functions of a file are kept: enough for the longest of all files to be among them."""


class Function(BaseModel):
    """A function: its `name` with what it is defined in, its `lines` from `def` to its end, its complexity."""

    name: str
    lines: int
    complexity: int


class Measured(BaseModel):
    """What was found in a file: how many functions, the longest of them, and the highest complexity of all."""

    functions: int
    complexity: int
    longest: list[Function]


class Measure(Model[Measured], name="measure"):
    """The job: measure `file`, which is relative to `root`."""

    root: str
    file: str


def measure_file(ctx: Context[Measure, Measured]) -> Measured:
    """Measures one file. A file that does not parse fails the attempt with Python's own error."""
    return measure_source(Path(ctx.model.root, ctx.model.file).read_bytes(), ctx.model.file)


def measure_source(source: bytes, file: str = "<source>") -> Measured:
    """Returns the measures of a module's source. Raises `SyntaxError` where it is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the measured code's invalid escapes are not the demo's to report
        tree = ast.parse(source, file)
    functions = _functions(tree)
    return Measured(
        functions=len(functions),
        complexity=max((function.complexity for function in functions), default=0),
        longest=nlargest(KEPT, functions, key=lambda function: function.lines),
    )


@dataclass(slots=True)
class _Scope:
    """A module, class or function, and the decisions found in it so far."""

    node: ast.AST
    prefix: str = ""
    decisions: int = 0


def _functions(tree: ast.AST) -> list[Function]:
    scopes = [_Scope(tree)]
    waiting = [(tree, scopes[0])]
    while waiting:
        node, scope = waiting.pop()
        if count := _DECISIONS.get(type(node)):
            scope.decisions += count(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, _OPENING):
                inner = _Scope(child, f"{scope.prefix}{child.name}.")
                scopes.append(inner)
                waiting.append((child, inner))
            else:
                waiting.append((child, scope))
    return [_function(scope.node, scope) for scope in scopes if isinstance(scope.node, _DEFINITIONS)]


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, scope: _Scope) -> Function:
    last = node.end_lineno or node.lineno
    return Function(name=scope.prefix[:-1], lines=last - node.lineno + 1, complexity=1 + scope.decisions)


def _one(node: ast.AST) -> int:
    return 1


def _operands(node: ast.BoolOp) -> int:
    return len(node.values) - 1


def _loop_and_filters(node: ast.comprehension) -> int:
    return 1 + len(node.ifs)


def _unless_it_always_matches(node: ast.match_case) -> int:
    always = node.guard is None and isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None
    return 0 if always else 1


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_OPENING = (*_DEFINITIONS, ast.ClassDef)

_DECISIONS: dict[type[ast.AST], Callable[[Any], int]] = {
    ast.If: _one,
    ast.IfExp: _one,
    ast.For: _one,
    ast.AsyncFor: _one,
    ast.While: _one,
    ast.ExceptHandler: _one,
    ast.BoolOp: _operands,
    ast.comprehension: _loop_and_filters,
    ast.match_case: _unless_it_always_matches,
}
"""What adds to the cyclomatic complexity of the function, class or module that it stands in."""
