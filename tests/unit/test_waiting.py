"""Waiting for jobs to end, on canned replies."""

from __future__ import annotations

from typing import Any

import pytest

from axeq.documents.failure import failure
from axeq.documents.record import Document
from axeq.rules.waiting import wait, wait_many
from axeq.wire.commands import Change, Command, Find
from axeq.words.errors import JobCancelled, JobGone, JobNotFound, StoreUnavailable, WaitTimeout
from axeq.words.states import State

from .playing import NOW, UNANSWERED, ScriptedClock, given_job, held_job, play, slept


def waiting_job(**fields: Any) -> Document:
    return given_job(**{"_id": "id", **fields})


def completed_job(**fields: Any) -> Document:
    ended = {"_id": "id", "state": "completed", "available_at": None, "finished_at": NOW, "attempts": 1}
    return given_job(**{**ended, **fields})


def streams(commands: list[Command]) -> list[Change]:
    return [command for command in commands if isinstance(command, Change)]


def test_a_wait_returns_the_job_once_it_has_completed(clock: ScriptedClock) -> None:
    waiting, done = waiting_job(), completed_job()

    played = play(wait("id", clock, timeout=None), [[waiting], [held_job(_id="id")], [done]], clock=clock)

    assert played.result.state is State.COMPLETED


def test_a_wait_that_takes_too_long_says_where_the_job_stands(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(WaitTimeout, match="job id is still enqueued after 3 s") as raised:
        play(wait("id", clock, timeout=3.0), [[waiting_job()], ...], clock=clock, seen=seen)

    assert isinstance(raised.value, TimeoutError)
    assert slept(seen) == pytest.approx(3.0)


def test_a_wait_of_nothing_looks_once(clock: ScriptedClock) -> None:
    assert play(wait("id", clock, timeout=0.0), [[completed_job()]], clock=clock).result.final
    with pytest.raises(WaitTimeout):
        play(wait("id", clock, timeout=0.0), [[waiting_job()]], clock=clock)


def test_a_long_wait_asks_at_most_a_few_times_a_second(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(WaitTimeout):
        play(wait("id", clock, timeout=60.0), [[waiting_job()], ...], clock=clock, seen=seen)

    assert len([command for command in seen if isinstance(command, Find)]) < 60 * 2 + 20


def test_a_wait_for_a_job_that_ends_cancelled_says_why(clock: ScriptedClock) -> None:
    error = failure("ValueError", "bad colour")
    ended = completed_job(state="cancelled", cause="exhausted", error=error)

    with pytest.raises(JobCancelled, match=r"exhausted.*ValueError: bad colour") as raised:
        play(wait("id", clock, timeout=None), [[ended]], clock=clock)

    assert (raised.value.cause, raised.value.error) == ("exhausted", error)


def test_a_wait_tells_a_removed_job_from_one_that_never_was(clock: ScriptedClock) -> None:
    with pytest.raises(JobGone):
        play(wait("id", clock, timeout=None), [[waiting_job()], []], clock=clock)
    with pytest.raises(JobNotFound) as raised:
        play(wait("id", clock, timeout=None), [[]], clock=clock)

    assert not isinstance(raised.value, JobGone)


# By change streams


def test_a_job_that_ends_at_once_is_not_worth_a_stream(clock: ScriptedClock) -> None:
    played = play(wait("id", clock, timeout=None), [[waiting_job()], [completed_job()]], clock=clock, changes=0)

    assert streams(played.commands) == []


def test_a_longer_wait_opens_a_stream_and_looks_again_once_it_is_open(clock: ScriptedClock) -> None:
    replies = [[waiting_job()]] * 6

    played = play(wait("id", clock, timeout=None), [*replies, [completed_job()]], clock=clock, changes=0)

    assert played.result.state is State.COMPLETED
    assert [stream.ids for stream in streams(played.commands)] == [("id",)]
    assert slept(played.commands) < 0.1


def test_a_wait_by_stream_reads_no_more_often_than_something_changes(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(WaitTimeout, match="after 60 s"):
        play(wait("id", clock, timeout=60.0), [[waiting_job()], ...], clock=clock, seen=seen, changes=0)

    assert sum(stream.seconds for stream in streams(seen)) == pytest.approx(60, abs=8)
    assert len([command for command in seen if isinstance(command, Find)]) < 25


def test_a_job_removed_while_a_stream_is_open_is_gone(clock: ScriptedClock) -> None:
    with pytest.raises(JobGone):
        play(wait("id", clock, timeout=None), [[waiting_job()]] * 7 + [[]], clock=clock, changes=1)


def test_a_server_that_does_not_answer_ends_the_wait(clock: ScriptedClock) -> None:
    with pytest.raises(StoreUnavailable):
        play(wait("id", clock, timeout=None), [[waiting_job()], UNANSWERED], clock=clock)


# Many


def test_many_jobs_come_back_in_the_order_asked_for_whatever_their_end(clock: ScriptedClock) -> None:
    first, second = completed_job(_id=1), completed_job(_id=2, state="cancelled", cause="exhausted")
    replies: list[Any] = [[first, waiting_job(_id=2)], [first], [second]]

    played = play(wait_many([2, 1, 2], clock, timeout=None), replies, clock=clock)

    assert [(record.id, record.state) for record in played.result] == [
        (2, "cancelled"),
        (1, "completed"),
        (2, "cancelled"),
    ]


def test_payloads_of_many_jobs_are_read_only_once_these_have_ended(clock: ScriptedClock) -> None:
    waiting = [waiting_job(_id=number) for number in range(3)]
    done = [completed_job(_id=number) for number in range(3)]

    played = play(wait_many([0, 1, 2], clock, timeout=None), [waiting, waiting, done, done], clock=clock)

    reads = [command for command in played.commands if isinstance(command, Find)]
    assert [read.projection for read in reads] == [{"_id": 1, "state": 1}] * 3 + [None]


def test_a_wait_for_many_that_takes_too_long_names_one_and_counts_the_others(clock: ScriptedClock) -> None:
    waiting = [waiting_job(_id=number) for number in range(3)]

    with pytest.raises(WaitTimeout, match=r"job 0 is still enqueued after 0 s \(2 others") as raised:
        play(wait_many([0, 1, 2], clock, timeout=0.0), [waiting], clock=clock)

    assert raised.value.id == 0


def test_of_many_jobs_the_one_that_is_not_there_is_named(clock: ScriptedClock) -> None:
    waiting = [waiting_job(_id=number) for number in range(2)]

    with pytest.raises(JobNotFound, match="no job 7"):
        play(wait_many([0, 7], clock, timeout=None), [waiting[:1]], clock=clock)
    with pytest.raises(JobGone, match="job 1 was removed"):
        play(wait_many([0, 1], clock, timeout=None), [waiting, waiting[:1]], clock=clock)


def test_more_jobs_than_a_stream_is_for_are_read_in_pages_and_polled(clock: ScriptedClock) -> None:
    ids = list(range(1500))
    seen: list[Command] = []

    def answer(command: Any) -> list[Document]:
        return [waiting_job(_id=identity) for identity in command.filter["_id"]["$in"]]

    with pytest.raises(WaitTimeout, match="1499 others"):
        play(wait_many(ids, clock, timeout=1.0), [answer, ...], clock=clock, seen=seen, changes=0)

    sizes = {len(command.filter["_id"]["$in"]) for command in seen if isinstance(command, Find)}
    assert sizes == {1000, 500}
    assert streams(seen) == []


def test_to_wait_for_nothing_is_over_at_once(clock: ScriptedClock) -> None:
    assert play(wait_many([], clock, timeout=None), []).result == []
