"""Pools in threads and programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import axeq
from tests.support.probe import Probe, probe
from tests.support.waiting import DEADLINE, eventually

__all__ = ["probe_pool", "python", "quick_pool", "running", "start_python"]

ROOT = Path(__file__).resolve().parents[2]


def quick_pool(store: axeq.Store, **options: Any) -> axeq.Pool:
    """Returns a pool without lag, with a short lease and a short drain."""
    return axeq.Pool(store, **{"max_lag": 0, "lease": 6, "drain": 5, **options})


def probe_pool(store: axeq.Store, handler: Any = probe, **options: Any) -> axeq.Pool:
    """Returns such a pool with a task of `Probe`, which takes the options."""
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, handler, **options))
    return pool


@contextmanager
def running(pool: axeq.Pool) -> Iterator[axeq.Pool]:
    """Runs `pool` in a thread until the block ends."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            pool.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name=f"running {pool!r}", daemon=True)
    thread.start()
    try:
        eventually(lambda: pool.ready.is_set() or not thread.is_alive())
        if failures:
            raise failures[0]
        yield pool
    except BaseException:
        pool.stop()
        thread.join(DEADLINE)
        raise
    pool.stop()
    thread.join(DEADLINE)
    assert not thread.is_alive(), f"{pool!r} does not end"
    if failures:
        raise failures[0]


def start_python(*arguments: str, **changes: str) -> subprocess.Popen[str]:
    """Starts this Python on `arguments`, with piped streams and the checkout on its path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **changes},
    )


@contextmanager
def python(*arguments: str, **changes: str) -> Iterator[subprocess.Popen[str]]:
    """Runs this Python on `arguments` while the block lasts, and ends it by force where it has not ended then."""
    process = start_python(*arguments, **changes)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
