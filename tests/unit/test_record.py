"""What a job tells of itself: its past failures, its history, and how its state looks at a moment."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import axeq
from axeq.documents.failure import FailedAttempt, failure
from axeq.documents.record import Record, event, phase_at
from axeq.rules.outcome import Cancelled, Completed, Failed, Limits, Outcome, Released, Snoozed
from axeq.rules.settlement import settlement
from axeq.words.states import Cause, Phase

from .playing import NOW, ScriptedClock, changed, given_job, held_job, held_record

SECOND = timedelta(seconds=1)


def after(document: dict[str, Any], outcome: Outcome, *, seconds: float, **fields: Any) -> dict[str, Any]:
    """Returns a job's document after an attempt of `fields` that took a second and ended `seconds` from now."""
    clock = ScriptedClock()
    clock.elapsed = seconds
    record = Record({**document, "state": "dequeued", **fields})
    ended = clock.earliest()
    write = settlement(record, outcome, Limits(), clock, started_at=ended - SECOND, ended_at=ended)
    return changed(record.document, write.update)


def told(record: Record) -> list[tuple[str, int]]:
    return [(entry["verb"], entry["attempt"]) for entry in record.timeline]


# Failures


def test_a_job_lists_its_failures_with_the_ends_of_their_tracebacks() -> None:
    long = "first\n" + "line\n" * 1000 + "last"

    document = after(held_job(), Failed(failure("ValueError", "bad colour", long)), seconds=0)
    document = after(document, Failed(failure("Retry", "busy")), seconds=5, attempts=2)
    document = after(
        document,
        Cancelled(Cause.EXHAUSTED, "attempt 3 of 3 failed", failure("KeyError", "'hue'", "trace")),
        seconds=9,
        attempts=3,
    )
    first, *others = Record(document).errors

    assert (first.type, first.message, first.at, first.attempt) == ("ValueError", "bad colour", NOW, 1)
    assert len(first.traceback) == 1024
    assert first.traceback.endswith("line\nlast")
    assert others == [
        FailedAttempt("Retry", "busy", "", NOW + 5 * SECOND, 2),
        FailedAttempt("KeyError", "'hue'", "trace", NOW + 9 * SECOND, 3),
    ]


def test_what_is_no_failure_is_not_listed() -> None:
    document = held_job()
    for outcome in (Snoozed(1.0, reason="later"), Released("shutdown"), Cancelled(Cause.REQUESTED, "not wanted")):
        document = after(document, outcome, seconds=1)

    assert len(Record(document).events) == 3
    assert Record(document).errors == []


def test_failures_of_a_job_that_failed_for_ever_stay_few_and_small() -> None:
    document = held_job()
    for attempt in range(1, 61):
        document = after(document, Failed(failure("E", "x" * 9000, "y" * 90_000)), seconds=attempt, attempts=attempt)

    errors = Record(document).errors

    assert [error.attempt for error in errors] == list(range(11, 61))
    assert sum(len(str(error)) for error in errors) < 200_000


def test_spoilt_events_do_not_keep_a_job_from_telling_the_others() -> None:
    events = ["text", {"verb": "fail", "type": "E"}, {"verb": "fail", "at": NOW, "attempt": 1, "type": "ValueError"}]

    record = Record(given_job(events=events))

    assert [error.type for error in record.errors] == ["ValueError"]
    assert told(record) == [("enqueue", 0), ("fail", 1)]


# History


def test_a_timeline_tells_a_jobs_history_oldest_first() -> None:
    document = after(held_job(), Failed(failure("ValueError", "bad colour")), seconds=2)
    assert told(Record(document)) == [("enqueue", 0), ("start", 1), ("end", 1), ("fail", 1)]

    document = after(document, Snoozed(1.0), seconds=5, attempts=2)
    assert told(Record(document)) == [("enqueue", 0), ("fail", 1), ("start", 2), ("end", 2), ("snooze", 2)]

    document = after(document, Completed(), seconds=9, attempts=2)
    assert told(Record(document)) == [
        ("enqueue", 0),
        ("fail", 1),
        ("snooze", 2),
        ("start", 2),
        ("end", 2),
        ("complete", 2),
    ]
    moments = [entry["at"] for entry in Record(document).timeline]
    assert moments == sorted(moments)


def test_a_job_that_was_replaced_was_enqueued_then() -> None:
    document = after(held_job(created_at=NOW - SECOND), Failed(failure("ValueError", "bad colour")), seconds=2)
    later = NOW + 5 * SECOND
    document["events"].append(event("replace", later, attempt=1))
    document.update(state="enqueued", created_at=later, attempts=0)
    del document["started_at"], document["ended_at"]

    document = after(document, Completed(), seconds=9, attempts=1)

    assert told(Record(document)) == [
        ("fail", 1),
        ("enqueue", 0),
        ("replace", 1),
        ("start", 1),
        ("end", 1),
        ("complete", 1),
    ]


def test_a_job_that_waits_has_only_been_enqueued() -> None:
    job = given_job()

    assert Record(job).timeline == [{"verb": "enqueue", "at": job["created_at"], "attempt": 0}]


# Phases


@pytest.mark.parametrize(
    ("fields", "phase"),
    [
        ({"available_at": NOW + SECOND}, Phase.SCHEDULED),
        ({"available_at": NOW}, Phase.PENDING),
        ({"available_at": NOW, "group": "g"}, Phase.AGGREGATING),
        ({"available_at": NOW + SECOND, "group": "g"}, Phase.SCHEDULED),
        ({"state": "dequeued", "available_at": NOW + SECOND}, Phase.ACTIVE),
        ({"state": "dequeued", "available_at": NOW + SECOND, "group": "g"}, Phase.ACTIVE),
        ({"state": "dequeued", "available_at": NOW}, Phase.ORPHANED),
        ({"state": "failed", "available_at": NOW + SECOND}, Phase.RETRYING),
        ({"state": "failed", "available_at": NOW}, Phase.RETRYING),
        ({"state": "completed", "available_at": None}, Phase.COMPLETED),
        ({"state": "cancelled", "available_at": None, "cause": "requested"}, Phase.CANCELLED),
        *(
            ({"state": "cancelled", "available_at": None, "cause": cause.value}, Phase.DEAD)
            for cause in Cause
            if cause is not Cause.REQUESTED
        ),
    ],
    ids=str,
)
def test_a_phase_is_a_state_seen_at_a_moment(fields: dict[str, Any], phase: Phase) -> None:
    assert phase_at(Record(given_job(**fields)), NOW) is phase


def test_the_priorities_have_the_numbers_of_gue() -> None:
    numbers = [int(priority) for priority in axeq.Priority]

    assert numbers == [-32768, -16384, 0, 16384, 32767]
    assert numbers == sorted(numbers)


def test_a_held_record_is_not_changed_by_what_becomes_of_it() -> None:
    record = held_record()
    before = dict(record.document)

    settlement(record, Failed(failure("E", "m")), Limits(), ScriptedClock())

    assert record.document == before
