"""A server that is killed and comes back: what it has acknowledged is there, and the work goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import axeq
from tests.faults.arena import Arena, promise
from tests.faults.background import Background
from tests.faults.checker import Enqueued
from tests.faults.own_server import OwnServer
from tests.faults.scale import FULL, size
from tests.faults.seeds import rng
from tests.faults.tasks import Work
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def scene(own_server: OwnServer, tmp_path: Path) -> Iterator[Arena]:
    """An arena on the server that may be killed."""
    scene = Arena(own_server.uri, "faults", tmp_path, lease=5.0, timeout=2.0)
    yield scene
    scene.workers.close()
    scene.client.close()


@pytest.mark.fault("F16")
def test_jobs_and_outcomes_survive_kill_9_of_the_server(scene: Arena, own_server: OwnServer) -> None:
    total, kills, random = size(300, full=2000, slow=150), size(2, full=10), rng("server")
    with scene.queue() as queue:
        scene.workers.ready(scene.workers.start(2))
        with _Producer(queue, total) as producer:
            for number in range(kills):
                enough = total * (number + 1) // (kills + 1)
                until(lambda enough=enough: len(producer.acknowledged) >= enough, seconds=300, what="enqueues go on")
                threading.Event().wait(random.uniform(0, 0.1))
                own_server.restart()
                killed, answers = own_server.downtimes[-1]
                scene.workers.disturbed("server", killed)
                if answers - killed > 25:
                    pytest.skip("the server takes so long to start here that enqueues give up, tried")
            until(lambda: len(producer.acknowledged) == total, seconds=300, what="every enqueue returned")
        scene.enqueued += producer.acknowledged
        scene.drained(total, seconds=300 if FULL else 120)

        assert scene.breaches() == []
    documents = scene.documents()
    assert sorted(job["data"]["number"] for job in documents.values()) == list(range(total))
    assert {job["state"] for job in documents.values()} == {"completed"}
    assert scene.workers.deserters() == []


@pytest.mark.fault("F16")
def test_workers_claim_again_soon_after_the_server_answers(scene: Arena, own_server: OwnServer) -> None:
    with scene.queue() as queue:
        scene.workers.ready(scene.workers.start())
        scene.promised([queue.enqueue(Work(number=1))])
        scene.drained(1, seconds=30)

        for number in range(2, size(2, full=10) + 2):
            own_server.restart()
            scene.promised([queue.enqueue(Work(number=number))])
            killed, answers = own_server.downtimes[-1]
            scene.drained(number, seconds=15 + answers - killed)  # the goal is 5 s on a quiet machine

        assert scene.breaches() == []


class _Producer(Background):
    """Enqueues `total` jobs one by one in a thread while entered, noting each that returned."""

    def __init__(self, queue: axeq.Queue, total: int) -> None:
        super().__init__()
        self._queue, self._total = queue, total
        self.acknowledged: list[Enqueued] = []

    def work(self) -> None:
        for number in range(self._total):
            if self.ending.is_set():
                return
            self.acknowledged.append(promise(self._queue.enqueue(Work(number=number, seconds=0.005)), prompt=False))
