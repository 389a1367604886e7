"""What people do with jobs from outside a worker, on canned replies."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from bson.objectid import ObjectId

from axeq import manage
from axeq.errors import DuplicateKey, JobCancelled, JobGone, JobNotFound, LabelTaken, WaitTimeout
from axeq.manage import Cancellation
from axeq.record import Document, Record, failure
from axeq.states import State
from axeq.wire import CONTROL, Call, Command, Find

from .playing import (
    NOW,
    Counted,
    ScriptedClock,
    changed,
    given_job,
    held_job,
    matches,
    play,
    slept,
)

SECOND = timedelta(seconds=1)
YES, NO = Counted(1), Counted(0)


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock()


def completed_job(**fields: Any) -> Document:
    return given_job(**{"state": "completed", "available_at": None, "finished_at": NOW, "attempts": 1, **fields})


def writes(commands: list[Any]) -> list[Call]:
    return [command for command in commands if isinstance(command, Call)]


# Looking


def test_a_job_is_got_by_its_id() -> None:
    document = given_job()

    assert play(manage.get(document["_id"]), [[document]]).result.document == document


def test_a_job_that_does_not_exist_is_named() -> None:
    with pytest.raises(JobNotFound, match="no job 17") as raised:
        play(manage.get(17), [[]])

    assert raised.value.id == 17


def test_find_filters_by_what_is_given_and_pages_from_the_newest() -> None:
    rule = manage.find("default", state=State.FAILED, name="thumbnail", label="a.jpg", limit=10, skip=20)

    (read,) = play(rule, [[given_job()]]).asked

    assert isinstance(read, Find)
    live = {"available_at": {"$exists": True}}
    assert read.filter == {"queue": "default", "state": "failed", "name": "thumbnail", "label": "a.jpg", **live}
    assert (read.sort, read.limit, read.skip) == ([("_id", -1)], 10, 20)
    (everything,) = play(manage.find("default"), [[]]).asked
    assert everything.filter == {"queue": "default"}  # type: ignore[union-attr]


def test_find_brings_ended_jobs_in_the_order_of_their_end() -> None:
    (read,) = play(manage.find("default", state=State.COMPLETED), [[]]).asked

    assert isinstance(read, Find)
    assert read.filter == {"queue": "default", "state": "completed", "finished_at": {"$exists": True}}
    assert read.sort == [("finished_at", -1)]


def test_stats_count_each_state_no_further_than_asked() -> None:
    played = play(manage.stats("default", cap=500), [1, 2, 3, 4, 5])

    assert played.result == dict(zip(State, (1, 2, 3, 4, 5), strict=True))
    assert [call.kwargs for call in writes(played.commands)] == [{"limit": 500}] * 5


# Waiting


def test_a_wait_returns_the_job_once_it_has_completed(clock: ScriptedClock) -> None:
    waiting, done = given_job(), completed_job()

    played = play(manage.wait("id", clock, timeout=None), [[waiting], [held_job()], [done]], clock=clock)

    assert played.result.state is State.COMPLETED


def test_a_wait_that_takes_too_long_says_where_the_job_stands(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(WaitTimeout, match="job id is still enqueued after 3 s") as raised:
        play(manage.wait("id", clock, timeout=3.0), [[given_job()], ...], clock=clock, seen=seen)

    assert isinstance(raised.value, TimeoutError)
    assert slept(seen) == pytest.approx(3.0)


def test_a_wait_of_nothing_looks_once(clock: ScriptedClock) -> None:
    assert play(manage.wait("id", clock, timeout=0.0), [[completed_job()]], clock=clock).result.final
    with pytest.raises(WaitTimeout):
        play(manage.wait("id", clock, timeout=0.0), [[given_job()]], clock=clock)


def test_a_long_wait_asks_at_most_a_few_times_a_second(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(WaitTimeout):
        play(manage.wait("id", clock, timeout=60.0), [[given_job()], ...], clock=clock, seen=seen)

    assert len([command for command in seen if isinstance(command, Find)]) < 60 * 2 + 20


def test_a_wait_for_a_job_that_ends_cancelled_says_why(clock: ScriptedClock) -> None:
    error = failure("ValueError", "bad colour")
    ended = completed_job(state="cancelled", cause="exhausted", error=error)

    with pytest.raises(JobCancelled, match=r"exhausted.*ValueError: bad colour") as raised:
        play(manage.wait("id", clock, timeout=None), [[ended]], clock=clock)

    assert (raised.value.cause, raised.value.error) == ("exhausted", error)


def test_a_wait_tells_a_removed_job_from_one_that_never_was(clock: ScriptedClock) -> None:
    with pytest.raises(JobGone):
        play(manage.wait("id", clock, timeout=None), [[given_job()], []], clock=clock)
    with pytest.raises(JobNotFound) as raised:
        play(manage.wait("id", clock, timeout=None), [[]], clock=clock)

    assert not isinstance(raised.value, JobGone)


# Cancelling


@pytest.mark.parametrize(
    ("document", "at_once"),
    [
        (given_job(), True),
        (given_job(available_at=NOW + 3600 * SECOND), True),
        (given_job(state="failed"), True),
        (held_job(available_at=NOW - SECOND), True),
        (held_job(), False),
        (completed_job(), False),
    ],
    ids=["due", "to come", "failed", "its lease has lapsed", "running", "completed"],
)
def test_only_a_job_that_nobody_holds_is_cancelled_at_once(
    clock: ScriptedClock, document: Document, at_once: bool
) -> None:
    (write,) = writes(play(manage.cancel(document["_id"], clock), [[given_job()], YES], clock=clock).commands)

    assert matches(write.args[0], document) is at_once


def test_a_waiting_job_ends_as_asked_for_with_the_reason(clock: ScriptedClock) -> None:
    document = given_job(label="a.jpg", lost=1)

    played = play(manage.cancel(document["_id"], clock, reason="wrong file"), [[document], YES], clock=clock)

    ended = Record(changed(document, writes(played.commands)[0].args[1]))
    assert played.result is Cancellation.CANCELLED
    assert (ended.state, ended.cause, ended.available_at, ended.lost) == ("cancelled", "requested", None, 0)
    assert ended.finished_at == NOW
    assert ended.expire_at == NOW + timedelta(days=30)
    assert ended.events[-1]["reason"] == "wrong file"


def test_a_running_job_is_asked_to_stop(clock: ScriptedClock) -> None:
    document = held_job()

    rule = manage.cancel(document["_id"], clock, reason="wrong file")
    played = play(rule, [[document], NO, YES], clock=clock)

    _, flag = writes(played.commands)
    flagged = Record(changed(document, flag.args[1]))
    assert played.result is Cancellation.REQUESTED
    assert (flagged.state, flagged.cancel_reason) == ("dequeued", "wrong file")
    assert matches(flag.args[0], document)
    assert not matches(flag.args[0], {**document, "state": "enqueued"})


def test_a_job_that_has_ended_is_left_alone(clock: ScriptedClock) -> None:
    played = play(manage.cancel("id", clock), [[completed_job()]], clock=clock)

    assert played.result is Cancellation.TOO_LATE
    assert writes(played.commands) == []


def test_a_job_given_back_between_the_two_writes_is_still_cancelled(clock: ScriptedClock) -> None:
    played = play(manage.cancel("id", clock), [[held_job()], NO, NO, [given_job()], YES], clock=clock)

    assert played.result is Cancellation.CANCELLED


def test_a_job_that_completes_between_the_two_writes_is_too_late_to_cancel(clock: ScriptedClock) -> None:
    played = play(manage.cancel("id", clock), [[held_job()], NO, NO, [completed_job()]], clock=clock)

    assert played.result is Cancellation.TOO_LATE


def test_a_job_removed_between_the_two_writes_is_not_found(clock: ScriptedClock) -> None:
    with pytest.raises(JobNotFound):
        play(manage.cancel("id", clock), [[held_job()], NO, NO, []], clock=clock)


# Retrying


@pytest.mark.parametrize("state", ["completed", "cancelled", "failed"])
def test_a_retry_by_hand_starts_the_job_over(clock: ScriptedClock, state: str) -> None:
    document = completed_job(
        state=state, cause="exhausted", error=failure("E", "x"), result=1, expire_at=NOW, cancel={"at": NOW}, lost=2
    )

    played = play(manage.retry(document["_id"], clock), [[document], document], clock=clock)

    (write,) = writes(played.commands)
    again = Record(changed(document, write.args[1]))
    assert matches(write.args[0], document)
    assert (again.state, again.attempts, again.lost, again.available_at) == ("enqueued", 0, 0, NOW)
    gone = ("finished_at", "expire_at", "cause", "cancel", "error", "result")
    assert [field for field in gone if field in again.document] == []
    assert again.events[-1]["verb"] == "retry"


@pytest.mark.parametrize("document", [given_job(), held_job()], ids=["waiting", "running"])
def test_a_retry_by_hand_never_touches_a_job_that_waits_or_runs(clock: ScriptedClock, document: Document) -> None:
    played = play(manage.retry(document["_id"], clock), [[completed_job()], completed_job()], clock=clock)

    assert not matches(writes(played.commands)[0].args[0], document)


def test_a_retry_by_hand_of_a_live_job_is_refused(clock: ScriptedClock) -> None:
    document = held_job()

    with pytest.raises(JobNotFound):
        play(manage.retry(document["_id"], clock), [[document], None, [document]], clock=clock)


def test_a_retry_whose_label_was_taken_meanwhile_says_so(clock: ScriptedClock) -> None:
    with pytest.raises(LabelTaken, match=r"a\.jpg"):
        play(manage.retry("id", clock), [[completed_job(label="a.jpg")], DuplicateKey()], clock=clock)


def test_a_retry_of_no_job_is_not_found(clock: ScriptedClock) -> None:
    with pytest.raises(JobNotFound):
        play(manage.retry("id", clock), [[]], clock=clock)


# Removing, pausing, counting


@pytest.mark.parametrize(("deleted", "there"), [(1, True), (0, False)])
def test_a_removal_says_whether_the_job_was_there(deleted: int, there: bool) -> None:
    assert play(manage.remove("id"), [Counted(deleted_count=deleted)]).result is there


def test_a_pause_touches_no_job_and_a_resume_takes_it_back() -> None:
    (pause,) = writes(play(manage.pause("default", "thumbnail"), [None]).commands)
    (resume,) = writes(play(manage.resume("default", "thumbnail"), [None]).commands)

    assert (pause.collection, resume.collection) == (CONTROL, CONTROL)
    assert pause.args[0] == resume.args[0]
    assert pause.kwargs == {"upsert": True}


def test_every_queue_and_task_is_paused_on_its_own() -> None:
    pairs = [("a", None), ("a", "b"), ("b", None), ("a.b", None), ("b", "a")]

    pauses = [writes(play(manage.pause(queue, name), [None]).commands)[0].args[0]["_id"] for queue, name in pairs]

    assert len(set(pauses)) == len(pairs)


def test_the_paused_tasks_of_all_queues_are_read_at_once_by_name() -> None:
    stored = [{"kind": "pause", "queue": "default", "name": name} for name in ("thumbnail", None)]

    played = play(manage.paused(["default", "busy"]), [stored])

    assert played.result == {"default": {"thumbnail", None}, "busy": set()}
    assert matches(played.asked[0].filter, stored[0])  # type: ignore[union-attr]
    assert not matches(played.asked[0].filter, {**stored[0], "queue": "other"})  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        ({}, False),
        ({"name": "strange"}, True),
        ({"version": 2}, True),
        ({"name": "strange", "available_at": NOW + SECOND}, False),
        ({"name": "strange", "available_at": None, "state": "completed"}, False),
        ({"name": "strange", "queue": "other"}, False),
    ],
    ids=str,
)
def test_due_jobs_that_no_task_understands_are_counted(clock: ScriptedClock, fields: Document, counted: bool) -> None:
    (read,) = play(manage.count_unknown("default", {"thumbnail": 1}, clock, cap=10), [[]]).asked

    assert isinstance(read, Find)
    assert read.limit == 10
    assert matches(read.filter, given_job(**fields)) is counted


def test_jobs_that_no_task_understands_are_counted_by_name(clock: ScriptedClock) -> None:
    found = [{"name": "a"}, {"name": "b"}, {"name": "a"}]

    assert play(manage.count_unknown("default", {}, clock, cap=10), [found]).result == {"a": 2, "b": 1}


def test_ids_of_any_kind_are_looked_up_as_they_are() -> None:
    for identity in (ObjectId(), "order-17", 17):
        (read,) = play(manage.get(identity), [[given_job(_id=identity)]]).asked

        assert read.filter == {"_id": identity}  # type: ignore[union-attr]
