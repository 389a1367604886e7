"""Indexes that are dropped while pools run, or were made by somebody else with other options."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import axeq
from tests.faults.arena import Arena
from tests.faults.tasks import Work

pytestmark = pytest.mark.usefixtures("nothing_left")

MakeArena = Callable[..., Arena]


@pytest.mark.fault("F19")
def test_jobs_run_on_after_every_index_was_dropped(arena: MakeArena) -> None:
    scene = arena()
    with scene.queue() as queue:
        scene.workers.ready(scene.workers.start())
        scene.promised([queue.enqueue(Work(number=1))])
        scene.drained(1, seconds=20)

        scene.jobs.drop_indexes()
        scene.promised(queue.enqueue_many([Work(number=number) for number in range(2, 30)]))
        scene.drained(29, seconds=40)

        assert scene.breaches() == []


@pytest.mark.fault("F19")
def test_a_pool_runs_jobs_beside_an_index_with_other_options_and_says_so(arena: MakeArena) -> None:
    scene = arena()
    scene.jobs.create_index([("name", 1)], name="claim")
    with axeq.Store(scene.uri) as store:
        (worker,) = scene.workers.ready(scene.workers.start())

        scene.promised([axeq.Queue(store).enqueue(Work())])
        scene.drained(1, seconds=20)

        assert scene.breaches() == []
    assert worker.alive
    assert "indexes not created" in worker.log


@pytest.mark.fault("F19")
def test_a_label_is_refused_where_another_index_keeps_it_from_being_unique(arena: MakeArena) -> None:
    scene = arena()
    scene.jobs.create_index([("name", 1), ("label", 1)], name="label")
    with axeq.Store(scene.uri) as store, pytest.raises(axeq.AxeqError, match="index"):
        axeq.Queue(store).enqueue(Work(), label="only")

    assert scene.documents() == {}
