"""The catalogue is whole: each number has a test or a reason, each named test exists, each marked test is named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import page
from tests.faults.catalogue import CATALOGUE, Entry
from tests.faults.catalogue_table import PART, REPORT, render

TESTS = Path(__file__).resolve().parents[1]
HERE = Path(__file__).parent
NUMBERS = [*range(1, 8), *range(10, 23), 25, 26, *range(30, 37), *range(40, 47), 50, 51, *range(60, 63)]
CHECKS = range(1, 7)


def test_every_number_of_the_catalogue_has_an_entry() -> None:
    numbers = [*(f"F{number:02}" for number in NUMBERS), *(f"M{number}" for number in CHECKS)]

    assert list(CATALOGUE) == numbers


@pytest.mark.parametrize("number", CATALOGUE)
def test_an_entry_names_tests_that_exist_or_says_why_there_is_none(number: str) -> None:
    entry = CATALOGUE[number]

    unknown = [test for test in entry.tests if test.partition("::")[2] not in _functions(test.partition("::")[0])]

    assert unknown == []
    assert entry.tests or entry.missing


def test_every_test_that_is_marked_with_a_number_is_named_under_it() -> None:
    forgotten = [
        (number, test)
        for number, test in _marked()
        if number not in CATALOGUE or not _is_named(test, CATALOGUE[number])
    ]

    assert forgotten == []


def test_the_page_shows_the_catalogue_as_it_is() -> None:
    assert page.part(REPORT, PART) == render(), "out of date: python -m tests.faults.catalogue_table"


def _is_named(test: str, entry: Entry) -> bool:
    folder, name = test.partition("/")[0], test.partition("::")[2]
    return test in entry.tests or f"{folder}::{name}" in entry.tests


def _functions(path: str) -> set[str]:
    """Returns the names of the functions in a file, or in all test files of a folder."""
    files = (TESTS / path).glob("test_*.py") if (TESTS / path).is_dir() else [TESTS / path]
    return {node.name for file in files for node in _defined(file)}


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
