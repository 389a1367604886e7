"""Pulling without a pool, on canned replies: what is claimed together, what alone, what is not handed out."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

import axeq
from axeq.documents.failure import failure
from axeq.documents.model import bind
from axeq.documents.record import Document, Record
from axeq.faces.taker import Claimed, Taker
from axeq.rules.interim import beat
from axeq.rules.lifecycle import Held
from axeq.rules.outcome import Cancelled, Completed, Failed, Limits, Outcome
from axeq.rules.pull import Puller, end, give_back, renew, take
from axeq.rules.settlement import settlement
from axeq.wire.commands import CONTROL, Call, Find
from axeq.words.errors import LeaseLost, StoreError, StoreUnavailable
from axeq.words.states import Cause, State

from .playing import (
    NOW,
    UNANSWERED,
    Counted,
    Played,
    ScriptedClock,
    changed,
    given_job,
    held_job,
    held_record,
    matches,
    play,
    with_token_of,
)

PULLER = Puller("default", "thumbnail", 1, "me", 60.0, Limits())
FREE: list[Document] = []
"""The reply to the question what is paused."""
YES, NO = Counted(1), Counted(0)


def fit(record: Record) -> Outcome | None:
    return None


def taken(clock: ScriptedClock, replies: list[Any], *, count: int = 10, unfit: Any = fit) -> Played:
    return play(take(PULLER, count, clock, unfit=unfit), [FREE, *replies], clock=clock)


def claims(played: Played) -> list[Any]:
    """Returns the ids of each claim."""
    writes = [command for command in played.commands if isinstance(command, Call) and "claim" in str(command.args[1])]
    return [write.args[0]["_id"] for write in writes if write.args[1].get("$set", {}).get("state") == "dequeued"]


def test_due_jobs_are_claimed_together_in_order(clock: ScriptedClock) -> None:
    first, second = given_job(_id=1), given_job(_id=2)

    played = taken(clock, [[first, second], Counted(2), with_token_of(second, first, lost=1)])

    assert [record.id for record in played.result] == [1, 2]
    assert claims(played) == [{"$in": [1, 2]}]


def test_what_is_asked_for_is_claimed_and_no_more(clock: ScriptedClock) -> None:
    page = [given_job(_id=number) for number in range(5)]

    played = taken(clock, [page, Counted(2), with_token_of(*page[:2], lost=1)], count=2)

    assert claims(played) == [{"$in": [0, 1]}]


def test_where_others_were_faster_the_next_jobs_are_tried(clock: ScriptedClock) -> None:
    page = [given_job(_id=number) for number in range(3)]
    mine = held_job(_id=2)

    played = taken(clock, [page, Counted(1), with_token_of(page[1], lost=1), mine], count=2)

    assert [record.id for record in played.result] == [1, 2]
    assert claims(played) == [{"$in": [0, 1]}, 2]


def test_a_job_that_has_lost_a_lease_is_claimed_alone_and_ends_the_take(clock: ScriptedClock) -> None:
    page = [given_job(_id=1, lost=1), given_job(_id=2)]

    played = taken(clock, [page, held_job(_id=1, lost=2)])

    assert [record.id for record in played.result] == [1]
    assert claims(played) == [1]


def test_a_job_that_has_lost_a_lease_waits_behind_those_that_come_before_it(clock: ScriptedClock) -> None:
    page = [given_job(_id=1), given_job(_id=2, lost=1), given_job(_id=3)]

    played = taken(clock, [page, Counted(2), with_token_of(page[0], page[2], lost=1)])

    assert claims(played) == [{"$in": [1, 3]}]


def test_a_lost_job_that_another_was_faster_with_does_not_hold_up_the_rest(clock: ScriptedClock) -> None:
    page = [given_job(_id=1, lost=1), given_job(_id=2)]

    played = taken(clock, [page, None, held_job(_id=2)])

    assert [record.id for record in played.result] == [2]


def test_a_job_that_is_not_fit_ends_and_another_comes_in_its_place(clock: ScriptedClock) -> None:
    page = [given_job(_id=1), given_job(_id=2)]

    def unfit(record: Record) -> Outcome | None:
        return Cancelled(Cause.INVALID, "bad") if record.id == 1 else None

    played = taken(clock, [page, held_job(_id=1), YES, held_job(_id=2)], count=1, unfit=unfit)

    assert [record.id for record in played.result] == [2]
    ends = [command.args[1] for command in played.commands if isinstance(command, Call) and "cause" in str(command)]
    assert [update["$set"]["cause"] for update in ends] == ["invalid"]


@pytest.mark.parametrize("name", [None, "thumbnail"])
def test_a_pause_is_asked_for_first_and_kept(clock: ScriptedClock, name: str | None) -> None:
    pause = {"kind": "pause", "queue": "default", "name": name}

    played = play(take(PULLER, 10, clock, unfit=fit), [[pause]], clock=clock)

    assert played.result == []
    assert [command.collection for command in played.commands if isinstance(command, Find)] == [CONTROL]


def test_a_claim_that_the_server_refuses_is_repeated_one_by_one(clock: ScriptedClock) -> None:
    page = [given_job(_id=1), given_job(_id=2)]
    replies = [page, StoreError("refused"), Counted(), [], StoreError("refused"), [page[0]], held_job(_id=2)]

    played = taken(clock, replies)

    assert [record.id for record in played.result] == [2]


def test_what_was_claimed_before_the_server_fell_silent_is_handed_out(clock: ScriptedClock) -> None:
    page = [given_job(_id=1), given_job(_id=2), given_job(_id=3)]
    silence = StoreUnavailable("db:27017", "gone", sent=False)

    played = taken(clock, [page, Counted(1), with_token_of(page[0], lost=1), silence], count=2)

    assert [record.id for record in played.result] == [1]


def test_full_pages_that_others_took_are_read_anew_before_there_is_nothing(clock: ScriptedClock) -> None:
    page = [given_job(_id=number) for number in range(50)]

    def nothing(command: Any) -> Any:
        return page if isinstance(command, Find) else NO

    played = play(take(PULLER, 10, clock, unfit=fit), [FREE, nothing, ...], clock=clock)

    assert played.result == []
    assert len([command for command in played.commands if isinstance(command, Find)]) == 1 + 3


def test_a_renewal_keeps_what_is_held_and_ends_what_was_to_be_cancelled(clock: ScriptedClock) -> None:
    kept, lost, asked = held_record(_id=1), held_record(_id=2), held_record(_id=3)
    flagged = {**asked.document, "cancel": {"reason": "stop it"}}

    played = play(renew(PULLER, [kept, lost, asked], clock), [Counted(2), [kept.document, flagged], YES], clock=clock)

    assert [record.id for record in played.result] == [1]
    assert kept.available_at is not None
    assert kept.available_at > clock.earliest()


class Image(axeq.Model[None], name="thumbnail"):
    """A payload without fields."""


def taker(clock: ScriptedClock) -> Taker[Image, None]:
    store: Any = SimpleNamespace(clock=clock, codec=None)
    return Taker(store, "default", bind(Image), {"lease": 60, "worker": "me"})


def stalled(clock: ScriptedClock, reply: Any) -> Any:
    """Answers a command, while the process that sent it is stopped for longer than a lease."""

    def answer(command: Any) -> Any:
        clock.elapsed += 61
        return reply(command) if callable(reply) else reply

    return answer


def test_a_claim_that_took_longer_than_its_lease_hands_out_what_nobody_else_has_by_then(clock: ScriptedClock) -> None:
    mine, gone = given_job(_id=1), given_job(_id=2)
    leased = with_token_of(mine, gone, lost=1, attempts=1, available_at=NOW + timedelta(seconds=60))
    token: list[Any] = []

    def read_back(command: Any) -> Any:
        token.append(command.filter["claim.token"])
        return leased(command)

    def seen(command: Any) -> Any:
        return [{**mine, "state": "dequeued", "claim": {"token": token[0]}}, {**gone, "state": "completed"}]

    replies = [FREE, [mine, gone], Counted(2), stalled(clock, read_back), Counted(1), seen]
    claimed = play(taker(clock).claim(2), replies, clock=clock).result

    assert [each.record.id for each in claimed] == [1]
    assert claimed[0].record.available_at > clock.latest()


def test_a_renewal_that_took_longer_than_the_lease_is_repeated_before_a_job_is_handed_out(
    clock: ScriptedClock,
) -> None:
    waiting = Claimed(held_record(_id=1), Image())

    renewed = play(taker(clock).renew([waiting]), [YES, stalled(clock, []), YES, []], clock=clock)

    assert renewed.result == [waiting]
    assert waiting.record.available_at is not None
    assert waiting.record.available_at > clock.latest()


def test_what_is_given_back_is_as_it_was(clock: ScriptedClock) -> None:
    record = held_record(attempts=3, lost=1)

    played = play(give_back(PULLER, [record], clock), [YES], clock=clock)

    (write,) = [command for command in played.commands if isinstance(command, Call)]
    again = Record(changed(record.document, write.args[1]))
    assert (again.state, again.attempts, again.lost) == ("enqueued", 2, 0)
    assert play(give_back(PULLER, [], clock), []).result is None


def test_an_end_whose_reply_was_lost_is_sent_again(clock: ScriptedClock) -> None:
    record = held_record()
    entry = settlement(record, Completed(1), Limits(), clock)
    done = {**record.document, "state": "completed"}

    assert play(end(entry, clock), [UNANSWERED, NO, [done]], clock=clock).result is State.COMPLETED


def test_an_end_under_a_lost_lease_says_so(clock: ScriptedClock) -> None:
    record = held_record()
    entry = settlement(record, Completed(1), Limits(), clock)

    with pytest.raises(LeaseLost, match="too late to complete it"):
        play(end(entry, clock), [NO, [held_job(_id=record.id)]], clock=clock)


def test_a_failure_under_a_cancel_that_was_asked_for_ends_cancelled(clock: ScriptedClock) -> None:
    record = held_record()
    entry = settlement(record, Failed(failure("E", "x")), Limits(), clock)
    flagged = {**record.document, "cancel": {"reason": "stop it"}}

    assert play(end(entry, clock), [NO, [flagged], YES], clock=clock).result is State.CANCELLED


def test_an_end_that_the_server_refuses_is_an_error(clock: ScriptedClock) -> None:
    entry = settlement(held_record(), Completed(1), Limits(), clock)

    with pytest.raises(StoreError, match="cannot complete job"):
        play(end(entry, clock), [StoreError("too large")], clock=clock)


def test_a_beat_extends_and_keeps_the_checkpoint_in_one_write_under_the_fence(clock: ScriptedClock) -> None:
    record = held_record()
    rule = beat(Held(record.id, record.token), clock, lease=60, checkpoint={"page": 3})

    (write,) = play(rule, [record.document], clock=clock).asked

    assert isinstance(write, Call)
    query, update = write.args
    after = changed(record.document, update)
    assert after["checkpoint"] == {"page": 3}
    assert after["available_at"].replace(tzinfo=None) > record.document["available_at"].replace(tzinfo=None)
    assert matches(query, record.document)
    assert not matches(query, held_job(_id=record.id))
    assert not matches(query, {**record.document, "state": "enqueued"})


def test_a_beat_without_a_checkpoint_leaves_the_one_that_is_there(clock: ScriptedClock) -> None:
    record = held_record(checkpoint={"page": 1})

    (write,) = play(beat(Held(record.id, record.token), clock, lease=60), [record.document], clock=clock).asked

    assert isinstance(write, Call)
    assert changed(record.document, write.args[1])["checkpoint"] == {"page": 1}


def test_a_beat_is_sent_again_until_answered_but_no_longer_than_a_lease(clock: ScriptedClock) -> None:
    record = held_record()
    held = Held(record.id, record.token)

    assert play(beat(held, clock, lease=60), [UNANSWERED, record.document], clock=clock).result == record.document
    before = clock.elapsed
    with pytest.raises(StoreUnavailable):
        play(beat(held, clock, lease=2), [UNANSWERED, ...], clock=clock)
    assert clock.elapsed - before <= 2


def test_a_beat_of_a_lost_lease_says_so(clock: ScriptedClock) -> None:
    with pytest.raises(LeaseLost, match="another worker has it"):
        play(beat(Held(1, 2), clock, lease=60), [None], clock=clock)
