"""Handlers in processes of their own, when signals reach the pool's whole group and when the pool is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import axeq
from axeq.words.states import State
from tests.support.waiting import until

from .conftest import Workers
from .process_worker import Apart

PROGRAM = "process_worker"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_the_whole_group_lets_handlers_in_processes_finish(
    queue: axeq.Queue, workers: Workers, tmp_path: Path, number: signal.Signals
) -> None:
    pool = workers.ready(workers.start(program=PROGRAM, new_session=True))
    end = tmp_path / "end"
    job = queue.enqueue(Apart(ledger=str(workers.ledger), end=str(end)))
    handler = handler_of(workers)

    os.killpg(pool.pid, number)
    end.touch()
    result = job.wait(30)

    assert result == handler
    assert (job.state, job.attempts, job.lost) == (State.COMPLETED, 1, 0)
    assert pool.wait(30) == 0
    assert gone(handler)


@pytest.mark.parametrize(
    "holds",
    [
        pytest.param(False, id="a-handler-that-runs-python"),
        pytest.param(
            True,
            id="a-handler-that-holds-the-gil",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the kernel end it"),
        ),
    ],
)
def test_a_handlers_process_ends_with_a_pool_that_is_killed(
    queue: axeq.Queue, workers: Workers, tmp_path: Path, holds: bool
) -> None:
    pool = workers.ready(workers.start(program=PROGRAM))
    queue.enqueue(Apart(ledger=str(workers.ledger), end=str(tmp_path / "never"), holds=holds))
    handler = handler_of(workers)

    pool.kill()

    until(lambda: gone(handler), seconds=20, what="the handler's process has ended")


def handler_of(workers: Workers) -> int:
    until(lambda: len(workers.events("start")) == 1, seconds=30, what="the job started")
    return workers.events("start")[0].process


def gone(process: int) -> bool:
    """Whether a process has ended; nobody may be there to wait for a zombie."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()[:1] in ("", "Z")
