"""docs/features.md as data: its rows, and the tests that they name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from axeq.wire.capabilities import Capabilities
from tests.support.kinds import KINDS, why_not

__all__ = ["LATER", "OPEN", "Row", "named_tests", "never_runs", "rows"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "features.md"

LATER = ("web pages and HTTP handlers", "OpenTelemetry", "cron and misfire policies")
"""The topics that a row may be left to."""

OPEN: tuple[str, ...] = ()
"""Features under way, whose rows say `open: ` and one of these. To be empty."""

_ABLE = Capabilities(streams=True, transactions=True, clock=True, freed_labels=True, version="able")


@dataclass(frozen=True)
class Row:
    """One feature: its name there, what axeq has for it, and what shows it: tests, a later topic, or an open one."""

    section: str
    there: str
    here: str
    shown: str

    @property
    def tests(self) -> list[str]:
        """The tests that it names, as `file::name`."""
        return re.findall(r"`(tests/[\w/]+\.py::\w+)`", self.shown)

    @property
    def later(self) -> str | None:
        """The topic that it is left to."""
        found = re.fullmatch(r"later: (.+)", self.shown)
        return found[1] if found else None

    @property
    def open(self) -> str | None:
        """The feature under way that is to show it."""
        found = re.fullmatch(r"open: (.+)", self.shown)
        return found[1] if found else None


def rows(text: str | None = None) -> list[Row]:
    """Returns the rows of the page's tables, or of `text`."""
    found: list[Row] = []
    section = ""
    for line in (PAGE.read_text() if text is None else text).splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and section and cells[0] != "there" and not set(cells[0]) <= set("-: "):
            found.append(Row(section, *cells))
    return found


def named_tests() -> set[str]:
    """Returns every test that the page names."""
    return {test for row in rows() for test in row.tests}


def never_runs(test: str) -> str | None:
    """Returns why a named test cannot run on any kind of store, or that it does not exist; None where it can."""
    path, _, name = test.partition("::")
    if not (ROOT / path).is_file():
        return f"there is no {path}"
    functions = _functions(path)
    if name not in functions:
        return f"{path} has no {name}"
    marks = [*_module_marks(path), *functions[name].decorator_list]
    if any(_mark(mark)[0] == "skip" for mark in marks):
        return "it is marked to be skipped"
    needs = [need for mark in marks if _mark(mark)[0] == "needs" for need in _mark(mark)[1]]
    reasons = [reasons_of_kind for kind in _kinds(marks) if (reasons_of_kind := _reasons(kind, needs))]
    return None if len(reasons) < len(list(_kinds(marks))) else f"no kind of store has it run: {reasons[0]}"


def _reasons(kind: str, needs: Sequence[str]) -> str | None:
    return next((reason for need in needs if (reason := why_not(kind, need, _ABLE))), None)


def _kinds(marks: Sequence[ast.expr]) -> Sequence[str]:
    """Returns the kinds that a test, or else its module, is parametrized with, all of them by default."""
    for mark in reversed(marks):
        if _mark(mark)[0] == "kinds":
            return _mark(mark)[1]
        if isinstance(mark, ast.Call) and _mark(mark)[0] == "parametrize" and _mark(mark)[1][:1] == ["kind"]:
            try:
                return [str(kind) for kind in ast.literal_eval(mark.args[1])]
            except ValueError:
                return KINDS
    return KINDS


def _mark(node: ast.expr) -> tuple[str, list[str]]:
    """Returns the name of a `pytest.mark` and its arguments that are text."""
    call, arguments = (node.func, node.args) if isinstance(node, ast.Call) else (node, [])
    texts = [each.value for each in arguments if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return (call.attr if isinstance(call, ast.Attribute) else ""), texts


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


@cache
def _functions(path: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    return {node.name: node for node in _tree(path).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@cache
def _module_marks(path: str) -> list[ast.expr]:
    return list(_marks_of(_tree(path)))


def _marks_of(tree: ast.Module) -> Iterator[ast.expr]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets
        ):
            yield from node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
