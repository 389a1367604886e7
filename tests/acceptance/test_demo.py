"""`axeq demo` as a user runs it: a command, its output and its exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pymongo
import pytest

import axeq

DEADLINE = 120.0
GOOD, BAD = 18, 2


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where the demo's own directory is made inside the test's, and the environment asks for colours."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    package = str(Path(axeq.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "TMPDIR": str(scratch), "FORCE_COLOR": "1", "COLUMNS": "40"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "package").mkdir(parents=True)
    for number in range(GOOD):
        body = "    if x: pass\n" * (number + 1)
        (root / "package" / f"good{number}.py").write_text(f"def function{number}(x):\n{body}")
    for number in range(BAD):
        (root / f"half_saved{number}.py").write_text("def f(:\n")
    for passed_over in (".hidden", "site-packages"):
        (root / passed_over).mkdir()
        (root / passed_over / "unseen.py").write_text("def unseen(): pass\n")
    (root / "notes.txt").write_text("no Python")
    return root


def demo(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "axeq.edges.cli", "demo", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False)


def row(output: str, name: str) -> list[str]:
    (line,) = (line for line in output.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()


def left_behind(environment: dict[str, str]) -> list[Path]:
    return sorted(Path(environment["TMPDIR"]).iterdir())


def test_the_demo_measures_a_tree_and_reports_what_the_queue_did(tree: Path, environment: dict[str, str]) -> None:
    ended = demo("--files", str(tree), environment=environment)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    assert "\r" not in ended.stdout
    assert f"{GOOD + BAD} files" in ended.stdout
    assert f"measured {GOOD + BAD} of {GOOD + BAD}, {BAD} retries" in ended.stdout
    assert row(ended.stdout, "completed") == [f"{GOOD}"]
    assert row(ended.stdout, "cancelled (exhausted)") == [f"{BAD}"]
    assert row(ended.stdout, "retries") == [f"{BAD}"]
    assert row(ended.stdout, "half_saved0.py")[:2] == ["2", "SyntaxError:"]
    assert row(ended.stdout, f"package/good{GOOD - 1}.py") == [f"function{GOOD - 1}", f"{GOOD + 1}", f"{GOOD + 1}"]
    assert "unseen" not in ended.stdout
    assert left_behind(environment) == []


def test_a_kept_demo_can_be_looked_at_afterwards(tree: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    kept = tmp_path / "kept"
    ended = demo("--files", str(tree), "--keep", str(kept), "--workers", "1", environment=environment)
    shown = re.search(r'Store\("(embedded:.+?)"\), "(.+?)"\)', ended.stdout)
    assert shown is not None, ended.stderr

    with axeq.Store(shown[1]) as store:
        stats = axeq.Queue(store, shown[2]).stats()

    assert (stats[axeq.State.COMPLETED], stats[axeq.State.CANCELLED]) == (GOOD, BAD)


@pytest.mark.parametrize(("folder", "told"), [("missing", "is no directory"), ("empty", "has no Python files")])
def test_a_tree_without_files_is_refused_in_one_line(
    folder: str, told: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "empty").mkdir()

    ended = demo("--files", str(tmp_path / folder), environment=environment)

    assert ended.returncode == 2
    assert ended.stderr == f"axeq: {tmp_path / folder} {told}\n"
    assert ended.stdout == ""


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Lets children take Ctrl-C as in a terminal: a shell starts what runs in its background with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def running(environment: dict[str, str], heeds_ctrl_c: None) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-u", "-m", "axeq.edges.cli", "demo"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    yield process
    process.kill()
    process.communicate()


def line_of(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith(start))


def wait_for_a_measured_file(uri: str) -> None:
    until = time.monotonic() + DEADLINE
    with pymongo.MongoClient[dict[str, object]](uri, directConnection=True) as client:
        while client.axeq.jobs.count_documents({"state": "completed"}) == 0:
            assert time.monotonic() < until
            time.sleep(0.02)


@pytest.mark.parametrize("phase", ["starting", "measuring"])
def test_ctrl_c_ends_the_demo_and_leaves_nothing_behind(
    phase: str, running: subprocess.Popen[str], environment: dict[str, str]
) -> None:
    line_of(running, "data: ")
    if phase == "measuring":
        wait_for_a_measured_file(line_of(running, "server: ").split()[-1])

    os.killpg(running.pid, signal.SIGINT)
    _, told = running.communicate(timeout=DEADLINE)

    assert running.returncode == 1
    assert told == "axeq: interrupted\n"
    assert left_behind(environment) == []
