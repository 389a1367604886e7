"""What people do with jobs from outside a worker, on canned replies."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from bson.objectid import ObjectId

from axeq.documents.failure import failure
from axeq.documents.record import Document, Record
from axeq.rules import manage
from axeq.wire.wire import CONTROL, Call, Find
from axeq.words.errors import DuplicateKey, JobNotFound, LabelTaken
from axeq.words.states import Cancellation, State

from .playing import (
    NOW,
    Counted,
    ScriptedClock,
    changed,
    given_job,
    held_job,
    matches,
    play,
)

SECOND = timedelta(seconds=1)
YES, NO = Counted(1), Counted(0)


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


def test_find_compares_fields_of_the_payload_by_value() -> None:
    (read,) = play(manage.find("default", data={"user.id": 7, "tag": {"$gt": 1}}), [[]]).asked

    assert isinstance(read, Find)
    assert read.filter == {"queue": "default", "data.user.id": {"$eq": 7}, "data.tag": {"$eq": {"$gt": 1}}}


@pytest.mark.parametrize(
    ("fields", "dead"),
    [
        ({}, True),
        ({"cause": "handler"}, True),
        ({"cause": "requested"}, False),
        ({"state": "completed", "cause": None}, False),
        ({"name": "other"}, False),
        ({"queue": "other"}, False),
    ],
    ids=str,
)
def test_dead_are_the_jobs_that_ended_cancelled_though_nobody_asked(fields: Document, dead: bool) -> None:
    (read,) = play(manage.dead("default", name="thumbnail", limit=5, skip=10), [[]]).asked

    assert isinstance(read, Find)
    assert matches(read.filter, completed_job(**{"state": "cancelled", "cause": "exhausted", **fields})) is dead
    assert (read.sort, read.limit, read.skip) == ([("finished_at", -1)], 5, 10)


def test_clearing_the_dead_goes_on_until_none_is_left_and_spares_the_retried(clock: ScriptedClock) -> None:
    replies = [[{"_id": 1}, {"_id": 2}], Counted(deleted_count=1), [{"_id": 3}], Counted(deleted_count=1), []]

    played = play(manage.clear_dead("default", clock), replies, clock=clock)

    assert played.result == 2
    first = writes(played.commands)[0].args[0]
    assert matches(first, completed_job(_id=1, state="cancelled", cause="exhausted"))
    assert not matches(first, given_job(_id=1))
    assert not matches(first, completed_job(_id=4, state="cancelled", cause="exhausted"))
    assert not matches(first, completed_job(_id=1, state="cancelled", cause="exhausted", finished_at=NOW + SECOND))


def test_stats_by_task_count_every_state_no_further_than_asked() -> None:
    groups = [[{"_id": "b", "count": 2}, {"_id": "a", "count": 1}], [], [{"_id": "a", "count": 5}], [], []]

    played = play(manage.stats_by_task("default", cap=500), groups)

    none = dict.fromkeys(State, 0)
    assert played.result == {
        "a": {**none, State.ENQUEUED: 1, State.COMPLETED: 5},
        "b": {**none, State.ENQUEUED: 2},
    }
    assert list(played.result) == ["a", "b"]
    assert [call.args[0][1] for call in writes(played.commands)] == [{"$limit": 500}] * 5


def test_stats_count_each_state_no_further_than_asked() -> None:
    played = play(manage.stats("default", cap=500), [1, 2, 3, 4, 5])

    assert played.result == dict(zip(State, (1, 2, 3, 4, 5), strict=True))
    assert [call.kwargs for call in writes(played.commands)] == [{"limit": 500}] * 5


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
        state=state,
        cause="exhausted",
        error=failure("E", "x"),
        result=1,
        expire_at=NOW,
        cancel={"at": NOW},
        lost=2,
        checkpoint={"page": 3},
        progress=0.5,
        status="half",
    )

    played = play(manage.retry(document["_id"], clock), [[document], document], clock=clock)

    (write,) = writes(played.commands)
    again = Record(changed(document, write.args[1]))
    assert matches(write.args[0], document)
    assert (again.state, again.attempts, again.lost, again.available_at) == ("enqueued", 0, 0, NOW)
    ended = ("finished_at", "expire_at", "cause", "cancel", "error", "result")
    gone = (*ended, "checkpoint", "progress", "status")
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


# Many at once


def test_jobs_without_a_label_are_retried_in_one_command(clock: ScriptedClock) -> None:
    documents = [completed_job(_id=number, attempts=number) for number in range(3)]

    played = play(manage.retry_many([0, 1, 2, 1], clock), [documents, Counted(3)], clock=clock)

    (write,) = writes(played.commands)
    assert played.result == {}
    assert (write.method, write.kwargs) == ("bulk_write", {"ordered": False})
    again = [Record(changed(*pair)) for pair in zip(documents, (each.update for each in write.args[0]), strict=True)]
    assert {(record.state, record.attempts) for record in again} == {("enqueued", 0)}
    assert [record.events[-1]["attempt"] for record in again] == [0, 1, 2]
    assert not matches(write.args[0][0].filter, {**documents[0], "state": "dequeued"})


def test_of_many_each_job_that_cannot_be_retried_is_reported_with_its_reason(clock: ScriptedClock) -> None:
    free, taken = completed_job(_id="free", label="one"), completed_job(_id="taken", label="two")
    documents = [free, held_job(_id="running"), taken]
    replies = [documents, [free], free, [taken], DuplicateKey()]

    played = play(manage.retry_many(["free", "missing", "running", "taken"], clock), replies, clock=clock)

    assert {identity: type(error) for identity, error in played.result.items()} == {
        "missing": JobNotFound,
        "running": JobNotFound,
        "taken": LabelTaken,
    }
    assert "is dequeued" in str(played.result["running"])


def test_a_job_that_escaped_the_command_for_many_is_tried_alone(clock: ScriptedClock) -> None:
    one, two, three = (completed_job(_id=number) for number in (1, 2, 3))
    replies = [[one, two, three], Counted(1), [held_job(_id=1), two], [two], two, []]

    played = play(manage.retry_many([1, 2, 3], clock), replies, clock=clock)

    assert {identity: str(error) for identity, error in played.result.items()} == {3: str(JobNotFound(3))}


def test_many_jobs_are_removed_in_pages() -> None:
    played = play(manage.remove_many(range(1500)), [Counted(deleted_count=1000), Counted(deleted_count=3)])

    assert played.result == 1003
    assert [len(call.args[0]["_id"]["$in"]) for call in writes(played.commands)] == [1000, 500]


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
