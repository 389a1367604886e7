"""The enqueue on canned replies: stored once, or an honest error."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from bson.objectid import ObjectId

from axeq.enqueue import PATIENCE, Draft, insert, insert_joined, insert_many
from axeq.errors import DuplicateKey, EnqueueUnknown, LabelTaken, StoreUnavailable
from axeq.record import Record
from axeq.wire import Call, Command, Find

from .playing import DOUBT, NOW, UNANSWERED, UNSENT, ScriptedClock, asked, given_job, matches, play, slept

SECOND = timedelta(seconds=1)


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock()


def draft(**fields: Any) -> Draft:
    return Draft(name="thumbnail", version=1, queue="default", data={"image": "a.jpg"}, **fields)


def inserted(commands: list[Command]) -> list[Any]:
    return [command.args[0] for command in commands if isinstance(command, Call)]


# The document


def test_a_new_job_is_due_at_once_and_has_no_field_that_says_nothing(clock: ScriptedClock) -> None:
    document = draft().document(clock, clock.earliest())

    assert isinstance(document.pop("_id"), ObjectId)
    assert document == {
        "name": "thumbnail",
        "queue": "default",
        "version": 1,
        "data": {"image": "a.jpg"},
        "state": "enqueued",
        "priority": 0,
        "created_at": NOW,
        "available_at": NOW,
        "attempts": 0,
        "lost": 0,
    }


def test_the_group_of_a_job_is_a_field_of_its_own(clock: ScriptedClock) -> None:
    document = draft(group="customer-7").document(clock, clock.earliest())

    assert document["group"] == "customer-7"
    assert Record(document).group == "customer-7"


def test_a_delay_counts_from_the_upper_bound_of_server_time(clock: ScriptedClock) -> None:
    assert draft(delay=5.0).document(clock, clock.earliest())["available_at"] == NOW + DOUBT + 5 * SECOND


def test_a_moment_to_run_at_is_kept_and_one_in_the_past_means_now(clock: ScriptedClock) -> None:
    later = datetime(2027, 1, 1, 8, 0, tzinfo=timezone(timedelta(hours=2)))

    assert draft(run_at=later).document(clock, clock.earliest())["available_at"] == datetime(
        2027, 1, 1, 6, 0, tzinfo=UTC
    )
    assert draft(run_at=NOW - 60 * SECOND).document(clock, clock.earliest())["available_at"] == NOW


def test_a_job_is_never_due_before_the_moment_that_was_asked_for(clock: ScriptedClock) -> None:
    later = NOW + timedelta(microseconds=60_000_900)

    assert draft(run_at=later).document(clock, clock.earliest())["available_at"] >= later


@pytest.mark.parametrize(
    "fields",
    [{"delay": 0.0004}, {"deadline": datetime(2027, 1, 1, 8, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))}],
    ids=["delay", "deadline"],
)
def test_the_job_that_enqueue_returns_has_its_times_as_they_are_stored(
    clock: ScriptedClock, fields: dict[str, Any]
) -> None:
    record = Record(draft(**fields).document(clock, clock.earliest()))

    moments = [moment for moment in (record.available_at, record.deadline) if moment is not None]
    assert all(moment.microsecond % 1000 == 0 for moment in moments)
    assert all(moment.tzinfo is UTC for moment in moments)


# One job


def test_an_insert_that_was_confirmed_returns_the_job(clock: ScriptedClock) -> None:
    played = play(insert(draft(), clock), [None], clock=clock)

    (call,) = played.asked
    assert isinstance(call, Call)
    assert call.method == "insert_one"
    assert played.result == call.args[0]


def test_an_unanswered_insert_is_sent_again_with_the_same_id(clock: ScriptedClock) -> None:
    played = play(insert(draft(), clock), [UNANSWERED, UNSENT, None], clock=clock)

    ids = {document["_id"] for document in inserted(played.commands)}
    assert ids == {played.result["_id"]}
    assert len(played.asked) == 3


def test_a_duplicate_key_after_a_lost_reply_is_the_job_itself(clock: ScriptedClock) -> None:
    running = given_job(state="dequeued")

    played = play(insert(draft(), clock), [UNANSWERED, DuplicateKey(), [running]], clock=clock)

    lookup = played.asked[-1]
    assert isinstance(lookup, Find)
    assert lookup.filter == {"_id": inserted(played.commands)[0]["_id"]}
    assert played.result == running


def test_an_enqueue_with_the_id_of_an_existing_job_returns_that_one(clock: ScriptedClock) -> None:
    existing = given_job(_id="order-17", state="completed", available_at=None)

    played = play(insert(draft(id="order-17"), clock), [DuplicateKey(), [existing]], clock=clock)

    assert played.result == existing


def test_a_label_that_is_taken_names_its_holder(clock: ScriptedClock) -> None:
    holder, seen = ObjectId(), []  # type: tuple[ObjectId, list[Command]]

    with pytest.raises(LabelTaken) as raised:
        play(insert(draft(label="a.jpg"), clock), [DuplicateKey(), [], [{"_id": holder}]], clock=clock, seen=seen)

    lookup = asked(seen)[-1]
    assert isinstance(lookup, Find)
    assert raised.value.existing_id == holder
    assert (raised.value.name, raised.value.label, raised.value.aborted) == ("thumbnail", "a.jpg", False)
    assert str(holder) in str(raised.value)
    assert matches(lookup.filter, given_job(label="a.jpg"))
    assert not matches(lookup.filter, given_job(label="a.jpg", state="completed", available_at=None))
    assert not matches(lookup.filter, given_job(label="a.jpg", name="other"))


def test_a_label_whose_holder_has_just_ended_is_had_after_all(clock: ScriptedClock) -> None:
    played = play(insert(draft(label="a.jpg"), clock), [DuplicateKey(), [], [], None], clock=clock)

    assert played.result["label"] == "a.jpg"


def test_a_job_without_a_label_never_has_its_label_taken(clock: ScriptedClock) -> None:
    with pytest.raises(EnqueueUnknown):
        play(insert(draft(), clock), [UNANSWERED, DuplicateKey(), [], ...], clock=clock)


def test_a_server_that_never_answers_leaves_the_enqueue_unknown_with_its_id(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(EnqueueUnknown) as raised:
        play(insert(draft(), clock), [UNANSWERED, ...], clock=clock, seen=seen)

    (identity,) = raised.value.ids
    assert identity == inserted(seen)[0]["_id"]
    assert str(identity) in str(raised.value)
    assert PATIENCE - 3 < slept(seen) <= PATIENCE


def test_one_unanswered_try_among_unsent_ones_is_enough_to_leave_it_unknown(clock: ScriptedClock) -> None:
    with pytest.raises(EnqueueUnknown):
        play(insert(draft(), clock), [UNSENT, UNANSWERED, UNSENT, ...], clock=clock)


def test_a_server_that_cannot_be_reached_has_certainly_stored_nothing(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(StoreUnavailable):
        play(insert(draft(), clock), [UNSENT, ...], clock=clock, seen=seen)

    assert PATIENCE - 3 < slept(seen) <= PATIENCE


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_a_job_kept_for_less_than_a_minute_is_never_sent_twice(clock: ScriptedClock, many: bool) -> None:
    short, seen = draft(retention=59.0), []  # type: tuple[Draft, list[Command]]
    rule: Any = insert_many([draft(), short], clock) if many else insert(short, clock)

    with pytest.raises(EnqueueUnknown):
        play(rule, [UNANSWERED], clock=clock, seen=seen)

    assert len(seen) == 1


def test_a_job_kept_for_less_than_a_minute_is_sent_again_while_nothing_has_left(clock: ScriptedClock) -> None:
    played = play(insert(draft(retention=0.0), clock), [UNSENT, UNSENT, None], clock=clock)

    assert len(played.asked) == 3


# Many jobs


def test_many_jobs_go_in_one_command_and_come_back_in_order(clock: ScriptedClock) -> None:
    drafts = [draft(id=number) for number in range(3)]

    played = play(insert_many(drafts, clock), [None], clock=clock)

    (call,) = played.asked
    assert isinstance(call, Call)
    assert (call.method, call.kwargs) == ("insert_many", {"ordered": False})
    assert [document["_id"] for document in played.result] == [0, 1, 2]


def test_a_repeated_batch_completes_what_the_lost_one_stored_in_part(clock: ScriptedClock) -> None:
    played = play(insert_many([draft(), draft()], clock), [UNANSWERED, DuplicateKey([0])], clock=clock)

    first, second = inserted(played.commands)
    assert first == second == played.result


def test_a_batch_that_stays_unanswered_names_every_id(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(EnqueueUnknown) as raised:
        play(insert_many([draft(), draft()], clock), [UNANSWERED, ...], clock=clock, seen=seen)

    assert raised.value.ids == [document["_id"] for document in inserted(seen)[0]]


# In the caller's transaction


def test_in_a_transaction_a_label_is_looked_up_before_anything_is_written(clock: ScriptedClock) -> None:
    holder, seen = ObjectId(), []  # type: tuple[ObjectId, list[Command]]

    with pytest.raises(LabelTaken) as raised:
        play(insert_joined([draft(label="a.jpg")], clock), [[{"_id": holder}]], seen=seen)

    assert (raised.value.existing_id, raised.value.aborted) == (holder, False)
    assert inserted(seen) == []


def test_in_a_transaction_a_free_label_is_inserted(clock: ScriptedClock) -> None:
    played = play(insert_joined([draft(label="a.jpg"), draft()], clock), [[], None])

    assert inserted(played.commands) == [played.result]


def test_a_label_taken_in_between_says_that_the_transaction_is_aborted(clock: ScriptedClock) -> None:
    drafts = [draft(), draft(label="a.jpg")]

    with pytest.raises(LabelTaken, match="the transaction is aborted") as raised:
        play(insert_joined(drafts, clock), [[], DuplicateKey([1])])

    assert (raised.value.label, raised.value.aborted) == ("a.jpg", True)


def test_in_a_transaction_nothing_is_sent_a_second_time(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(StoreUnavailable):
        play(insert_joined([draft()], clock), [UNANSWERED], seen=seen)

    assert len(seen) == 1


def test_in_a_transaction_no_jobs_cost_no_command(clock: ScriptedClock) -> None:
    assert play(insert_joined([], clock), []).result == []
