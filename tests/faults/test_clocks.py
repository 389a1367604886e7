"""Workers whose clocks are wrong: due and lapsed go by the server's clock, and by time that only moves on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.arena import Arena
from tests.faults.checker import reruns
from tests.faults.scale import FULL, size
from tests.faults.tasks import Work
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")

MakeArena = Callable[..., Arena]
SKEWS = (3600.0, -3600.0, 300.0, -300.0)


@pytest.mark.fault("F20")
def test_workers_with_wrong_clocks_start_no_job_early_and_none_late(arena: MakeArena) -> None:
    total = size(200, full=1000, slow=60)
    scene = arena(lease=10.0)
    with scene.queue() as queue, scene.history() as history:
        for skew in SKEWS:
            scene.workers.start(skew=skew)
        scene.workers.ready(scene.workers.all)

        scene.promised(queue.enqueue_many([Work(number=number, seconds=0.005) for number in range(total)], delay=2))
        scene.drained(total, seconds=120 if FULL else 40)

        # The catalogue asks for a second; other tests run meanwhile, and the last of many waits for a worker.
        found = scene.breaches(history, start_within=10.0 if not FULL else 20.0)
    assert found == []
    assert reruns(scene.workers.executions()) == 0


@pytest.mark.fault("F20")
def test_workers_with_wrong_clocks_steal_no_live_lease(arena: MakeArena) -> None:
    lease = 5.0
    scene = arena(lease=lease, workers=2)
    with scene.queue() as queue, scene.history() as history:
        scene.workers.ready(scene.workers.start(skew=-3600.0))
        scene.promised(queue.enqueue_many([Work(number=number, seconds=2.5 * lease) for number in range(2)]))
        until(lambda: len(scene.workers.executions()) == 2, seconds=20, what="the jobs run")

        scene.workers.start(2, skew=3600.0)
        scene.drained(2, seconds=90)

        assert scene.breaches(history) == []
    assert reruns(scene.workers.executions()) == 0


@pytest.mark.fault("F20")
def test_the_falsified_clock_is_what_a_worker_sees(arena: MakeArena) -> None:
    """Guards the two above: without it they would pass on clocks that are right."""
    scene = arena()
    with scene.queue() as queue:
        scene.workers.ready(scene.workers.start(skew=3600.0))
        scene.promised([queue.enqueue(Work())])
        scene.drained(1, seconds=20)

    (worker,) = scene.workers.all
    (document,) = scene.documents().values()
    ahead = worker.believed - document["finished_at"].timestamp()
    assert 3500 < ahead < 3700
