"""Programs for the races of enqueues: `producers.py ROLE URI ...`. Each prints `ready`, waits for a line, and prints
in the end what it did, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import axeq
from axeq.rules import batch, isolation
from tests.races.serving import Ledger


class Step(axeq.Model[None], name="step"):
    number: int


LABELS = ("red", "green", "blue")
MET = frozenset({"raise created", "raise taken", "ignore there", "replace there"})
"""The ways in which each of those who race for labels has come to meet another before it ends."""
_LONGER = 30.0
"""Seconds that producers go on at the most on a machine that is too busy for them to meet in time."""


def without_transactions(store: axeq.Store) -> axeq.Store:
    """Returns the store, which from now on takes its server for one that has none."""
    store._capabilities = replace(store.capabilities(), transactions=False)
    return store


def start() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def tell(**facts: Any) -> None:
    print(json.dumps(facts, default=str), flush=True)


def work(uri: str, path: str) -> None:
    """Runs jobs until a line comes, and notes those that were not at their end what they were at their start."""
    ledger, store = Ledger(path), axeq.Store(uri)
    pool = axeq.Pool(store, lease=10, drain=1, max_lag=0)
    queue = axeq.AsyncQueue(store)

    @pool.task(Step, workers=4, interval=0.02)
    async def step(ctx: axeq.Context[Step, None]) -> None:
        ledger.write("start", f"{ctx.job.label}:{ctx.job.id}")
        stored = await queue.get(ctx.job.id, model=Step)
        if stored.payload != ctx.model:
            ledger.write("changed", ctx.job.id)
        ledger.write("end", f"{ctx.job.label}:{ctx.job.id}")

    def stop() -> None:
        pool.ready.wait()
        start()
        pool.stop()

    threading.Thread(target=stop, daemon=True).start()
    pool.run()
    store.close()


def conflict(uri: str, seed: str, seconds: str) -> None:
    """Enqueues under few labels, in each way that a conflict can be met, for so many seconds."""
    with axeq.Store(uri) as store:
        queue, chance = axeq.Queue(store), random.Random(int(seed))
        queue.enqueue(Step(number=-1), label=f"warm-{seed}")
        done: Counter[str] = Counter()
        created: list[str] = []
        start()
        until = time.monotonic() + float(seconds)
        number = int(seed) * 1_000_000
        while time.monotonic() < until + _LONGER * (not done.keys() >= MET):
            number += 1
            way: Any = chance.choice(("raise", "ignore", "replace"))
            try:
                job = queue.enqueue(Step(number=number), label=chance.choice(LABELS), on_conflict=way)
            except axeq.LabelTaken:
                done[f"{way} taken"] += 1
                continue
            done[f"{way} {'created' if job.created else 'there'}"] += 1
            if job.created:
                created.append(str(job.id))
        tell(done=done, created=created)


def isolate(uri: str, way: str, window: str, seconds: str) -> None:
    """Enqueues one label for so many seconds, and removes each job at once that it has stored."""
    with axeq.Store(uri) as store:
        if way == "two steps":
            without_transactions(store)
        queue = axeq.Queue(store)
        queue.ensure_indexes()
        created: list[float] = []
        refused = 0
        start()
        until = time.monotonic() + float(seconds)
        beside = False
        while beside or time.monotonic() < until + _LONGER * (not (created and refused)):
            beside = False
            try:
                job = queue.enqueue(Step(number=1), label="one", isolation=float(window))
            except axeq.Isolated:
                refused += 1
                continue
            except axeq.LabelTaken:  # the window has passed, and its slow producer has not removed the job yet
                beside = True
                continue
            created.append(job.created_at.timestamp())
            queue.remove(job.id)
        tell(created=created, refused=refused)


def together(uri: str, first: str, size: str) -> None:
    """Enqueues batches with labels until it is killed."""
    with axeq.Store(uri) as store:
        queue, number = axeq.Queue(store), int(first)
        queue.ensure_indexes()
        start()
        while True:
            steps = [Step(number=each) for each in range(int(size))]
            queue.enqueue_many(steps, label=lambda step, n=number: f"{n}-{step.number}", group=f"batch {number}")  # type: ignore[misc]
            number += 1


def die_before_commit(uri: str, size: str) -> None:
    """Is killed after a batch has been inserted and before it is committed."""
    sent = batch._sent

    def killed(documents: Any) -> Any:
        yield from sent(documents)
        os.kill(os.getpid(), signal.SIGKILL)

    batch._sent = killed
    with axeq.Store(uri) as store:
        queue = axeq.Queue(store)
        queue.ensure_indexes()
        start()
        queue.enqueue_many([Step(number=each) for each in range(int(size))], unique=True)


def die_half_way(uri: str, moment: str, void_after: str) -> None:
    """Is killed after its marker has been written, before or after its job has."""
    isolation.VOID_AFTER = float(void_after)
    insert = isolation._inserted_or_unmarked

    def killed(*arguments: Any) -> Any:
        if moment == "after the insert":
            yield from insert(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    isolation._inserted_or_unmarked = killed
    with axeq.Store(uri) as store:
        queue = axeq.Queue(without_transactions(store))
        queue.ensure_indexes()
        start()
        queue.enqueue(Step(number=1), label="one", isolation=3600)


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    {
        "work": work,
        "conflict": conflict,
        "isolate": isolate,
        "together": together,
        "die before commit": die_before_commit,
        "die half way": die_half_way,
    }[role](*arguments)
