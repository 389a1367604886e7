"""A job's life in a worker's hands, on canned replies.

The fence is what the contract's third clause rests on. Without any one part of it in `Settlement.write` (the id,
the token, the state), `test_no_outcome_changes_a_job_that_is_no_longer_held` fails for all five outcomes; without it
in `extend` and in the recovery of a claim, the tests of those fail.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson.objectid import ObjectId

from axeq.documents.failure import failure
from axeq.documents.record import Document, Record
from axeq.rules.due import Candidate, due_page, next_due, understood
from axeq.rules.enqueue import PATIENCE
from axeq.rules.lifecycle import Held, Holding, claim_many, claim_one, extend, flags
from axeq.rules.outcome import Cancelled, Completed, Failed, Limits, Outcome, Released, Snoozed
from axeq.rules.settlement import Settlement, command_of, expiry, settle, settlement
from axeq.wire.wire import Call, Command, Find
from axeq.words.backoff import CLASSIC
from axeq.words.errors import StoreUnavailable
from axeq.words.states import Cause

from .playing import (
    DOUBT,
    NOW,
    UNANSWERED,
    UNSENT,
    Counted,
    ScriptedClock,
    changed,
    given_job,
    held_job,
    held_record,
    matches,
    play,
    slept,
    with_token_of,
)

LEASE = 30.0
SECOND = timedelta(seconds=1)
ERROR = failure("ValueError", "bad colour")

OUTCOMES: dict[str, Outcome] = {
    "complete": Completed({"path": "b.jpg"}),
    "fail": Failed(ERROR, delay=4.0),
    "cancel": Cancelled(Cause.HANDLER, "not wanted"),
    "snooze": Snoozed(delay=60.0),
    "release": Released("shutdown"),
}
GIVING_WAY = ("fail", "snooze", "release")

every_outcome = pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES.keys())
giving_way = pytest.mark.parametrize("outcome", [OUTCOMES[verb] for verb in GIVING_WAY], ids=GIVING_WAY)


def claiming(*ids: Any, clock: ScriptedClock, patience: float = 10.0) -> Any:
    return claim_many(list(ids), clock, worker="host:1:abc", lease=LEASE, patience=patience)


def claiming_one(document: Document, clock: ScriptedClock) -> Any:
    return claim_one(Candidate.of(document), clock, worker="host:1:abc", lease=LEASE, patience=10.0)


def first_call(rule: Any, replies: list[Any], clock: ScriptedClock) -> Call:
    command = play(rule, replies, clock=clock).asked[0]
    assert isinstance(command, Call)
    return command


def settling(record: Record, outcome: Outcome, clock: ScriptedClock, limits: Limits | None = None) -> Settlement:
    return settlement(record, outcome, limits or Limits(), clock, started_at=NOW - 2 * SECOND, ended_at=NOW - SECOND)


def settled_document(document: Document, outcome: Outcome, limits: Limits | None = None) -> Document:
    return changed(document, settling(Record(document), outcome, ScriptedClock(), limits).update)


# Looking for due jobs


def test_a_page_of_due_jobs_comes_by_priority_then_due_time_and_is_bounded() -> None:
    document = given_job(priority=3)

    played = play(due_page("default", {"thumbnail": 1}, NOW, limit=40), [[document]])

    (read,) = played.asked
    assert isinstance(read, Find)
    assert read.sort == [("priority", 1), ("available_at", 1)]
    assert read.limit == 40
    assert played.result == [Candidate(document["_id"], "thumbnail", 3, document["available_at"], 1, 0)]


@pytest.mark.parametrize(
    ("fields", "due"),
    [
        ({}, True),
        ({"available_at": NOW}, True),
        ({"available_at": NOW + timedelta(milliseconds=1)}, False),
        ({"available_at": None, "state": "completed"}, False),
        ({"state": "dequeued"}, True),
        ({"queue": "other"}, False),
        ({"name": "other"}, False),
        ({"version": 2}, False),
    ],
    ids=str,
)
def test_a_page_holds_what_is_due_and_understood_here(fields: Document, due: bool) -> None:
    (read,) = play(due_page("default", {"thumbnail": 1}, NOW, limit=40), [[]]).asked

    assert isinstance(read, Find)
    assert matches(read.filter, given_job(**fields)) is due


def test_each_task_of_a_shared_page_is_held_to_its_own_version() -> None:
    documents = [given_job(name="old", version=2), given_job(name="new", version=2)]

    played = play(due_page("default", {"old": 1, "new": 2}, NOW, limit=40), [documents])

    assert [candidate.name for candidate in understood(played.result, {"old": 1, "new": 2})] == ["new"]


def test_the_next_due_time_is_the_first_still_to_come(clock: ScriptedClock) -> None:
    later = NOW + 60 * SECOND

    played = play(next_due("default", ["thumbnail"], clock.earliest()), [[{"available_at": later}]])

    (read,) = played.asked
    assert isinstance(read, Find)
    assert played.result == later
    assert read.sort == [("available_at", 1)]
    assert read.limit == 1
    assert not matches(read.filter, given_job(available_at=NOW))


def test_without_a_job_to_come_there_is_no_next_due_time(clock: ScriptedClock) -> None:
    assert play(next_due("default", ["thumbnail"], clock.earliest()), [[]]).result is None


# Claiming


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ({}, True),
        ({"state": "failed", "attempts": 3}, True),
        ({"available_at": NOW}, True),
        ({"available_at": NOW + timedelta(milliseconds=1)}, False),
        ({"available_at": None, "state": "completed"}, False),
        ({"state": "dequeued", "lost": 1}, False),
        ({"lost": 1}, False),
    ],
    ids=str,
)
def test_a_batch_claims_what_is_due_by_the_lower_bound_and_never_lost_a_lease(
    clock: ScriptedClock, fields: Document, taken: bool
) -> None:
    document = given_job(**fields)

    claim = first_call(claiming(document["_id"], clock=clock), [Counted(0)], clock)

    assert matches(claim.args[0], document) is taken
    assert not matches(claim.args[0], given_job(**fields))


def test_a_claim_counts_an_attempt_and_a_lease_and_hands_the_job_to_its_worker(clock: ScriptedClock) -> None:
    document = given_job(attempts=2)

    claim = first_call(claiming(document["_id"], clock=clock), [Counted(0)], clock)
    claimed = Record(changed(document, claim.args[1]))

    assert (claimed.state, claimed.attempts, claimed.lost, claimed.worker) == ("dequeued", 3, 1, "host:1:abc")
    assert claimed.available_at == NOW + DOUBT + LEASE * SECOND


def test_every_claim_has_a_token_of_its_own(clock: ScriptedClock) -> None:
    claims = [first_call(claiming("id", clock=clock), [Counted(0)], clock) for _ in range(2)]

    first, second = (claim.args[1]["$set"]["claim"]["token"] for claim in claims)
    assert first != second


def test_a_batch_returns_only_what_carries_its_token(clock: ScriptedClock) -> None:
    mine, theirs = given_job(), held_job()

    played = play(claiming(mine["_id"], theirs["_id"], clock=clock), [Counted(1), with_token_of(mine)], clock=clock)

    claim, read = played.asked
    assert isinstance(claim, Call)
    assert isinstance(read, Find)
    token = claim.args[1]["$set"]["claim"]["token"]
    assert [record.id for record in played.result] == [mine["_id"]]
    assert matches(read.filter, {**mine, "state": "dequeued", "claim": {"token": token}})
    assert not matches(read.filter, theirs)
    assert not matches(read.filter, {**mine, "state": "completed", "claim": {"token": token}})


def test_a_batch_that_others_took_costs_no_read(clock: ScriptedClock) -> None:
    played = play(claiming("a", "b", clock=clock), [Counted(0)], clock=clock)

    assert played.result == []
    assert len(played.asked) == 1


def test_a_job_that_lost_a_lease_is_claimed_without_being_charged_an_attempt(clock: ScriptedClock) -> None:
    document = held_job(attempts=2, lost=1, available_at=NOW - SECOND)

    claim = first_call(claiming_one(document, clock), [None], clock)
    claimed = changed(document, claim.args[1])

    assert claim.method == "find_one_and_update"
    assert matches(claim.args[0], document)
    assert not matches(claim.args[0], {**document, "lost": 0})
    assert (claimed["attempts"], claimed["lost"]) == (2, 2)


def test_a_job_that_never_lost_a_lease_is_charged_an_attempt_when_claimed_alone(clock: ScriptedClock) -> None:
    document = given_job()

    claim = first_call(claiming_one(document, clock), [None], clock)
    claimed = changed(document, claim.args[1])

    assert matches(claim.args[0], document)
    assert not matches(claim.args[0], {**document, "lost": 1})
    assert (claimed["attempts"], claimed["lost"]) == (1, 1)


def test_a_job_claimed_alone_comes_back_in_one_round_trip(clock: ScriptedClock) -> None:
    document = given_job()

    played = play(claiming_one(document, clock), [held_job(_id=document["_id"])], clock=clock)

    assert [record.id for record in played.result] == [document["_id"]]
    assert len(played.asked) == 1
    assert played.asked[0].kwargs == {"return_document": True}  # type: ignore[union-attr]


def test_a_job_that_another_was_faster_to_claim_does_not_come_back(clock: ScriptedClock) -> None:
    assert play(claiming_one(given_job(), clock), [None], clock=clock).result == []


# Claims without an answer


def test_a_claim_that_never_left_is_not_looked_for(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(StoreUnavailable):
        play(claiming("a", clock=clock), [UNSENT], clock=clock, seen=seen)
    with pytest.raises(StoreUnavailable):
        play(claiming_one(given_job(), clock), [UNSENT], clock=clock, seen=seen)

    assert len(seen) == 2


def test_a_batch_is_handed_on_in_the_order_in_which_it_was_claimed_for(clock: ScriptedClock) -> None:
    urgent, other = held_job(), held_job()

    played = play(
        claim_many([urgent["_id"], other["_id"]], clock, worker="w", lease=LEASE, patience=1.0),
        [Counted(2), [other, urgent]],
    )

    assert [record.id for record in played.result] == [urgent["_id"], other["_id"]]


def test_an_unanswered_claim_is_extended_before_it_is_read_back(clock: ScriptedClock) -> None:
    document = given_job()

    played = play(
        claiming(document["_id"], clock=clock), [UNANSWERED, Counted(1), with_token_of(document)], clock=clock
    )

    claim, extension, read = played.asked
    token = claim.args[1]["$set"]["claim"]["token"]  # type: ignore[union-attr]
    mine = {**document, "state": "dequeued", "claim": {"token": token}}
    assert isinstance(extension, Call)
    assert isinstance(read, Find)
    assert extension.method == "update_many"
    assert matches(extension.args[0], mine)
    assert not matches(extension.args[0], {**mine, "claim": {"token": ObjectId()}})
    assert not matches(extension.args[0], {**mine, "state": "completed"})
    assert not matches(extension.args[0], {**mine, "_id": ObjectId()})
    assert [record.id for record in played.result] == [document["_id"]]
    assert slept(played.commands) == 0


def test_an_unanswered_claim_is_looked_for_until_its_deadline_and_then_kept(clock: ScriptedClock) -> None:
    document = given_job()

    def reply(command: Any) -> Any:
        return Counted(1) if isinstance(command, Call) else with_token_of(document)(command)

    rule = claiming(document["_id"], ObjectId(), clock=clock, patience=10.0)
    played = play(rule, [UNANSWERED, reply, ...], clock=clock)

    assert [record.id for record in played.result] == [document["_id"]]
    assert slept(played.commands) == pytest.approx(10.0)
    assert isinstance(played.asked[-1], Find)


def test_a_claim_that_was_found_back_holds_from_its_extension_on(clock: ScriptedClock) -> None:
    document = given_job()
    replies = [UNANSWERED, UNANSWERED, UNANSWERED, Counted(1), with_token_of(document)]
    sent = clock.monotonic()

    played = play(claiming_one(document, clock), replies, clock=clock)

    assert played.result.since == clock.monotonic() > sent


def test_what_a_claim_took_after_the_extension_that_looked_for_it_holds_from_the_claim_on(
    clock: ScriptedClock,
) -> None:
    document = given_job()
    replies = [UNANSWERED, UNANSWERED, Counted(0), with_token_of(document)]
    sent = clock.monotonic()

    played = play(claiming_one(document, clock), replies, clock=clock)

    assert clock.monotonic() > played.result.since == sent


def test_an_unanswered_claim_that_never_reached_the_server_comes_back_empty(clock: ScriptedClock) -> None:
    def reply(command: Any) -> Any:
        return Counted(0) if isinstance(command, Call) else []

    played = play(claiming_one(given_job(), clock), [UNANSWERED, reply, ...], clock=clock)

    assert played.result == []


def test_an_outage_during_the_search_is_waited_out(clock: ScriptedClock) -> None:
    document = given_job()
    replies = [UNANSWERED, UNANSWERED, UNSENT, Counted(1), with_token_of(document)]

    played = play(claiming_one(document, clock), replies, clock=clock)

    assert [record.id for record in played.result] == [document["_id"]]


def test_a_claim_still_unknown_at_its_deadline_is_left_to_lapse(clock: ScriptedClock) -> None:
    with pytest.raises(StoreUnavailable):
        play(claiming("a", clock=clock), [UNANSWERED, ...], clock=clock)

    assert clock.elapsed == pytest.approx(10.0)


@pytest.mark.parametrize(
    "outage",
    [
        pytest.param(UNANSWERED, id="unanswered"),
        pytest.param(UNSENT, id="unsent"),
    ],
)
def test_a_batch_that_was_claimed_is_not_dropped_because_its_read_failed(clock: ScriptedClock, outage: Any) -> None:
    document = given_job()
    replies = [Counted(1), outage, Counted(1), with_token_of(document)]

    played = play(claiming(document["_id"], clock=clock), replies, clock=clock)

    assert [record.id for record in played.result] == [document["_id"]]


# Extending


def test_an_extension_reaches_only_what_is_still_held_and_never_shortens(clock: ScriptedClock) -> None:
    document = held_job()
    held = Held(document["_id"], document["claim"]["token"])

    extension = first_call(extend([held], clock, lease=LEASE), [Counted(1), []], clock)

    assert matches(extension.args[0], document)
    assert not matches(extension.args[0], {**document, "claim": {"token": ObjectId()}})
    assert not matches(extension.args[0], {**document, "state": "completed"})
    assert not matches(extension.args[0], {**document, "_id": ObjectId()})
    assert changed(document, extension.args[1])["available_at"] == NOW + DOUBT + LEASE * SECOND
    far = {**document, "_id": ObjectId(), "available_at": NOW + 3600 * SECOND}
    assert changed(far, extension.args[1])["available_at"] == NOW + 3600 * SECOND


@pytest.mark.parametrize(
    "now_stored",
    [
        lambda document: [],
        lambda document: [{**document, "claim": {"token": ObjectId(), "worker": "other"}}],
        lambda document: [{**document, "state": "cancelled"}],
    ],
    ids=["removed", "claimed by another", "ended"],
)
def test_an_extension_tells_which_leases_are_lost(clock: ScriptedClock, now_stored: Any) -> None:
    mine, gone = held_job(), held_job()
    held = [Held(document["_id"], document["claim"]["token"]) for document in (mine, gone)]

    played = play(extend(held, clock, lease=LEASE), [Counted(1), [mine, *now_stored(gone)]], clock=clock)

    assert played.result.lost == {held[1]}


@pytest.mark.parametrize("others_lost", [False, True], ids=["all held", "another lost"])
def test_an_extension_tells_which_held_jobs_somebody_asked_to_cancel(clock: ScriptedClock, others_lost: bool) -> None:
    asked = held_job(cancel={"at": NOW, "reason": "wrong file"})
    held = [Held(asked["_id"], asked["claim"]["token"])]
    if others_lost:
        held.append(Held(ObjectId(), ObjectId()))

    played = play(extend(held, clock, lease=LEASE), [Counted(1), [asked]], clock=clock)

    assert played.result.cancelled == {held[0]: "wrong file"}


@pytest.mark.parametrize("outage", [UNANSWERED, UNSENT], ids=["unanswered", "unsent"])
def test_an_extension_that_was_acknowledged_counts_though_the_read_of_flags_fails(
    clock: ScriptedClock, outage: Exception
) -> None:
    document = held_job()
    held = Held(document["_id"], document["claim"]["token"])

    played = play(extend([held], clock, lease=LEASE), [Counted(1), outage], clock=clock)

    assert played.result == Holding()


def test_flags_are_read_of_held_jobs_only() -> None:
    asked = held_job(cancel={"at": NOW})
    held = Held(asked["_id"], asked["claim"]["token"])

    played = play(flags([held]), [[asked]])

    (read,) = played.asked
    assert isinstance(read, Find)
    assert matches(read.filter, asked)
    assert not matches(read.filter, {**asked, "claim": {"token": ObjectId()}})
    assert not matches(read.filter, held_job(_id=asked["_id"], claim=asked["claim"]))
    assert list(played.result.cancelled) == [held]


# Settling: the fence


@every_outcome
def test_no_outcome_changes_a_job_that_is_no_longer_held(clock: ScriptedClock, outcome: Outcome) -> None:
    document = held_job()

    fence = settling(Record(document), outcome, clock).write.filter

    assert matches(fence, document)
    assert not matches(fence, {**document, "_id": ObjectId()}), "another job"
    assert not matches(fence, {**document, "claim": {"token": ObjectId()}}), "claimed by another"
    assert not matches(fence, {**document, "state": "enqueued"}), "given back"
    assert not matches(fence, {**document, "state": "completed"}), "ended"


@every_outcome
def test_a_lost_lease_is_told_by_another_token(clock: ScriptedClock, outcome: Outcome) -> None:
    record = held_record()
    theirs = held_job(_id=record.id)

    played = play(settle([settling(record, outcome, clock)], clock), [Counted(0), [theirs]], clock=clock)

    assert played.result.lost == {record.id}
    assert not played.result.cancelled


def test_a_removed_job_is_a_lost_lease(clock: ScriptedClock) -> None:
    record = held_record()

    played = play(settle([settling(record, Completed(), clock)], clock), [Counted(0), []], clock=clock)

    assert played.result.lost == {record.id}


@every_outcome
def test_an_outcome_whose_reply_was_lost_is_recognised_as_written(clock: ScriptedClock, outcome: Outcome) -> None:
    document = held_job()
    written = settled_document(document, outcome)

    rule = settle([settling(Record(document), outcome, clock)], clock)
    played = play(rule, [UNANSWERED, Counted(0), [written]], clock=clock)

    assert not played.result.lost


def test_an_outcome_is_not_taken_as_written_because_another_worker_wrote_the_same(clock: ScriptedClock) -> None:
    document = held_job()
    theirs = settled_document({**document, "claim": {"token": ObjectId(), "worker": "other"}}, Completed())

    rule = settle([settling(Record(document), Completed(), clock)], clock)
    played = play(rule, [UNANSWERED, Counted(0), [theirs]], clock=clock)

    assert played.result.lost == {document["_id"]}


def test_one_outcome_goes_as_a_single_update_and_many_as_one_bulk(clock: ScriptedClock) -> None:
    batch = [settling(held_record(), Completed(), clock) for _ in range(3)]

    alone = first_call(settle(batch[:1], clock), [Counted(1)], clock)
    together = first_call(settle(batch, clock), [Counted(3)], clock)

    assert alone.method == "update_one"
    assert together.method == "bulk_write"
    assert [entry.filter["_id"] for entry in together.args[0]] == [entry.id for entry in batch]
    assert together.kwargs == {"ordered": False}


def test_jobs_that_end_in_the_same_millisecond_keep_what_each_has_said(clock: ScriptedClock) -> None:
    token, own = ObjectId(), [f"step {number}" for number in range(10)]
    held = [held_record(claim={"token": token, "worker": "w"}) for _ in own]
    batch = [
        settlement(record, Completed(), Limits(), clock, started_at=NOW, ended_at=NOW, said={"status": status})
        for record, status in zip(held, own, strict=True)
    ]

    (write,) = command_of(batch).args[0]

    assert [write.fields[record.id]["status"] for record in held] == own


def test_a_batch_with_a_lost_lease_settles_the_others(clock: ScriptedClock) -> None:
    kept, lost = held_job(), held_job()
    batch = [settling(Record(document), Completed(), clock) for document in (kept, lost)]

    replies = [Counted(1), [settled_document(kept, Completed()), held_job(_id=lost["_id"])]]
    played = play(settle(batch, clock), replies, clock=clock)

    assert played.result.lost == {lost["_id"]}


def test_an_unanswered_outcome_is_sent_again_for_half_a_minute_and_then_given_up(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(StoreUnavailable):
        play(settle([settling(held_record(), Completed(), clock)], clock), [UNANSWERED, ...], clock=clock, seen=seen)

    assert PATIENCE - 3 < slept(seen) <= PATIENCE
    assert len({str(command) for command in seen if isinstance(command, Call)}) == 1


# Settling: asked to cancel meanwhile


@giving_way
def test_an_outcome_that_would_run_the_job_again_becomes_the_cancel_that_was_asked_for(
    clock: ScriptedClock, outcome: Outcome
) -> None:
    flagged = held_job(cancel={"at": NOW, "reason": "wrong file"})
    entry = settling(Record(flagged), outcome, clock)

    played = play(settle([entry], clock), [Counted(0), [flagged], Counted(1)], clock=clock)

    _, _, instead = played.asked
    assert isinstance(instead, Call)
    ended = Record(changed(flagged, instead.args[1]))
    assert not matches(entry.write.filter, flagged)
    assert matches(instead.args[0], flagged)
    assert not matches(instead.args[0], {**flagged, "claim": {"token": ObjectId()}})
    assert (ended.state, ended.cause, ended.cancel_requested) == ("cancelled", Cause.REQUESTED, False)
    assert played.result.cancelled == {flagged["_id"]: instead.args[1]}
    assert not played.result.lost


@giving_way
def test_the_reason_of_the_cancel_that_takes_an_outcomes_place_is_kept(clock: ScriptedClock, outcome: Outcome) -> None:
    flagged = held_job(cancel={"at": NOW, "reason": "wrong file"})

    rule = settle([settling(Record(flagged), outcome, clock)], clock)
    played = play(rule, [Counted(0), [flagged], Counted(1)], clock=clock)

    ended = Record(changed(flagged, played.asked[2].args[1]))  # type: ignore[union-attr]
    assert ended.events[-1]["reason"] == "wrong file"


def test_a_completion_wins_over_the_cancel_that_was_asked_for(clock: ScriptedClock) -> None:
    flagged = held_job(cancel={"at": NOW, "reason": "too late"})

    entry = settling(Record(flagged), Completed(), clock)
    ended = Record(changed(flagged, entry.update))

    assert matches(entry.write.filter, flagged)
    assert (ended.state, ended.cancel_requested) == ("completed", False)


def test_a_lease_lost_while_the_cancel_is_written_is_told_as_lost(clock: ScriptedClock) -> None:
    flagged = held_job(cancel={"at": NOW})
    theirs = held_job(_id=flagged["_id"])

    rule = settle([settling(Record(flagged), OUTCOMES["fail"], clock)], clock)
    played = play(rule, [Counted(0), [flagged], Counted(0), [theirs]], clock=clock)

    assert played.result.lost == {flagged["_id"]}
    assert not played.result.cancelled


# Settling: what is written


@pytest.mark.parametrize("lost_before", [0, 1, 3])
def test_a_release_gives_back_exactly_what_the_claim_took(clock: ScriptedClock, lost_before: int) -> None:
    before = given_job(attempts=2, lost=lost_before)
    claim = first_call(claiming_one(before, clock), [None], clock)
    claimed = changed(before, claim.args[1])

    released = settled_document(claimed, Released("shutdown"))

    assert (released["attempts"], released["lost"]) == (before["attempts"], before["lost"])
    assert released["state"] == "enqueued"
    assert released["available_at"] == NOW


def test_a_snooze_refunds_the_attempt() -> None:
    snoozed = settled_document(held_job(attempts=3), Snoozed(delay=60))

    assert (snoozed["state"], snoozed["attempts"], snoozed["lost"]) == ("enqueued", 2, 0)
    assert snoozed["available_at"] == NOW + DOUBT + 60 * SECOND


@pytest.mark.parametrize("verb", ["complete", "fail", "cancel", "snooze"])
def test_an_attempt_that_was_settled_clears_the_count_of_lost_leases(verb: str) -> None:
    assert settled_document(held_job(lost=3), OUTCOMES[verb])["lost"] == 0


@every_outcome
def test_a_job_has_a_due_time_exactly_while_it_is_live(outcome: Outcome) -> None:
    ended = Record(settled_document(held_job(), outcome))

    assert (ended.available_at is None) is ended.final
    assert (ended.finished_at is not None) is ended.final
    assert (ended.expire_at is not None) is ended.final


@every_outcome
def test_a_settled_job_keeps_its_claim_so_that_the_write_can_be_recognised(outcome: Outcome) -> None:
    document = held_job()

    assert settled_document(document, outcome)["claim"] == document["claim"]


@pytest.mark.parametrize("verb", ["complete", "fail", "cancel", "snooze"])
def test_a_settled_attempt_says_when_its_handler_started_and_stopped(verb: str) -> None:
    ended = Record(settled_document(held_job(), OUTCOMES[verb]))

    assert (ended.started_at, ended.ended_at) == (NOW - 2 * SECOND, NOW - SECOND)


def test_a_completion_keeps_the_result_and_drops_the_last_failure() -> None:
    ended = Record(settled_document(held_job(error=ERROR), Completed({"path": "b.jpg"})))

    assert ended.result == {"path": "b.jpg"}
    assert ended.error is None
    assert ended.finished_at == ended.ended_at == NOW - SECOND


def test_a_completion_without_a_result_stores_none() -> None:
    assert "result" not in settled_document(held_job(), Completed())


def test_a_failure_waits_its_delay_from_the_upper_bound_of_server_time() -> None:
    ended = Record(settled_document(held_job(), Failed(ERROR, delay=4.0)))

    assert ended.state == "failed"
    assert ended.available_at == NOW + DOUBT + 4 * SECOND
    assert ended.error == ERROR


def test_a_retry_at_a_moment_is_due_at_that_moment() -> None:
    at = datetime(2027, 1, 1, 8, 0, tzinfo=UTC)

    assert settled_document(held_job(), Failed(ERROR, at=at))["available_at"] == at
    assert settled_document(held_job(), Snoozed(at=at))["available_at"] == at


@pytest.mark.parametrize("outcome", [Failed(ERROR, delay=0.0004), Snoozed(delay=0.0004)], ids=["fail", "snooze"])
def test_a_delay_below_a_millisecond_is_never_cut_to_less(outcome: Outcome) -> None:
    assert settled_document(held_job(), outcome)["available_at"] >= NOW + DOUBT + timedelta(microseconds=400)


def test_a_cancellation_keeps_its_cause_and_error() -> None:
    ended = Record(settled_document(held_job(), Cancelled(Cause.EXHAUSTED, "no attempt left of 3", ERROR)))

    assert (ended.state, ended.cause, ended.error) == ("cancelled", Cause.EXHAUSTED, ERROR)
    assert ended.events[-1]["reason"] == "no attempt left of 3"


def test_a_completion_writes_no_event_and_every_other_outcome_one() -> None:
    events = {verb: Record(settled_document(held_job(), outcome)).events for verb, outcome in OUTCOMES.items()}

    assert events.pop("complete") == []
    for verb, (entry,) in events.items():
        assert (entry["verb"], entry["attempt"], entry["worker"]) == (verb, 1, "host:1:abc")


def test_a_job_keeps_its_last_fifty_events() -> None:
    old = [{"verb": "fail", "at": NOW, "attempt": number} for number in range(50)]

    events = settled_document(held_job(attempts=51, events=old), OUTCOMES["fail"])["events"]

    assert len(events) == 50
    assert events[-1]["attempt"] == 51
    assert events[0]["attempt"] == 1


# Retention


LIMITS = Limits(retention=3600.0, cancelled_retention=7200.0, backoff=CLASSIC)


def test_a_completed_job_is_kept_for_the_retention_and_a_cancelled_one_for_its_own() -> None:
    completed = settled_document(held_job(), OUTCOMES["complete"], LIMITS)
    cancelled = settled_document(held_job(), OUTCOMES["cancel"], LIMITS)

    assert completed["expire_at"] == completed["finished_at"] + 3600 * SECOND
    assert cancelled["expire_at"] == NOW + 7200 * SECOND


def test_a_jobs_own_retention_goes_before_the_tasks() -> None:
    for verb in ("complete", "cancel"):
        ended = settled_document(held_job(retention=5.0), OUTCOMES[verb], LIMITS)

        assert ended["expire_at"] == ended["finished_at"] + 5 * SECOND


def test_a_job_is_kept_a_minute_from_its_enqueue_so_that_a_repeated_one_finds_it() -> None:
    record = held_record(created_at=NOW - 10 * SECOND)

    assert expiry(record, NOW, retention=0.0) == NOW + 50 * SECOND


def test_a_job_with_a_retention_of_nothing_expires_as_it_ends() -> None:
    record = held_record(created_at=NOW, retention=0.0)

    assert expiry(record, NOW, retention=3600.0) == NOW
