"""A process that forks after it has used a store, as web servers do: the child uses the store as its parent did."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

import axeq
from tests.support.probe import Probe

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*fork:UserWarning"),
]

PATIENCE = 20


def exit_of_a_child_that_enqueues(queue: axeq.Queue) -> int:
    """Forks, has the child enqueue, and returns how it ended: 0, or minus the signal that ended its wait."""
    child = os.fork()
    if not child:
        signal.alarm(PATIENCE)
        try:
            queue.enqueue(Probe(value="of the child"))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("holder", ["store", "clients"])
def test_a_child_waits_for_no_lock_that_a_thread_of_its_parent_held(
    plain_store: axeq.Store, raw: Any, holder: str
) -> None:
    queue = axeq.Queue(plain_store)
    queue.enqueue(Probe(value="of the parent"))
    assert plain_store._clients is not None
    lock: Any = {"store": plain_store._lock, "clients": plain_store._clients._lock}[holder]
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            forked.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        ended = exit_of_a_child_that_enqueues(queue)
    finally:
        forked.set()
        thread.join()

    assert ended == 0
    assert {job["data"]["value"] for job in raw.find()} == {"of the parent", "of the child"}
