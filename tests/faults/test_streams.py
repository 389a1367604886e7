"""The change stream only hints: whatever becomes of it, jobs are found."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.faults.arena import Arena
from tests.faults.messages import answer_to
from tests.faults.proxy import Proxy
from tests.faults.tasks import Work
from tests.faults.toxics import Exchange, Toxic
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")

MakeArena = Callable[..., Arena]
FATAL = {286: "ChangeStreamHistoryLost", 280: "ChangeStreamFatalError", 10334: "BSONObjectTooLarge"}


class StreamError(Toxic):
    """Answers whoever reads a change stream with an error, at most `times`."""

    def __init__(self, code: int, times: int) -> None:
        super().__init__()
        self._code, self._times = code, times

    async def request(self, exchange: Exchange) -> None:
        if exchange.command != "getMore" or self.count == self._times:
            return
        self.count += 1
        error = {"ok": 0.0, "errmsg": "no", "code": self._code, "codeName": FATAL[self._code]}
        exchange.forged = answer_to(exchange.request, error)
        exchange.forward = False


class Mute(Toxic):
    """Has change streams deliver nothing: every read of one comes back empty, after a while."""

    async def reply(self, exchange: Exchange) -> None:
        if exchange.command == "getMore":
            self.count += 1
            cursor = exchange.request.document["getMore"]
            collection = exchange.request.document["collection"]
            database = exchange.request.document["$db"]
            empty = {"cursor": {"id": cursor, "ns": f"{database}.{collection}", "nextBatch": []}, "ok": 1.0}
            exchange.forged = answer_to(exchange.request, empty)


@pytest.mark.fault("F25")
@pytest.mark.parametrize("code", FATAL)
def test_a_stream_that_fails_for_good_is_opened_anew_and_not_in_a_loop(
    arena: MakeArena, proxy: Proxy, database: str, code: int
) -> None:
    scene = arena(through=proxy.uri(database))
    with scene.queue() as queue:
        scene.workers.ready(scene.workers.start())
        until(lambda: proxy.commands["getMore"] > 0, seconds=20, what="the stream is open")

        with proxy.toxic(StreamError(code, times=10_000)) as failing:
            began, opened = time.monotonic(), proxy.commands["aggregate"]
            scene.promised([queue.enqueue(Work(number=1))])  # the stream's reader wakes, and fails next
            until(lambda: failing.count >= 3, seconds=30, what="the stream has failed three times")
            reopened, took = proxy.commands["aggregate"] - opened, time.monotonic() - began
            scene.promised([queue.enqueue(Work(number=2))])
            scene.drained(2, seconds=20)
        scene.promised([queue.enqueue(Work(number=3))])
        scene.drained(3, seconds=20)

        assert scene.breaches(start_within=10.0) == []
    assert reopened <= 4 + 2 * took  # backing off, from ten in the first second


@pytest.mark.fault("F25")
def test_a_job_is_found_where_the_stream_never_delivers(arena: MakeArena, proxy: Proxy, database: str) -> None:
    scene = arena(through=proxy.uri(database))
    with proxy.toxic(Mute()) as mute, scene.queue() as queue:
        scene.workers.ready(scene.workers.start())
        until(lambda: proxy.commands["aggregate"] > 0, seconds=20, what="the stream is open")

        scene.promised([queue.enqueue(Work(number=1))])
        scene.drained(1, seconds=40)

        assert scene.breaches() == []
    assert mute.count > 0


@pytest.mark.fault("F25")
def test_jobs_are_found_after_their_collection_was_dropped(arena: MakeArena) -> None:
    scene = arena()
    with scene.queue() as queue:
        (worker,) = scene.workers.ready(scene.workers.start())
        scene.promised([queue.enqueue(Work(number=1))])
        scene.drained(1, seconds=20)

        scene.jobs.drop()
        scene.enqueued.clear()
        scene.promised([queue.enqueue(Work(number=2))])
        scene.drained(1, seconds=20)
        scene.promised([queue.enqueue(Work(number=3))])
        scene.drained(2, seconds=20)

        assert scene.breaches(start_within=15.0) == []
    assert worker.alive
