"""docs/features.md is true: every feature has a test that exists and runs somewhere, or a topic that it is left to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.features import LATER, OPEN, PAGE, ROOT, Row, named_tests, never_runs, rows

ROWS = rows()
_ON_MONGOMOCK = "import pytest\npytestmark = pytest.mark.parametrize('kind', ['mongomock'], indirect=True)"
_FEW_KINDS = "import pytest\npytestmark = pytest.mark.kinds('mongomock')"


def name_of(row: Row) -> str:
    return re.sub(r"[^\w ]", "", f"{row.section} {row.there}")[:60]


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_feature_has_a_test_or_a_topic_that_it_is_left_to(row: Row) -> None:
    assert row.there
    assert row.here
    assert row.tests or row.later in LATER or row.open in OPEN, row.shown


@pytest.mark.parametrize("test", sorted(named_tests()))
def test_a_test_that_is_named_exists_and_runs_on_some_kind_of_store(test: str) -> None:
    assert never_runs(test) is None


def test_what_is_open_is_named_by_a_row() -> None:
    assert {row.open for row in ROWS if row.open} == set(OPEN)


def test_the_page_has_every_system_in_its_order() -> None:
    sections = list(dict.fromkeys(row.section for row in ROWS))

    assert sections == [
        "An odpf worker",
        "asynq, as redisq",
        "A relay client",
        "gue v5",
        "fire/axe v0.20.2",
        "fire/axe since v0.35",
    ]
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert len(ROWS) == len(lines) - 2 * len(sections), "a row has not three cells"
    assert len(ROWS) > 100


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_what_looks_like_a_test_in_a_row_is_read_as_one(row: Row) -> None:
    assert row.shown.count("tests/") == len(row.tests)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("def test_a(): ...", None),
        ("import pytest\n\n@pytest.mark.needs('transactions')\nasync def test_a(store): ...", None),
        ("import pytest\n\n@pytest.mark.skip\ndef test_a(): ...", "skipped"),
        ("def test_b(): ...", "has no test_a"),
        (f"{_ON_MONGOMOCK}\n\n@pytest.mark.needs('streams')\ndef test_a(store): ...", "no kind of store"),
        (f"{_FEW_KINDS}\n\n@pytest.mark.needs('streams')\ndef test_a(store): ...", "no kind of store"),
        (f"{_FEW_KINDS}\n\n@pytest.mark.kinds('uri')\n@pytest.mark.needs('streams')\ndef test_a(store): ...", None),
    ],
    ids=["plain", "able", "skipped", "gone", "mongomock", "few kinds", "a kind of its own"],
)
def test_a_test_that_no_kind_of_store_runs_is_found_out(
    written: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    path = f"tests/test_{abs(hash(written))}.py"
    (tmp_path / path).write_text(written)
    monkeypatch.setattr("tests.support.features.ROOT", tmp_path)

    found = never_runs(f"{path}::test_a")

    assert found is None if reason is None else reason in (found or "")


_CONFTEST = """
from tests.support.proofs import Proofs

def pytest_configure(config):
    config.pluginmanager.register(Proofs({"test_it.py::test_proof"}), "proofs")
"""
_SOMEWHERE = """
import pytest

@pytest.mark.parametrize("kind", ["a", "b"])
def test_proof(kind):
    if kind in %r:
        pytest.skip(kind)

def test_other():
    pytest.skip("nobody minds")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("skipped", "arguments", "code"),
    [(["a"], [], 0), (["a", "b"], [], 1), (["a", "b"], ["-k", "a"], 0)],
    ids=["somewhere", "everywhere", "chosen"],
)
def test_a_session_fails_where_a_proof_was_skipped_wherever_it_was_tried(
    tmp_path: Path, workers: str, skipped: list[str], arguments: list[str], code: int
) -> None:
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "test_it.py").write_text(_SOMEWHERE % skipped)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", workers, *arguments]

    run = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert run.returncode == code, run.stdout
    assert ("was skipped wherever it was tried" in run.stdout) == bool(code)
