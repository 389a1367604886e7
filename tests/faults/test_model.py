"""Random histories of enqueues, claims, settlements, crashes and lost replies, held to a reference model.

`AXEQ_EXAMPLES` sets how many histories are tried, `AXEQ_SEED` makes others than the usual ones; a failure prints the
shortest history that shows it.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from axeq.documents.record import Record
from axeq.rules import lifecycle, manage
from axeq.rules.batch import insert_many
from axeq.rules.due import Candidate
from axeq.rules.enqueue import Draft
from axeq.rules.settlement import settle, settlement
from axeq.wire.wire import Call, Command, Find
from axeq.words.states import Cancellation, Cause

from .model_machine import LEASE, LIMITS, OUTCOMES, Machine
from .model_reference import LEGAL
from .model_store import DOUBT, InMemory, OnMongomock, Time, World

EXAMPLES = int(os.environ.get("AXEQ_EXAMPLES", "500"))
SEED = os.environ.get("AXEQ_SEED")


def settings_for(examples: int, *, derandomize: bool = SEED is None, **options: Any) -> settings:
    """Returns settings under which the same histories are tried each time, unless a seed asks for others."""
    return settings(
        max_examples=examples,
        stateful_step_count=60,
        deadline=None,
        derandomize=derandomize,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        **options,
    )


def run(machine: type[Machine], examples: int) -> None:
    chosen = seed(int(SEED))(machine) if SEED else machine
    run_state_machine_as_test(chosen, settings=settings_for(examples))


class MachineOnMongomock(Machine):
    backend = OnMongomock


_MORE = 10
MISFORTUNES = {
    "late outcome",
    "outcome that a cancel took the place of",
    "unanswered claim",
    "stale claim",
    Cause.EXHAUSTED,
}
"""What histories must have met; a claim that finds a cancel flag (`requested`) is too rare, and tested directly."""


def test_no_history_of_jobs_departs_from_the_reference() -> None:
    Machine.tried.clear()

    run(Machine, EXAMPLES)
    # Some edges are rarely gone: more histories, the same each time, until all have been.
    for number in range(_MORE if EXAMPLES >= 500 else 0):
        if _untried():
            chosen = seed(number)(type(f"Machine{number}", (Machine,), {}))
            run_state_machine_as_test(chosen, settings=settings_for(EXAMPLES // 2, derandomize=False))

    print(dict(Machine.tried))
    assert not (EXAMPLES >= 500 and _untried())


def _untried() -> set[Any]:
    return (LEGAL | MISFORTUNES) - {what for what, times in Machine.tried.items() if times}


def test_no_history_on_mongomock_departs_from_the_reference() -> None:
    run(MachineOnMongomock, max(EXAMPLES // 10, 5))


def claimed(world: World, count: int) -> list[Record]:
    """Enqueues jobs and claims them under one token."""
    drafts = [Draft("resize", 1, "default", {}, id=f"job {number:02}") for number in range(count)]
    documents = world.run(insert_many(drafts, world.time))  # type: ignore[arg-type]
    world.time.now += 2 * DOUBT
    ids = [document["_id"] for document in documents]
    claim = lifecycle.claim_many(ids, world.time, worker="A", lease=LEASE, patience=10)  # type: ignore[arg-type]
    records: list[Record] = world.run(claim)
    return sorted(records, key=lambda record: str(record.id))


def taken_over(world: World, record: Record) -> None:
    """Has another worker claim a job whose lease has lapsed, beside others that were extended."""
    candidate = Candidate(record.id, "resize", 0, record.created_at, 1, 1)
    claim = lifecycle.claim_one(candidate, world.time, worker="B", lease=LEASE, patience=10)  # type: ignore[arg-type]
    assert world.run(claim)


@pytest.mark.parametrize("backend", [InMemory, OnMongomock])
@pytest.mark.parametrize("count", [3, 5, 20])
@pytest.mark.parametrize("outcome", sorted(OUTCOMES))
def test_a_batch_of_one_outcome_changes_its_jobs_and_none_that_another_has(
    backend: type[InMemory | OnMongomock], count: int, outcome: str
) -> None:
    world = World(backend)
    records = claimed(world, count)
    world.time.now += LEASE * 1000 + 2 * DOUBT
    taken_over(world, records[1])
    assert world.run(manage.cancel(records[2].id, world.time)) is Cancellation.CANCELLED  # type: ignore[arg-type]
    bystanders = claimed_later(world)
    before = world.documents()
    now = world.time.earliest()
    batch = [
        settlement(record, OUTCOMES[outcome], LIMITS, world.time, started_at=now, ended_at=now)  # type: ignore[arg-type]
        for record in records
    ]

    settled = world.run(settle(batch, world.time))  # type: ignore[arg-type]

    after = world.documents()
    changed = {identity for identity in after if after[identity] != before[identity]}
    late = {records[1].id, records[2].id}
    assert changed == {record.id for record in records} - late
    # A cancel by hand looks just like the one that was to be written.
    assert settled.lost == (late if outcome != "cancel" else {records[1].id})
    assert not changed & bystanders
    assert len({after[identity]["state"] for identity in changed}) == 1


@pytest.mark.parametrize("backend", [InMemory, OnMongomock])
def test_each_job_of_a_mixed_batch_ends_by_its_own_outcome(backend: type[InMemory | OnMongomock]) -> None:
    world = World(backend)
    outcomes = sorted(OUTCOMES) * 2
    records = claimed(world, len(outcomes))
    now = world.time.earliest()
    batch = [
        settlement(record, OUTCOMES[outcome], LIMITS, world.time, started_at=now, ended_at=now)  # type: ignore[arg-type]
        for record, outcome in zip(records, outcomes, strict=True)
    ]

    settled = world.run(settle(batch, world.time))  # type: ignore[arg-type]

    ends = {
        "cancel": ("cancelled", 1, 1),
        "complete": ("completed", 1, 0),
        "complete with result": ("completed", 1, 0),
        "fail": ("failed", 1, 1),
        "release": ("enqueued", 0, 1),
        "snooze": ("enqueued", 0, 1),
    }
    stored = world.documents()
    for record, outcome in zip(records, outcomes, strict=True):
        ended = Record(stored[record.id])
        assert (ended.state, ended.attempts, len(ended.events)) == ends[outcome]
        assert (ended.result is not None) is (outcome == "complete with result")
    assert not settled.lost


def claimed_later(world: World) -> set[str]:
    """Claims some more jobs for the same worker, which no outcome is meant for."""
    drafts = [Draft("mail", 1, "default", {}, id=f"mail {number}") for number in range(3)]
    world.run(insert_many(drafts, world.time))  # type: ignore[arg-type]
    world.time.now += 2 * DOUBT
    ids = [draft.id for draft in drafts]
    claim = lifecycle.claim_many(ids, world.time, worker="A", lease=LEASE, patience=10)  # type: ignore[arg-type]
    return {record.id for record in world.run(claim)}


@pytest.mark.parametrize("backend", [InMemory, OnMongomock])
@pytest.mark.parametrize("others_lost", [False, True])
def test_a_worker_learns_with_an_extension_which_jobs_to_cancel(
    backend: type[InMemory | OnMongomock], others_lost: bool
) -> None:
    world = World(backend)
    records = claimed(world, 3)
    asked = world.run(manage.cancel(records[0].id, world.time, reason="wrong file"))  # type: ignore[arg-type]
    if others_lost:
        world.run(manage.remove(records[1].id))
    held = [lifecycle.Held(record.id, record.token) for record in records]

    holding = world.run(lifecycle.extend(held, world.time, lease=LEASE))  # type: ignore[arg-type]

    assert asked is Cancellation.REQUESTED
    assert holding.cancelled == {held[0]: "wrong file"}
    assert holding.lost == ({held[1]} if others_lost else set())


class Recorded(InMemory):
    """Notes the filters of what is asked."""

    def __init__(self, time: Time) -> None:
        super().__init__(time)
        self.filters: list[Any] = []

    def execute(self, command: Command) -> Any:
        if isinstance(command, Find):
            self.filters.append(command.filter)
        elif isinstance(command, Call) and command.method.startswith(("update", "find")):
            self.filters.append(command.args[0])
        return super().execute(command)


def test_what_a_worker_asks_of_its_jobs_it_asks_by_their_ids() -> None:
    world = World(Recorded)
    records = claimed(world, 3)
    world.time.now += LEASE * 1000 + 2 * DOUBT
    taken_over(world, records[1])
    held = [lifecycle.Held(record.id, record.token) for record in records]
    entry = settlement(records[1], OUTCOMES["fail"], LIMITS, world.time)  # type: ignore[arg-type]

    world.run(lifecycle.extend(held, world.time, lease=LEASE))  # type: ignore[arg-type]
    world.run(lifecycle.extend(held[:1], world.time, lease=LEASE))  # type: ignore[arg-type]
    world.run(settle([entry], world.time))  # type: ignore[arg-type]

    filters = world.backend.filters  # type: ignore[attr-defined]
    assert len(filters) >= 8
    assert all("_id" in query for query in filters), filters
