"""What a pool does with jobs in its hands whose leases run out, and with handlers that do not stop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

import axeq
from axeq.attempts.executor import Stop
from axeq.attempts.hooks import Hooks
from axeq.attempts.leases import Leases
from axeq.documents.record import Record
from axeq.rules.lifecycle import Held
from axeq.running.crew import Crew
from axeq.running.lane import Lane
from tests.support.probe import Probe, probe_in_process
from tests.support.waiting import aeventually

from .playing import NOW, held_record

LEASE = 30.0


class Scene:
    """A crew with one task, whose handler notes what it is called for."""

    def __init__(self, store: axeq.Store, leases: Leases | None = None, **options: Any) -> None:
        self.called: list[Any] = []
        self.told: list[Any] = []
        self.stopping = asyncio.Event()
        handler = options.pop("handler", self.handler)
        options = {"workers": 2, "notify": None, **options}
        self.lane = Lane(axeq.Task(Probe, handler, **options))
        self.leases = leases or Leases(store, lease=LEASE, report=lambda holding: None)
        self.counts: Counter[str] = Counter()
        hooks = Hooks()
        hooks.add("lost", lambda job: self.told.append(job.id))
        hooks.add("started", lambda job: self.called.append(job.id))
        self.crew = Crew(
            store,
            {"probe": self.lane},
            self.leases,
            lease=LEASE,
            counts=self.counts,
            hooks=hooks,
            wake=lambda: None,
            freed=lambda: None,
            put_back=lambda queue, moment: None,
        )

    async def handler(self, ctx: axeq.Context[Probe, Any]) -> None:
        if ctx.model.outcome == "block":
            while not self.stopping.is_set():
                try:
                    await self.stopping.wait()
                except asyncio.CancelledError:
                    continue

    async def all_ended(self) -> None:
        await aeventually(lambda: not self.crew.ids)


def jobs(count: int, database: Any = None, **model: Any) -> list[Record]:
    """Returns claimed jobs, which a database may have."""
    records = [held_record(name="probe", data={"outcome": "ok", **model}) for _ in range(count)]
    if database is not None:
        database["jobs"].insert_many([record.document for record in records])
    return records


def take_on(scene: Scene, records: list[Record], *, since: float) -> None:
    scene.crew.take_on(records, since=since)


def take_on_together(scene: Scene, records: list[Record], *, since: float) -> None:
    scene.crew.take_on_together(records, {record.id: NOW for record in records}, since=since)


@pytest.mark.parametrize("take", [take_on, take_on_together], ids=["jobs", "group"])
async def test_no_handler_starts_under_a_lease_that_has_lapsed(store: axeq.Store, take: Callable[..., None]) -> None:
    scene = Scene(store, **({"group": axeq.Group(grace=1)} if take is take_on_together else {}))
    claimed = jobs(4)

    take(scene, claimed, since=time.monotonic() - LEASE)
    await scene.all_ended()

    assert scene.called == []
    assert scene.counts == {"dequeue": 4, "lost": 4}
    assert sorted(scene.told) == sorted(job.id for job in claimed)
    assert (scene.lane.running, scene.lane.unsettled, scene.leases._held) == (0, 0, {})


async def test_jobs_that_were_ready_when_their_process_stalled_do_not_start_when_it_goes_on(store: axeq.Store) -> None:
    scene = Scene(store, workers=1)
    running, *ready = jobs(4, outcome="block")
    scene.crew.take_on([running, *ready], since=time.monotonic())
    await aeventually(lambda: scene.called == [running.id])

    for job in (running, *ready):
        scene.leases._confirmed[job.id] -= LEASE  # the time for which it was stopped
    scene.stopping.set()
    await aeventually(lambda: scene.counts["lost"] >= len(ready))

    assert scene.called == [running.id]
    assert set(scene.told) >= {job.id for job in ready}


async def test_members_whose_leases_hold_are_called_without_those_whose_leases_have_lapsed(
    store: axeq.Store, database: Any
) -> None:
    scene = Scene(store, workers=1, group=axeq.Group(grace=1))
    lapsed, *held = jobs(3, database)
    blocked = jobs(1, database, outcome="block")
    take_on_together(scene, blocked, since=time.monotonic())
    take_on_together(scene, [lapsed, *held], since=time.monotonic())
    await aeventually(lambda: scene.called == [blocked[0].id])

    scene.leases._confirmed[lapsed.id] -= LEASE
    scene.stopping.set()
    await scene.all_ended()

    assert scene.called[1:] == [job.id for job in held]
    assert scene.told == [lapsed.id]
    assert scene.counts == {"dequeue": 4, "lost": 1, "complete": 3}


class LapsingMeanwhile(Leases):
    """Leases that are confirmed when a process is sent its call, and no more when it comes to it."""

    def __init__(self, store: axeq.Store) -> None:
        super().__init__(store, lease=LEASE, report=lambda holding: None)
        self.asked = 0

    def confirmed_until(self, identity: Any) -> float:
        self.asked += 1
        return time.monotonic() + (LEASE if self.asked == 1 else -1)


@pytest.mark.parametrize("lapses", [True, False], ids=["lapses", "is extended"])
async def test_a_process_that_comes_to_its_call_late_begins_only_where_the_lease_still_holds(lapses: bool) -> None:
    store = axeq.Store("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=1", timeout=0.5)
    moment = time.monotonic()
    store.clock.observe(datetime.now(UTC), moment, moment)
    leases = LapsingMeanwhile(store)
    scene = Scene(store, leases, handler=probe_in_process, executor="process")
    if not lapses:
        scene.crew._desk.sure_until = lambda attempt: float("-inf")  # type: ignore[method-assign]
        leases.confirmed_until = lambda identity: time.monotonic() + LEASE  # type: ignore[method-assign]
    outcomes: list[Any] = []
    scene.crew._settle = lambda attempt, outcome: outcomes.append(outcome)  # type: ignore[method-assign]
    (job,) = jobs(1)

    scene.crew.take_on([job], since=time.monotonic())
    await aeventually(lambda: scene.lane.running == 0)
    await scene.crew._executor.close()

    assert scene.told == ([job.id] if lapses else [])
    assert len(outcomes) == (not lapses)


@pytest.mark.parametrize("take", [take_on, take_on_together], ids=["jobs", "group"])
async def test_a_handler_that_does_not_stop_is_abandoned_once_whatever_asked_it_to(
    store: axeq.Store, take: Callable[..., None]
) -> None:
    together = take is take_on_together
    scene = Scene(store, **({"group": axeq.Group(grace=1)} if together else {}))
    scene.crew._lease = 0.01  # how long after it was asked to stop it is given up
    members = jobs(3 if together else 1, outcome="block")
    take(scene, members, since=time.monotonic())
    await aeventually(lambda: len(scene.called) == len(members))
    (attempt,) = scene.crew._tasks.values()

    scene.crew._overran(attempt, Stop.TIMEOUT)
    for job in members:
        scene.crew.lose(Held(job.id, job.token), "it is gone")
    given_up = [timer.when() for timer in attempt.timers[1:]]
    await aeventually(lambda: asyncio.get_running_loop().time() > max(given_up) and attempt.abandoned)
    scene.stopping.set()
    await scene.all_ended()

    assert len(given_up) > 1
    assert (scene.counts["abandon"], scene.lane.running, sorted(scene.lane._indexes)) == (1, 0, [0, 1])
