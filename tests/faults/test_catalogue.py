"""The catalogue is whole: each number has a test or a reason, each named test exists, each marked test is named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.catalogue import CATALOGUE

TESTS = Path(__file__).resolve().parents[1]
HERE = Path(__file__).parent
NUMBERS = [*range(1, 8), *range(10, 23), 25, 26, *range(30, 37), *range(40, 47), 50, 51, *range(60, 63)]


def test_every_number_of_the_catalogue_has_an_entry() -> None:
    assert list(CATALOGUE) == [f"F{number:02}" for number in NUMBERS]


@pytest.mark.parametrize("number", CATALOGUE)
def test_an_entry_names_tests_that_exist_or_says_why_there_is_none(number: str) -> None:
    entry = CATALOGUE[number]

    unknown = [test for test in entry.tests if test.partition("::")[2] not in _functions(test.partition("::")[0])]

    assert unknown == []
    assert entry.tests or entry.missing


def test_every_test_that_is_marked_with_a_number_is_named_under_it() -> None:
    forgotten = [
        (number, test) for number, test in _marked() if number not in CATALOGUE or test not in CATALOGUE[number].tests
    ]

    assert forgotten == []


def _functions(path: str) -> set[str]:
    return {node.name for node in _defined(TESTS / path)}


def _defined(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _marked() -> Iterator[tuple[str, str]]:
    for path in HERE.glob("test_*.py"):
        for function in _defined(path):
            for mark in function.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    for number in mark.args:
                        yield ast.literal_eval(number), f"faults/{path.name}::{function.name}"
