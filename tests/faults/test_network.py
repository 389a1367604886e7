"""A network that cuts, resets, swallows, delays and slices: nothing is lost, and nothing is done twice for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymongo
import pytest

import axeq
from tests.faults.arena import Arena
from tests.faults.background import Background
from tests.faults.checker import reruns
from tests.faults.processes import Worker
from tests.faults.proxy import Proxy
from tests.faults.scale import FULL, size
from tests.faults.seeds import rng
from tests.faults.tasks import Work
from tests.faults.toxics import (
    WRITES,
    Bandwidth,
    BlackHole,
    Cut,
    Exchange,
    Forgotten,
    Latency,
    NotPrimary,
    Slicer,
    Toxic,
)
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")

MakeArena = Callable[..., Arena]


@pytest.mark.fault("F10")
def test_replies_that_are_cut_off_lose_no_job_and_double_none(arena: MakeArena, proxy: Proxy, database: str) -> None:
    total = size(500, full=5000, slow=200)
    scene = arena(through=proxy.uri(database), lease=10.0, timeout=2.0)
    with scene.queue(), scene.history() as history:
        scene.workers.ready(scene.workers.start(3))
        with proxy.toxic(Cut(0.1, WRITES, rng("cut"))) as cut:
            scene.promised(_enqueued(scene, total, threads=8))
            scene.drained(total, seconds=600 if FULL else 60)

        found = scene.breaches(history)
        evidence = scene.evidence(history)
    assert found == []
    assert cut.count > total * 0.02
    assert sorted(job["data"]["number"] for job in evidence.documents.values()) == list(range(total))
    assert reruns(evidence.executions) == 0


@pytest.mark.fault("F11")
def test_a_claim_whose_replies_are_lost_twice_is_found_again_and_run_once(
    arena: MakeArena, proxy: Proxy, database: str
) -> None:
    scene = arena(through=proxy.uri(database), lease=10.0, timeout=2.0)
    with scene.queue() as queue, scene.history() as history:
        scene.workers.ready(scene.workers.start())

        with proxy.toxic(Cut(1.0, {"findAndModify"}, rng("claims"), times=2)) as cut:
            until(lambda: _one_more(scene, queue) and cut.count == 2, seconds=90, what="two replies are lost")

        assert scene.breaches(history) == []
    assert reruns(scene.workers.executions()) == 0
    assert {(job["attempts"], job["state"]) for job in scene.documents().values()} == {(1, "completed")}


@pytest.mark.fault("F11")
def test_a_claim_of_a_worker_that_is_cut_off_for_good_is_taken_over_after_its_lease(
    arena: MakeArena, proxy: Proxy, database: str
) -> None:
    scene = arena(through=proxy.uri(database), lease=2.0, timeout=2.0)
    with scene.queue() as queue, scene.history() as history:
        scene.workers.ready(scene.workers.start())
        hole = _HoleAfterClaim()
        with proxy.toxic(hole):
            scene.promised([queue.enqueue(Work())])
            assert hole.claimed.wait(60)
            began = time.monotonic()
            scene.workers.ready(scene.workers.start(uri=scene.uri))
            possible = max(began + scene.lease, time.monotonic())
            scene.drained(1, seconds=60)
            scene.workers.disturbed("cut off", began)

        assert scene.breaches(history) == []
    (run,) = scene.workers.executions()
    assert run.started <= possible + 10.0


@pytest.mark.fault("F12")
def test_jobs_go_on_while_every_connection_is_reset_every_two_seconds(
    arena: MakeArena, proxy: Proxy, database: str
) -> None:
    total = size(300, full=6000, slow=120)
    scene = arena(through=proxy.uri(database), lease=10.0, timeout=2.0, drain=5.0)
    with scene.queue() as queue, scene.history() as history:
        scene.workers.ready(scene.workers.start(2))
        calm = _timed(scene, queue, total)

        with _Resets(proxy, every=max(2.0, 4 * _connecting(proxy))) as resets:
            stormy = _timed(scene, queue, total)

        assert scene.breaches(history) == []
    assert resets.count >= 1
    assert stormy <= 2 * calm + 15.0
    assert reruns(scene.workers.executions()) == 0


@pytest.mark.fault("F13")
def test_a_pool_goes_on_after_a_black_hole_with_no_more_threads_than_before(
    arena: MakeArena, proxy: Proxy, database: str
) -> None:
    scene = arena(through=proxy.uri(database), lease=2.0, timeout=2.0)
    with scene.queue() as queue, scene.history() as history:
        (worker,) = scene.workers.ready(scene.workers.start())
        threads: list[int] = []

        for _ in range(2):  # the first has it resolve names anew, for which a driver keeps some threads
            scene.promised([queue.enqueue(Work(number=1))])
            scene.drained(len(scene.enqueued), seconds=60)
            scene.promised([queue.enqueue(Work(number=2, seconds=0.5), delay=0.2)])
            with proxy.toxic(BlackHole()):
                began = time.monotonic()
                _rest(size(4, full=40))
            scene.workers.disturbed("black hole", began)
            scene.promised([queue.enqueue(Work(number=3))])
            scene.drained(len(scene.enqueued), seconds=60)
            threads.append(_threads(worker))

        until(lambda: _threads(worker) <= threads[0] + 2, seconds=60, what=lambda: f"{threads}: no more threads")
        assert scene.breaches(history) == []
    assert scene.workers.deserters() == []


@pytest.mark.fault("F13")
def test_a_job_is_found_though_the_open_connections_have_died_in_silence(
    arena: MakeArena, proxy: Proxy, database: str
) -> None:
    scene = arena(through=proxy.uri(database), lease=5.0, timeout=2.0)
    with scene.queue() as queue:
        scene.workers.ready(scene.workers.start())
        scene.promised([queue.enqueue(Work(number=1))])
        scene.drained(1, seconds=20)
        until(lambda: proxy.commands["getMore"] > 0, seconds=20, what="the stream is open")

        with proxy.toxic(Forgotten(proxy.links)):
            scene.promised([queue.enqueue(Work(number=2))], prompt=False)
            scene.drained(2, seconds=90)

        assert scene.breaches() == []


@pytest.mark.fault("F14")
def test_a_slow_network_costs_few_round_trips_a_job(arena: MakeArena, proxy: Proxy, database: str) -> None:
    total, workers, handler, delay = size(60, full=600), 4, 0.05, 0.2
    scene = arena(through=proxy.uri(database), lease=10.0, workers=workers)
    with scene.queue() as queue, scene.history() as history:
        scene.workers.ready(scene.workers.start())
        with proxy.toxic(Latency(delay, delay / 2, rng("latency"))):
            before = _round_trips(proxy)

            took = _timed(scene, queue, total, seconds=handler)

            spent = _round_trips(proxy) - before
        assert scene.breaches(history) == []
    assert spent <= 3 * total + 10 * took  # polling, announcing, extending
    assert total / took >= workers / (handler + 3 * delay) * 0.7 * 0.5  # half of the goal: other tests run meanwhile


@pytest.mark.fault("F15")
@pytest.mark.parametrize("toxic", [Slicer(1), Bandwidth(10_000)], ids=["slicer", "bandwidth"])
def test_a_network_of_tiny_segments_or_little_bandwidth_breaks_nothing(
    arena: MakeArena, proxy: Proxy, database: str, toxic: Toxic
) -> None:
    total = size(12, full=100)
    scene = arena(through=proxy.uri(database), lease=20.0, timeout=20.0)
    with scene.queue(), scene.history() as history, proxy.toxic(toxic):
        scene.workers.start()

        scene.promised(_enqueued(scene, total, threads=2))
        scene.drained(total, seconds=60)

        assert scene.breaches(history) == []
    assert reruns(scene.workers.executions()) == 0
    assert toxic.count > total


@pytest.mark.fault("F17")
@pytest.mark.parametrize("executed", [False, True], ids=["refused", "executed"])
def test_primaries_that_step_down_cost_the_user_no_error(
    arena: MakeArena, proxy: Proxy, database: str, executed: bool
) -> None:
    total = size(200, full=2000, slow=100)
    scene = arena(through=proxy.uri(database), lease=10.0, timeout=2.0)
    with scene.queue(), scene.history() as history:
        scene.workers.ready(scene.workers.start(2))
        with proxy.toxic(NotPrimary(0.05, {*WRITES, "find"}, rng("step down"), executed=executed)) as stepped:
            jobs = _enqueued(scene, total, threads=6)
            scene.promised(jobs)
            scene.drained(total, seconds=300 if FULL else 60)

        assert scene.breaches(history) == []
    assert stepped.count > 0
    assert len(scene.documents()) == total
    assert reruns(scene.workers.executions()) == 0


@pytest.mark.fault("F18")
def test_a_server_that_stalls_time_and_again_costs_no_lease(arena: MakeArena, proxy: Proxy, database: str) -> None:
    rounds, stall = size(2, full=6), size(2, full=5)
    scene = arena(through=proxy.uri(database), lease=5.0 * stall, timeout=5.0)
    with scene.queue() as queue, scene.history() as history:
        scene.workers.ready(scene.workers.start(2))
        jobs = [queue.enqueue(Work(number=number, seconds=1.5 * stall)) for number in range(8)]
        scene.promised(jobs)
        until(lambda: len(scene.workers.executions()) > 0, seconds=60, what="jobs run")

        for _ in range(rounds):
            with proxy.toxic(BlackHole()):
                _rest(stall)
            _rest(stall)
        scene.drained(len(jobs), seconds=120)

        assert scene.breaches(history) == []
    assert reruns(scene.workers.executions()) == 0


class _HoleAfterClaim(BlackHole):
    """Swallows everything from the first claim on, which is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed = threading.Event()

    async def request(self, exchange: Exchange) -> None:
        if self.claimed.is_set():
            await super().request(exchange)

    async def reply(self, exchange: Exchange) -> None:
        if exchange.command == "findAndModify":
            self.claimed.set()
        if self.claimed.is_set():
            await super().reply(exchange)


class _Resets(Background):
    """Resets every connection of a proxy every so many seconds while entered."""

    def __init__(self, proxy: Proxy, *, every: float) -> None:
        super().__init__()
        self._proxy, self._every = proxy, every
        self.count = 0

    def work(self) -> None:
        while True:
            self._proxy.reset()
            self.count += 1
            if self.ending.wait(self._every):
                return


def _enqueued(scene: Arena, total: int, *, threads: int) -> list[axeq.Job[Work, int]]:
    """Enqueues `total` jobs one by one through the proxy, from so many threads, each with a client of its own."""

    def enqueue(first: int) -> list[axeq.Job[Work, int]]:
        with axeq.Store(scene.through) as store:
            queue = axeq.Queue(store)
            return [queue.enqueue(Work(number=number)) for number in range(first, total, threads)]

    with ThreadPoolExecutor(threads) as pool:
        return [job for jobs in pool.map(enqueue, range(threads)) for job in jobs]


def _timed(scene: Arena, queue: axeq.Queue, total: int, *, seconds: float = 0.05) -> float:
    """Returns how long it took to run `total` jobs of so many seconds each."""
    began = time.monotonic()
    scene.promised(queue.enqueue_many([Work(number=number, seconds=seconds) for number in range(total)]))
    scene.drained(len(scene.enqueued), seconds=300 if FULL else 60)
    return time.monotonic() - began


def _one_more(scene: Arena, queue: axeq.Queue) -> bool:
    """Has one more job run: the driver sends the first one's claim again itself, if it comes to that in time."""
    scene.promised([queue.enqueue(Work())])
    scene.drained(len(scene.enqueued), seconds=60)
    return True


def _connecting(proxy: Proxy) -> float:
    """Returns how long it takes here to have an answer by a new connection."""
    began = time.monotonic()
    with pymongo.MongoClient[dict[str, Any]](proxy.uri()) as client:
        client.admin.command("ping")
    return time.monotonic() - began


def _round_trips(proxy: Proxy) -> int:
    return sum(proxy.commands[name] for name in ("find", "findAndModify", "update"))


def _threads(worker: Worker) -> int:
    return len(list(Path(f"/proc/{worker.pid}/task").iterdir()))


def _rest(seconds: float) -> None:
    """Lets the fault last."""
    threading.Event().wait(seconds)
