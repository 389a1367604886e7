"""The enqueue that changes the job with its label in place, on canned replies."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from axeq.rules.enqueue import Draft, Stored
from axeq.rules.replacement import replace
from axeq.wire.wire import Call, Command, Find
from axeq.words.errors import DuplicateKey, EnqueueUnknown, LabelTaken

from .playing import NOW, UNANSWERED, UNSENT, ScriptedClock, changed, given_job, held_job, matches, play

LATER = NOW + timedelta(seconds=30)


def draft(**fields: Any) -> Draft:
    terms: Any = {"label": "a", "on_conflict": "replace", **fields}
    return Draft(name="thumbnail", version=2, queue="urgent", data={"image": "new.jpg"}, **terms)


def waiting(**fields: Any) -> dict[str, Any]:
    return given_job(label="a", **fields)


def carried_out(document: dict[str, Any]) -> Any:
    """Answers a find-and-modify as a server that has `document` does."""

    def reply(call: Call) -> Any:
        query, update = call.args
        return changed(document, update) if matches(query, document) else None

    return reply


def calls(commands: list[Command]) -> list[Call]:
    return [command for command in commands if isinstance(command, Call)]


def test_a_free_label_is_inserted(clock: ScriptedClock) -> None:
    played = play(replace(draft(), clock), [[], None], clock=clock)

    (call,) = calls(played.commands)
    assert call.method == "insert_one"
    assert played.result == Stored(call.args[0], created=True)


def test_a_waiting_job_becomes_what_the_enqueue_says_but_for_its_id_and_its_events(clock: ScriptedClock) -> None:
    before = waiting(
        state="failed",
        attempts=7,
        deadline=LATER,
        timeout=5.0,
        error={"type": "E"},
        checkpoint=3,
        claim={"token": 1},
        events=[{"verb": "fail"}],
    )

    played = play(replace(draft(priority=4, delay=10.0), clock), [[before], carried_out(before)], clock=clock)

    after = played.result.document
    expected = draft(priority=4, delay=10.0).document(clock, clock.earliest())  # type: ignore[arg-type]
    assert played.result.created is False
    assert [entry["verb"] for entry in after.pop("events")] == ["fail", "replace"]
    assert after == {**expected, "_id": before["_id"]}


@pytest.mark.parametrize(
    ("document", "replaced"),
    [
        (waiting(), True),
        (waiting(state="failed", available_at=LATER), True),
        (held_job(label="a"), False),
        (held_job(label="a", available_at=NOW - timedelta(seconds=1)), True),
    ],
    ids=["waiting", "failed", "running", "its lease has lapsed"],
)
def test_only_a_job_that_runs_is_left_alone(clock: ScriptedClock, document: dict[str, Any], replaced: bool) -> None:
    seen: list[Command] = []
    if replaced:
        assert play(replace(draft(), clock), [[document], carried_out(document)], clock=clock).result.created is False
        return

    with pytest.raises(LabelTaken) as raised:
        play(replace(draft(), clock), [[document]], clock=clock, seen=seen)

    assert raised.value.existing_id == document["_id"]
    assert calls(seen) == []


@pytest.mark.parametrize(
    "moved",
    [
        {"state": "dequeued", "available_at": LATER},
        {"available_at": LATER},
        {"created_at": NOW},
        {"state": "completed", "available_at": None},
    ],
    ids=["claimed", "snoozed", "replaced", "completed"],
)
def test_a_job_that_has_changed_since_it_was_read_is_not_written(clock: ScriptedClock, moved: Any) -> None:
    before = waiting()
    after = {key: value for key, value in {**before, **moved}.items() if value is not None}

    played = play(replace(draft(), clock), [[before], carried_out(after), [], None], clock=clock)

    assert played.result.created is True  # it looked again, and found the label free


def test_a_label_taken_between_the_look_and_the_insert_is_looked_at_again(clock: ScriptedClock) -> None:
    holder = waiting()

    played = play(replace(draft(), clock), [[], DuplicateKey(), [holder], carried_out(holder)], clock=clock)

    assert played.result.document["_id"] == holder["_id"]


# Replies that are lost


def replaced_unanswered(clock: ScriptedClock, before: dict[str, Any], after: Any, **fields: Any) -> Any:
    """Plays a replacement that is carried out without an answer, after which the job is `after(job)`."""
    stored: list[dict[str, Any]] = []

    def lost(call: Call) -> Any:
        stored.append(changed(before, call.args[1]))
        raise UNANSWERED

    return play(replace(draft(**fields), clock), [[before], lost, lambda _: after(stored[0])], clock=clock)


@pytest.mark.parametrize("state", ["enqueued", "dequeued", "completed"])
def test_a_replacement_whose_answer_was_lost_is_known_by_its_stamp_whatever_became_of_the_job(
    clock: ScriptedClock, state: str
) -> None:
    before = waiting()

    played = replaced_unanswered(clock, before, lambda job: [{**job, "state": state}])

    assert played.result.document["_id"] == before["_id"]
    assert played.result.document["state"] == state
    assert len(calls(played.commands)) == 1


def test_a_replacement_that_did_not_happen_is_sent_again(clock: ScriptedClock) -> None:
    before = waiting()

    played = play(replace(draft(), clock), [[before], UNANSWERED, [before], [before], carried_out(before)], clock=clock)

    assert played.result.document["data"] == {"image": "new.jpg"}


def test_a_job_that_is_gone_after_an_unanswered_replacement_leaves_it_unknown(clock: ScriptedClock) -> None:
    before = waiting()

    with pytest.raises(EnqueueUnknown) as raised:
        replaced_unanswered(clock, before, lambda _: [])

    assert raised.value.ids == [before["_id"]]


def test_a_replacement_of_a_job_kept_for_less_than_a_minute_is_not_sent_twice(clock: ScriptedClock) -> None:
    before, seen = waiting(), []  # type: tuple[dict[str, Any], list[Command]]

    with pytest.raises(EnqueueUnknown) as raised:
        play(replace(draft(retention=1.0), clock), [[before], UNANSWERED], clock=clock, seen=seen)

    assert raised.value.ids == [before["_id"]]


def test_an_insert_whose_answer_was_lost_is_found_though_its_job_has_ended(clock: ScriptedClock) -> None:
    def ended(find: Find) -> Any:
        return [given_job(_id=find.filter["_id"], created_at=NOW, state="completed", available_at=None)]

    played = play(replace(draft(), clock), [[], UNANSWERED, ended], clock=clock)

    assert played.result.created is True
    assert played.result.document["state"] == "completed"


def test_a_look_that_fails_is_repeated(clock: ScriptedClock) -> None:
    holder = waiting()

    played = play(replace(draft(), clock), [UNSENT, [holder], carried_out(holder)], clock=clock)

    assert played.result.document["_id"] == holder["_id"]
