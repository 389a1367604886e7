"""The types that users are promised, by the two checkers that they use."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = [HERE / "accepted.py", HERE / "refused.py"]

Mistakes = dict[str, dict[int, str]]
"""By file and line: what a checker said."""


@cache
def mypy() -> Mistakes:
    ran = _run("mypy", "--strict", "--no-error-summary", "--hide-error-context", "--no-pretty", *map(str, FILES))
    if ran.returncode > 1:
        raise RuntimeError(f"mypy failed: {ran.stdout}{ran.stderr}")
    found: Mistakes = defaultdict(dict)
    for path, line, message in re.findall(r"^(.+?\.py):(\d+): error: (.*)$", ran.stdout, re.MULTILINE):
        found[Path(path).name][int(line)] = message
    return found


@cache
def pyright() -> Mistakes:
    ran = _run("pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, FILES))
    try:
        report = json.loads(ran.stdout[ran.stdout.index("{") :])
    except ValueError:
        _without_pyright(f"{ran.stdout}{ran.stderr}".strip()[-300:])
    assert report["summary"]["filesAnalyzed"] == len(FILES)
    found: Mistakes = defaultdict(dict)
    for entry in report["generalDiagnostics"]:
        if entry["severity"] == "error":
            found[Path(entry["file"]).name][entry["range"]["start"]["line"] + 1] = entry["message"]
    return found


def _run(checker: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    command = [sys.executable, "-m", checker, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def _without_pyright(output: str) -> None:
    if os.environ.get("CI") or shutil.which("node"):
        raise RuntimeError(f"pyright failed: {output}")
    pytest.skip(f"pyright needs node, and none could be had: {output}")


checkers = pytest.mark.parametrize("checker", [mypy, pyright], ids=["mypy", "pyright"])


@checkers
def test_a_correct_program_is_accepted(checker: Callable[[], Mistakes]) -> None:
    assert checker()["accepted.py"] == {}


@checkers
def test_every_mistake_is_found_where_it_is_made_and_nowhere_else(checker: Callable[[], Mistakes]) -> None:
    lines = (HERE / "refused.py").read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if "# refuse: " in line}

    found = checker()["refused.py"]

    missed = [lines[number - 1].strip() for number in sorted(marked - found.keys())]
    unexpected = {number: found[number] for number in sorted(found.keys() - marked)}
    assert (missed, unexpected) == ([], {})
