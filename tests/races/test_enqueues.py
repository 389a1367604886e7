"""Producers that race each other, and that are killed: labels, isolation and batches hold between processes."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pymongo
import pytest

import axeq
from axeq.rules import isolation
from tests.support.pools import python
from tests.support.waiting import eventually

from .producers import LABELS, MET, Step, without_transactions

PROGRAM = str(Path(__file__).with_name("producers.py"))
VOID_AFTER = 2.0


class Producers:
    """Producer processes of one test; all of them are gone when it ends."""

    def __init__(self, uri: str, stack: ExitStack) -> None:
        self.uri = uri
        self.stack = stack

    def ready(self, role: str, *arguments: object) -> subprocess.Popen[str]:
        process = self.stack.enter_context(python(PROGRAM, role, self.uri, *map(str, arguments)))
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready", process.communicate()[1]
        return process

    @staticmethod
    def go(*processes: subprocess.Popen[str]) -> None:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    @staticmethod
    def told(process: subprocess.Popen[str]) -> dict[str, Any]:
        output, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
        told: dict[str, Any] = json.loads(output.splitlines()[-1])
        return told


@pytest.fixture
def producers(store: axeq.Store) -> Iterator[Producers]:
    with ExitStack() as stack:
        yield Producers(store.uri, stack)  # type: ignore[attr-defined]


@pytest.fixture
def database(store: axeq.Store) -> Iterator[Any]:
    with pymongo.MongoClient[dict[str, Any]](store.uri) as client:  # type: ignore[attr-defined]
        database = client[store.place.database]
        yield database
        database["jobs.isolations"].drop()


def overlapping(ledger: str) -> list[tuple[str, str]]:
    """Returns the pairs of jobs of one label that ran at the same time."""
    spans: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for what, job, _, moment in map(str.split, ledger.splitlines()):
        if what in ("start", "end"):
            label, _, identity = job.partition(":")
            spans[label][identity].append(float(moment))
    return [
        (earlier, later)
        for jobs in spans.values()
        for (earlier, first), (later, second) in itertools.pairwise(sorted(jobs.items(), key=lambda item: item[1]))
        if first[-1] > second[0]
    ]


def test_a_label_has_one_live_job_and_a_running_job_is_not_replaced_however_conflicts_are_met(
    queue: axeq.Queue, producers: Producers, database: Any, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    worker = producers.ready("work", ledger)
    racers = [producers.ready("conflict", seed, 3) for seed in (1, 2, 3)]

    producers.go(*racers)
    told = [producers.told(racer) for racer in racers]
    eventually(lambda: database["jobs"].count_documents({"available_at": {"$exists": True}}) == 0)
    producers.go(worker)
    worker.communicate(timeout=60)

    lines = ledger.read_text()
    created = [identity for each in told for identity in each["created"]]
    done = {what for each in told for what in each["done"]}
    stored = {str(job["_id"]) for job in database["jobs"].find({"label": {"$in": LABELS}}, {"_id": 1})}
    assert {line for line in lines.splitlines() if line.startswith("changed")} == set()
    assert overlapping(lines) == []
    assert sorted(created) == sorted(stored)
    assert done >= MET


@pytest.mark.parametrize("way", ["transaction", "two steps"])
def test_of_many_processes_one_enqueues_per_window_though_its_job_is_removed_at_once(
    queue: axeq.Queue, producers: Producers, database: Any, way: str
) -> None:
    window = 0.4
    racers = [producers.ready("isolate", way, window, 3) for _ in range(4)]

    producers.go(*racers)
    told = [producers.told(racer) for racer in racers]

    moments = sorted(moment for each in told for moment in each["created"])
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert len(moments) >= 3
    assert min(gaps) >= window - 0.0005  # of floats that were milliseconds
    assert all(each["refused"] for each in told)
    assert database["jobs.isolations"].count_documents({}) == 1


def test_a_batch_with_labels_is_there_as_a_whole_or_not_at_all_however_its_producer_dies(
    queue: axeq.Queue, producers: Producers, database: Any
) -> None:
    size, chance = 150, random.Random(7)

    for attempt in range(5):
        producer = producers.ready("together", attempt * 1000, size)
        producers.go(producer)
        eventually(lambda first=attempt * 1000: database["jobs"].count_documents({"group": f"batch {first}"}) > 0)  # type: ignore[misc]
        with suppress(subprocess.TimeoutExpired):
            producer.wait(chance.uniform(0, 0.1))  # the moment of death is what varies
        producer.kill()
        producer.wait()

    counts = {
        found["_id"]: found["count"]
        for found in database["jobs"].aggregate([{"$group": {"_id": "$group", "count": {"$sum": 1}}}])
    }
    assert len(counts) >= 5
    assert set(counts.values()) == {size}


def test_a_batch_whose_producer_dies_before_the_commit_never_was(
    queue: axeq.Queue, producers: Producers, database: Any
) -> None:
    producer = producers.ready("die before commit", 20)

    producers.go(producer)
    producer.wait(60)

    assert producer.returncode == -9
    assert database["jobs"].count_documents({}) == 0


@pytest.fixture
def two_steps(store: axeq.Store, queue: axeq.Queue, monkeypatch: pytest.MonkeyPatch) -> axeq.Queue:
    """A queue without transactions, whose markers are void early."""
    monkeypatch.setattr(isolation, "VOID_AFTER", VOID_AFTER)
    without_transactions(store)
    return queue


def test_a_window_whose_producer_died_before_the_insert_frees_itself_and_leaves_nothing_behind(
    two_steps: axeq.Queue, producers: Producers, database: Any
) -> None:
    producer = producers.ready("die half way", "before the insert", VOID_AFTER)
    producers.go(producer)
    producer.wait(60)
    left = database["jobs.isolations"].find_one()

    job = eventually(lambda: stored_or_not_yet(two_steps))

    assert producer.returncode == -9
    assert "void_at" in left
    assert [marker["job"]["_id"] for marker in database["jobs.isolations"].find()] == [job.id]
    assert [stored["_id"] for stored in database["jobs"].find()] == [job.id]


def stored_or_not_yet(queue: axeq.Queue) -> Any:
    try:
        return queue.enqueue(Step(number=2), label="one", isolation=3600)
    except axeq.Isolated as error:
        raise AssertionError from error


def test_a_window_whose_producer_died_after_the_insert_stays_closed(
    two_steps: axeq.Queue, producers: Producers, database: Any
) -> None:
    producer = producers.ready("die half way", "after the insert", VOID_AFTER)
    producers.go(producer)
    producer.wait(60)
    (job,) = database["jobs"].find()
    two_steps.cancel(job["_id"])

    held = eventually(lambda: isolated_by_a_confirmed_marker(two_steps, database))

    assert producer.returncode == -9
    assert held.existing_id == job["_id"]
    assert database["jobs"].count_documents({}) == 1


def isolated_by_a_confirmed_marker(queue: axeq.Queue, database: Any) -> axeq.Isolated:
    with pytest.raises(axeq.Isolated) as caught:
        queue.enqueue(Step(number=2), label="one", isolation=3600)
    assert "void_at" not in database["jobs.isolations"].find_one()
    return caught.value
