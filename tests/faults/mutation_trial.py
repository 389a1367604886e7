"""The tests on a copy of the package with a mistake in it, in a process of their own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["FENCE_TESTS", "STATE_TESTS", "copied", "failing"]

ROOT = Path(__file__).parents[2]
FENCE_TESTS = ("tests/unit/test_lifecycle.py", "tests/faults/test_interleavings.py")
STATE_TESTS = (
    "tests/unit/test_states.py",
    "tests/unit/test_transitions.py",
    "tests/unit/test_lifecycle.py",
    "tests/unit/test_settlement.py",
    "tests/unit/test_outcome.py",
    "tests/unit/test_manage.py",
    "tests/unit/test_enqueue.py",
    "tests/faults/test_interleavings.py",
    "tests/faults/test_model.py",
)
_HANGS = 300
"""Seconds after which a run is one that does not end: the tests take some, on a busy machine ten times as many."""
_SMALL = "not test_no_interleaving and not left_out and not mongomock"
"""The small explorations are enough, and guards that are left out on purpose are no news."""


def copied(folder: Path) -> Path:
    """Copies what the tests of the state machine need into `folder`, and returns it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for part in ("axeq", "tests/unit", "tests/faults"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for part in ("pyproject.toml", "tests/__init__.py"):
        shutil.copy(ROOT / part, folder / part)
    return folder


def failing(folder: Path, changed: Mapping[str, str], tests: Sequence[str], *, first: bool = False) -> list[str]:
    """Returns the names of the tests that fail in `folder` with modules `changed`, only the `first` where asked.

    The modules are put back afterwards. A run that ends in any other way counts as a failure of that name.
    """
    originals = {module: (folder / "axeq" / f"{module}.py").read_text() for module in changed}
    try:
        for module, source in changed.items():
            (folder / "axeq" / f"{module}.py").write_text(source)
        return _run(folder, [test for test in tests if (folder / test).exists()], first=first)
    finally:
        for module, source in originals.items():
            (folder / "axeq" / f"{module}.py").write_text(source)


def _run(folder: Path, tests: Sequence[str], *, first: bool) -> list[str]:
    options = [
        "-q",
        "--noconftest",  # but that of the unit tests: the others need a server
        "-p",
        "tests.unit.conftest",
        "--tb=no",
        "-rfE",
        "-p",
        "no:cacheprovider",
        "-k",
        _SMALL,
        *(["-x"] if first else []),
    ]
    command = [sys.executable, "-B", "-m", "pytest", *options, *tests]
    environment = {"PATH": "/usr/bin:/bin", "AXEQ_EXAMPLES": "150"}
    try:
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_HANGS, check=False
        )
    except subprocess.TimeoutExpired:
        return ["(the tests do not end)"]
    failed = re.findall(r"^(?:FAILED|ERROR) \S*?(?:::(\w+))?(?:\[.*\])?(?: - .*)?$", ended.stdout, re.MULTILINE)
    if not failed and ended.returncode:
        return [f"(pytest ended with {ended.returncode}: {ended.stdout[-300:]}{ended.stderr[-300:]})"]
    return failed
