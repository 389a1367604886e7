"""A job that completes in its handler's transaction, and what is written of it while it runs, on canned replies."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from itertools import chain, repeat
from typing import Any

import pytest

from axeq.documents.failure import failure
from axeq.documents.record import Document, Record
from axeq.rules.enqueue import PATIENCE
from axeq.rules.interim import keep, report
from axeq.rules.lifecycle import Held
from axeq.rules.outcome import Collision, Completed, Failed, Limits, Outcome, Released, Snoozed, decide
from axeq.rules.settlement import Settlement, command_of, settle, settlement
from axeq.rules.transaction import LIMIT, Ending, concluded, opened
from axeq.wire.commands import Abort, Begin, Commit, Joined
from axeq.wire.wire import Call, Find, Update, drive
from axeq.words.errors import LeaseLost, PayloadInvalid, StoreError

from .playing import DOUBT, NOW, UNANSWERED, Counted, ScriptedClock, changed, held_job, matches, play, slept

LEASE = 30.0
GONE = StoreError("NoSuchTransaction")


def held_of(*documents: Document) -> list[Held]:
    return [Held(document["_id"], document["claim"]["token"]) for document in documents]


def completion(document: Document, result: Any = 3, **said: Any) -> Settlement:
    return settlement(Record(document), Completed(result), Limits(), ScriptedClock(), said=said)


def ending(entries: list[Settlement], replies: Iterable[Any], clock: ScriptedClock) -> tuple[Any, list[Any]]:
    """Plays the end of a transaction: replies to writes inside and outside, to commits, and no reply to aborts."""
    script = iter(replies)
    commands: list[Any] = []

    def execute(command: Any) -> Any:
        commands.append(command)
        if isinstance(command, Abort):
            return None
        if hasattr(command, "seconds"):
            clock.elapsed += command.seconds
            return None
        reply = next(script)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    result = drive(concluded(entries, clock, lease=LEASE), execute)
    assert not isinstance(replies, list) or next(script, ...) is ..., "it ended before it had asked everything"
    return result, commands


def test_the_lease_is_extended_by_the_limit_before_the_transaction_begins() -> None:
    clock, document = ScriptedClock(), held_job()

    played = play(opened(held_of(document), clock, lease=LEASE), [Counted(1), [], None])

    extension, flags, begin = played.commands
    assert changed(document, extension.args[1])["available_at"] == NOW + DOUBT + timedelta(seconds=LIMIT + LEASE)
    assert matches(extension.args[0], document)
    assert (type(flags), type(begin)) == (Find, Begin)
    assert not played.result.lost


@pytest.mark.parametrize("change", [{"claim": {"token": "another's"}}, {"state": "enqueued"}])
def test_no_transaction_begins_for_a_job_that_is_no_longer_held(change: Document) -> None:
    document = held_job()

    played = play(opened(held_of(document), ScriptedClock(), lease=LEASE), [Counted(0), [{**document, **change}]])

    assert played.result.lost == frozenset(held_of(document))
    assert Begin() not in played.commands


def test_no_transaction_begins_for_a_job_that_somebody_asked_to_cancel() -> None:
    document = held_job(cancel={"at": NOW, "reason": "enough"})

    played = play(opened(held_of(document), ScriptedClock(), lease=LEASE), [Counted(1), [document]])

    assert list(played.result.cancelled.values()) == ["enough"]
    assert Begin() not in played.commands


def test_the_fenced_completion_is_the_last_write_before_the_commit() -> None:
    document = held_job()

    result, commands = ending([completion(document)], [Counted(1), None], ScriptedClock())

    joined, commit = commands
    query, update = joined.command.args
    assert result is Ending.COMMITTED
    assert (type(joined), type(commit)) == (Joined, Commit)
    assert (changed(document, update)["state"], changed(document, update)["result"]) == ("completed", 3)
    assert matches(query, document)
    for other in ({"claim": {"token": "another's"}}, {"state": "enqueued"}, {"_id": "another"}):
        assert not matches(query, {**document, **other})


def test_the_jobs_of_a_group_complete_in_one_command() -> None:
    documents = [held_job(claim={"token": "one", "worker": "w"}) for _ in range(3)]
    entries = [completion(document) for document in documents]

    result, commands = ending(entries, [Counted(3), None], ScriptedClock())

    assert result is Ending.COMMITTED
    assert [type(command) for command in commands] == [Joined, Commit]


def test_a_lost_lease_undoes_the_transaction() -> None:
    result, commands = ending([completion(held_job())], [Counted(0)], ScriptedClock())

    assert result is Ending.LOST
    assert [type(command) for command in commands] == [Joined, Abort]


@pytest.mark.parametrize("error", [UNANSWERED, GONE, PayloadInvalid("too large")])
def test_a_completion_that_cannot_be_written_undoes_the_transaction(error: Exception) -> None:
    seen: list[Any] = []

    def execute(command: Any) -> Any:
        seen.append(type(command))
        if isinstance(command, Joined):
            raise error

    with pytest.raises(type(error)):
        drive(concluded([completion(held_job())], ScriptedClock(), lease=LEASE), execute)

    assert seen == [Joined, Abort]


def test_an_unanswered_commit_is_asked_for_again() -> None:
    clock = ScriptedClock()

    result, commands = ending([completion(held_job())], [Counted(1), UNANSWERED, UNANSWERED, None], clock)

    assert result is Ending.COMMITTED
    assert [type(command) for command in commands if not hasattr(command, "seconds")] == [Joined, *[Commit] * 3]
    assert 0 < slept(commands) < 1


@pytest.mark.parametrize(
    ("shown", "ended"),
    [
        ({"state": "completed"}, Ending.COMMITTED),
        ({"state": "completed", "claim": {"token": "another's"}}, Ending.LOST),
        ({"state": "dequeued", "claim": {"token": "another's"}}, Ending.LOST),
        (None, Ending.LOST),
    ],
)
def test_a_commit_that_failed_is_judged_by_what_the_job_shows_then(shown: Document | None, ended: Ending) -> None:
    document = held_job()
    found = [] if shown is None else [{**document, **shown}]

    result, commands = ending([completion(document)], [Counted(1), GONE, Counted(0), found, found], ScriptedClock())

    assert result is ended
    _, _, barrier, *_ = commands
    assert matches(barrier.args[0], document)
    assert set(barrier.args[1]) == {"$max"}


def test_a_commit_that_failed_has_not_happened_where_the_job_can_still_be_extended() -> None:
    result, _ = ending([completion(held_job())], [Counted(1), GONE, UNANSWERED, Counted(1), []], ScriptedClock())

    assert result is Ending.UNDONE


def test_a_commit_that_nobody_answers_for_is_left_to_its_lease() -> None:
    clock = ScriptedClock()

    result, _ = ending([completion(held_job())], chain([Counted(1)], repeat(UNANSWERED)), clock)

    assert result is Ending.UNKNOWN
    assert PATIENCE < clock.elapsed <= 2 * PATIENCE


def test_the_word_of_all_handlers_goes_out_in_one_fenced_command() -> None:
    documents = [held_job() for _ in range(3)]
    words = [(held, {"progress": 0.5}) for held in held_of(*documents)]

    (command,) = play(report(words), [Counted(3)]).asked

    assert isinstance(command, Call)
    assert command.method == "bulk_write"
    writes: list[Update] = command.args[0]
    for write, document in zip(writes, documents, strict=True):
        assert matches(write.filter, document)
        assert changed(document, write.update)["progress"] == 0.5
        for other in ({"claim": {"token": "another's"}}, {"state": "completed"}, {"_id": "another"}):
            assert not matches(write.filter, {**document, **other})


def test_a_checkpoint_is_sent_until_answered_and_fenced() -> None:
    clock, document = ScriptedClock(), held_job()

    played = play(keep(held_of(document), {"page": 3}, clock), [UNANSWERED, Counted(1)], clock=clock)

    _, command = played.asked
    assert isinstance(command, Call)
    assert changed(document, command.args[1])["checkpoint"] == {"page": 3}
    assert matches(command.args[0], document)
    for other in ({"claim": {"token": "another's"}}, {"state": "completed"}, {"_id": "another"}):
        assert not matches(command.args[0], {**document, **other})


def test_a_checkpoint_of_a_lost_lease_is_refused() -> None:
    with pytest.raises(LeaseLost):
        play(keep(held_of(held_job()), 1, ScriptedClock()), [Counted(0)])


@pytest.mark.parametrize(
    "outcome",
    [Failed(failure("ValueError", "bad")), Snoozed(delay=1), Released("shutdown")],
    ids=["fail", "snooze", "release"],
)
def test_the_last_word_goes_out_with_the_outcome_and_the_checkpoint_stays(outcome: Outcome) -> None:
    document = held_job(checkpoint={"page": 3}, progress=0.1)
    said = {"progress": 0.5, "status": "half way", "result": [1]}

    entry = settlement(Record(document), outcome, Limits(), ScriptedClock(), said=said)

    after = changed(document, entry.update)
    assert {key: after[key] for key in said} == said
    assert after["checkpoint"] == {"page": 3}


@pytest.mark.parametrize(("result", "kept"), [(3, 3), (None, None)])
def test_completing_is_all_of_the_progress_and_drops_what_was_only_for_the_way(result: Any, kept: Any) -> None:
    document = held_job(checkpoint={"page": 3}, progress=0.1, result=[1])

    entry = completion(document, result, progress=0.5, status="half way")

    after = changed(document, entry.update)
    assert (after["progress"], after["status"], after.get("result")) == (1.0, "half way", kept)
    assert "checkpoint" not in after


def test_a_job_that_has_never_reported_completes_as_before() -> None:
    entry = completion(held_job(), None)

    assert set(entry.update["$unset"]) == {"available_at", "cancel", "error"}
    assert "progress" not in entry.update["$set"]


def test_what_a_long_job_drops_is_not_dropped_of_others_that_complete_with_it() -> None:
    claim = {"token": "one", "worker": "w"}
    long = held_job(claim=claim, checkpoint=1, progress=0.5, result=[1])
    short = [held_job(claim=claim) for _ in range(2)]
    batch = [completion(long, None), *(completion(document, number) for number, document in enumerate(short))]

    (command,) = play(settle(batch, ScriptedClock()), [Counted(3)]).asked

    assert command == command_of(batch)
    assert isinstance(command, Call)
    apart, merged = command.args[0]
    assert apart.filter["_id"] == long["_id"]
    assert set(merged.fields) == {document["_id"] for document in short}
    assert "result" not in merged.unset


def test_a_collision_is_not_charged_and_waits_longer_each_time_until_it_seems_to_be_the_jobs_own_doing() -> None:
    document = held_job(attempts=1, events=[])
    outcomes: list[Outcome] = []
    while len(outcomes) < 22 and not isinstance(outcome := decide_collision(document), Failed):
        outcomes.append(outcome)
        document["events"].append({"verb": "snooze", "reason": outcome.reason})

    assert 10 <= len(outcomes) < 22
    delays = [outcome.delay for outcome in outcomes if isinstance(outcome, Snoozed)]
    assert delays == sorted(set(delays))
    assert len(delays) == len(outcomes)
    document["events"].append({"verb": "fail", "reason": "charged"})
    assert isinstance(decide_collision(document), Snoozed)


def decide_collision(document: Document) -> Any:
    return decide(Collision("WriteConflict"), Record(document), Limits())
