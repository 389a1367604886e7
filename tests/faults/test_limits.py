"""Limits of time: a handler that overruns is stopped, and what it returns late is not written."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.arena import Arena
from tests.faults.ledger import by_job
from tests.faults.tasks import Overrun

pytestmark = pytest.mark.usefixtures("nothing_left")

MakeArena = Callable[..., Arena]


@pytest.mark.fault("F50")
@pytest.mark.parametrize("stubborn", [False, True], ids=["stops", "returns late"])
def test_an_attempt_beyond_its_timeout_is_a_timeout_whatever_it_returns(arena: MakeArena, stubborn: bool) -> None:
    scene = arena(lease=3.0)
    with scene.queue() as queue, scene.history() as history:
        scene.workers.ready(scene.workers.start())

        jobs = [queue.enqueue(Overrun(seconds=1.0, stubborn=stubborn)) for _ in range(3)]
        scene.promised(jobs)
        scene.drained(3, seconds=40)

        assert scene.breaches(history, max_attempts=2) == []
    for document in scene.documents().values():
        assert (document["state"], document["cause"], document["attempts"]) == ("cancelled", "exhausted", 2)
        assert document["error"]["type"] == "TimeoutError"
        assert "result" not in document
    for runs in by_job(scene.workers.executions()).values():
        lasted = [run.ended - run.started for run in runs if run.ended is not None]
        assert len(lasted) == 2
        assert min(lasted) >= (1.0 if stubborn else 0.1)
        assert max(lasted) <= 5.0  # the timeout is 0.4 s
