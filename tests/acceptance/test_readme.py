"""The README is true: its programs run, its promises name tests that exist, its table names the whole API."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import axeq

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])

CONTRACT = [
    "An enqueue that returned, or whose transaction committed with majority, is never lost.",
    (
        "Two attempts of a job never overlap, and a completed job never runs again, unless a worker dies, stalls or is "
        "cut off for longer than its lease."
    ),
    "A worker that lost its lease can no longer change the job.",
    "A label is unique among the live jobs of its task at all times, under any race.",
    "A job never starts before its time by the server's clock.",
    (
        "A job whose workers keep dying ends cancelled (cause `exhausted`), alone: no job can kill workers in an "
        "endless loop, and none is punished for its neighbour."
    ),
    "On a replica set, a job, its follow-ups and the handler's own MongoDB writes can commit as one transaction.",
]


def programs() -> dict[str, str]:
    return dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", README, re.DOTALL))


def snippets() -> list[str]:
    """The pieces of Python that can stand alone; the producer needs a worker and runs with it."""
    return [text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "job.wait" not in text]


def test_the_programs_of_the_readme_run_together_and_print_what_they_made(tmp_path: Path, uri: str) -> None:
    for name, text in programs().items():
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "AXEQ_URI": uri, "PYTHONPATH": str(ROOT)}

    with subprocess.Popen([sys.executable, "worker.py"], cwd=tmp_path, env=environment) as worker:
        try:
            producer = subprocess.run(
                [sys.executable, "producer.py"],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=90,
            )
        finally:
            worker.terminate()

    assert producer.stdout.strip() == "320/a.jpg", producer.stderr
    assert worker.returncode == 0


@pytest.mark.parametrize("text", snippets())
def test_a_snippet_can_be_imported(text: str, tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(programs()["models.py"])
    (tmp_path / "snippet.py").write_text(text)

    run = subprocess.run(
        [sys.executable, "-c", "import snippet"],
        cwd=tmp_path,
        env={**os.environ, "AXEQ_URI": "mongodb://localhost:27017/shop", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("clause", CONTRACT)
def test_the_contract_stands_word_for_word_with_tests_that_exist(clause: str) -> None:
    rows = [line for line in README.splitlines() if line.startswith("|") and clause in line]
    assert len(rows) == 1

    tests = re.findall(r"`(tests/\S+\.py)::(\w+)`", rows[0])

    assert tests
    for path, name in tests:
        tree = ast.parse((ROOT / path).read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def test_the_table_of_the_api_names_every_public_name() -> None:
    table = README.partition("## The whole API")[2]

    missing = [
        name for name in axeq.__all__ if f"`{name}" not in table and not issubclass(getattr(axeq, name), axeq.AxeqError)
    ]

    assert missing == []
    assert "all of them are `AxeqError`" in table


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench"])
def test_make_help_lists_what_the_readme_and_contributors_are_told(target: str) -> None:
    listing = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert re.search(rf"^{target}\s+\S", listing, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_to_a_file_of_the_project_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []
