"""Processes that hold a server: how they end it, and when they keep it."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from axeq.edges import demo, keeper
from axeq.wire import servers
from axeq.wire.embedded import Home, Serving, take_lock
from tests.support.pools import python
from tests.support.waiting import DEADLINE

KEEPER = """
import os, sys
from pathlib import Path
from axeq.wire.embedded import Home, Serving, take_lock
home = Home(Path(sys.argv[1]))
lock = take_lock(home.keeper_lock, exclusive=True, timeout=10)
print("locked", flush=True)
sys.stdin.readline()
home.announce(Serving(1, 2, "data", "program", "", keeper=os.getpid(), ready=False))
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_a_demo_also_ends_the_server_of_a_keeper_that_names_itself_only_later(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()

    def looking(path: Path, **options: Any) -> int | None:
        looked.set()
        return take_lock(path, **options)

    monkeypatch.setattr(demo, "take_lock", looking)
    monkeypatch.setattr(demo, "_SERVER_END", DEADLINE)
    with python("-c", KEEPER, str(home.path)) as starting, ThreadPoolExecutor(1) as threads:
        assert starting.stdin is not None
        assert starting.stdout is not None
        assert starting.stdout.readline() == "locked\n"

        ending = threads.submit(demo._end_server, home)
        looked.wait(DEADLINE)
        starting.stdin.write("\n")
        starting.stdin.flush()

        assert ending.result()


@pytest.fixture
def inherited(home: Home, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """A server that runs, and was left by a keeper that was killed."""
    serving = Serving(1, 2, "data", "program", "", keeper=3, ready=True)
    home.announce(serving)
    monkeypatch.setattr(servers, "is_running", lambda pid, data: True)
    monkeypatch.setattr(keeper._Server, "stop", lambda self: pytest.fail("the server was ended"))
    return serving


def test_an_inherited_server_that_is_slow_to_answer_is_kept(
    home: Home, inherited: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, None, {"ok": 1.0}])
    monkeypatch.setattr(servers, "answer", lambda port: next(answers))

    signals: Any = SimpleNamespace(wait=lambda seconds: False)
    adopted = keeper._Keeper(home, signals)._adopt()

    assert adopted is not None
    assert adopted.serving == home.serving() == replace(inherited, keeper=os.getpid())
