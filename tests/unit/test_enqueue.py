"""The enqueue on canned replies: stored once, or an honest error."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from bson.objectid import ObjectId

from axeq.documents.record import Record
from axeq.rules.batch import insert_many
from axeq.rules.enqueue import PATIENCE, Draft, Stored, insert
from axeq.wire.wire import Call, Command, Find
from axeq.words.errors import DuplicateKey, EnqueueUnknown, LabelTaken, StoreUnavailable

from .playing import DOUBT, NOW, UNANSWERED, UNSENT, ScriptedClock, asked, given_job, matches, play, slept

SECOND = timedelta(seconds=1)


def draft(**fields: Any) -> Draft:
    return Draft(name="thumbnail", version=1, queue="default", data={"image": "a.jpg"}, **fields)


def stored_as(find: Find) -> Any:
    """Returns the job of an id as an enqueue of this very moment stores it."""
    return given_job(_id=find.filter["_id"], created_at=NOW, state="completed", available_at=None)


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
    assert played.result == Stored(call.args[0], created=True)


def test_an_unanswered_insert_is_sent_again_with_the_same_id(clock: ScriptedClock) -> None:
    played = play(insert(draft(), clock), [UNANSWERED, UNSENT, None], clock=clock)

    ids = {document["_id"] for document in inserted(played.commands)}
    assert ids == {played.result.document["_id"]}
    assert len(played.asked) == 3


def test_a_duplicate_key_after_a_lost_reply_is_the_job_itself(clock: ScriptedClock) -> None:
    running = given_job(state="dequeued", created_at=NOW)

    played = play(insert(draft(), clock), [UNANSWERED, DuplicateKey(), [running]], clock=clock)

    lookup = played.asked[-1]
    assert isinstance(lookup, Find)
    assert lookup.filter == {"_id": inserted(played.commands)[0]["_id"]}
    assert played.result == Stored(running, created=True)


def test_an_enqueue_with_the_id_of_an_existing_job_returns_that_one(clock: ScriptedClock) -> None:
    existing = given_job(_id="order-17", state="completed", available_at=None)

    played = play(insert(draft(id="order-17"), clock), [DuplicateKey(), [existing]], clock=clock)

    assert played.result == Stored(existing, created=False)


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

    assert played.result.document["label"] == "a.jpg"


def test_a_conflict_that_is_to_be_ignored_returns_the_job_that_has_the_label(clock: ScriptedClock) -> None:
    holder = given_job(label="a.jpg", state="dequeued")
    rule = insert(draft(label="a.jpg", on_conflict="ignore"), clock)

    played = play(rule, [DuplicateKey(), [], [holder]], clock=clock)

    assert played.result == Stored(holder, created=False)


def test_a_job_of_an_unanswered_insert_is_ones_own_though_conflicts_are_to_be_ignored(clock: ScriptedClock) -> None:
    rule = insert(draft(label="a.jpg", on_conflict="ignore"), clock)

    played = play(rule, [UNANSWERED, DuplicateKey(), lambda find: [stored_as(find)]], clock=clock)

    assert played.result.created is True
    assert played.result.document["_id"] == inserted(played.commands)[0]["_id"]


def test_an_index_that_axeq_does_not_know_is_told_as_such_in_the_end(clock: ScriptedClock) -> None:
    def refusing(command: Command) -> Any:
        if isinstance(command, Find):
            return []
        raise DuplicateKey

    with pytest.raises(DuplicateKey):
        play(insert(draft(), clock), [refusing, ...], clock=clock)


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
