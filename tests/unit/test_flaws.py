"""Documents changed by hand: what is wrong is named, the job ends, and no other job is the worse for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import mongomock
import pytest

import axeq
from axeq.attempts.executor import Executor
from axeq.attempts.settler import Settler
from axeq.documents.flaw import flaw, usual
from axeq.documents.record import Document, Record
from axeq.rules import lifecycle
from axeq.rules.due import Candidate, due_page, next_due
from axeq.rules.enqueue import Draft, insert
from axeq.rules.lifecycle import Claim, Held, claim_many, flags
from axeq.rules.outcome import Cancelled, Completed, Failed, Flawed, Limits, decide, describe, end_flawed, judge
from axeq.rules.settlement import Settled, settle, settlement
from axeq.running import claims
from axeq.wire.wire import Call, Op
from axeq.words.errors import AccessDenied, Cancel, DuplicateKey, EnqueueUnknown, PayloadInvalid, Retry, StoreError
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe
from tests.support.waiting import DEADLINE, eventually

from .playing import (
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
)

REFUSED = StoreError("MongoDB at db: Cannot apply $inc to a value of non-numeric type")

WRONG: list[tuple[str, Any]] = [
    ("_id", {"a": 1}),
    ("name", ["thumbnail"]),
    ("name", 5),
    ("version", "wrong"),
    ("priority", "wrong"),
    ("priority", float("nan")),
    ("created_at", None),
    ("created_at", "yesterday"),
    ("created_at", datetime(9999, 12, 31, tzinfo=UTC)),
    ("available_at", [NOW]),
    ("attempts", "wrong"),
    ("attempts", float("inf")),
    ("attempts", 2**63 - 1),
    ("attempts", True),
    ("lost", "wrong"),
    ("lost", -1),
    ("lost", None),
    ("max_attempts", "wrong"),
    ("timeout", "wrong"),
    ("timeout", 1e300),
    ("timeout", 0),
    ("retention", "wrong"),
    ("retention", 1e300),
    ("retention", -1),
    ("deadline", "wrong"),
    ("cancel", "wrong"),
    ("error", "wrong"),
    ("events", "wrong"),
]
AFTER_A_CLAIM = [
    (field, value)
    for field, value in WRONG
    if field not in ("_id", "name", "available_at") and value not in (-1, 2**63 - 1)
]
IN_A_BOARD = [pair for pair in WRONG if pair[0] in ("_id", "name", "version", "priority", "available_at", "lost")]


# What is a flaw


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_flaw_is_told_by_its_field_and_never_by_its_value(field: str, value: Any) -> None:
    found = flaw(given_job(**{field: value}))

    assert found is not None
    assert found.startswith(f"{field} ")
    assert "wrong" not in found


@pytest.mark.parametrize(("field", "value"), AFTER_A_CLAIM)
def test_a_flawed_job_ends_as_invalid_before_it_runs(field: str, value: Any) -> None:
    document = held_job(**{field: value})
    if value is None:
        document.pop(field, None)

    verdict = judge(Record(document), Limits(), NOW)

    assert isinstance(verdict, Flawed)
    assert verdict.reason.startswith(f"{field} ")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attempts": -1},
        {"priority": 0.5, "attempts": 2.0, "lost": 0.0},
        {"max_attempts": 3, "timeout": 1.5, "retention": 0, "deadline": NOW + timedelta(hours=1)},
        {"max_attempts": 0, "error": {"type": "E"}, "events": [], "label": 5},
        {"state": "weird", "claim": "x", "data": "x", "queue": ["default"]},
    ],
    ids=str,
)
def test_what_rules_can_work_with_is_no_flaw(fields: Document) -> None:
    document = given_job(**fields)

    assert flaw(document) is None
    assert judge(Record(document), Limits(max_attempts=5), NOW) is None


def test_a_job_as_it_is_enqueued_and_claimed_is_passed_at_a_glance() -> None:
    document = Draft("t", 1, "default", {}, label="a").document(ScriptedClock(), NOW)

    assert usual(document)
    assert usual(held_job())


@pytest.mark.parametrize(("field", "value"), AFTER_A_CLAIM)
def test_a_job_that_ends_for_its_flaw_can_be_read_and_retried(field: str, value: Any) -> None:
    document = held_job(**{field: value})
    entry = settlement(Record(document), Flawed(f"{field} is wrong"), Limits(cancelled_retention=60), ScriptedClock())

    ended = Record(changed(document, entry.update))

    assert entry.instead is None
    assert (ended.state, ended.cause, ended.available_at) == ("cancelled", "invalid", None)
    assert ended.finished_at == NOW
    assert ended.expire_at == NOW + timedelta(minutes=1)
    assert (ended.attempts, ended.lost, ended.cancel_requested) == (
        document["attempts"] if usual(document) else ended.attempts,
        0,
        False,
    )
    assert ended.error is not None
    assert ended.error["message"] == f"{field} is wrong"
    assert [(entry["verb"], entry["reason"]) for entry in ended.events] == [("cancel", f"{field} is wrong")]


# The board


@pytest.mark.parametrize(("field", "value"), IN_A_BOARD)
def test_a_due_job_that_no_claim_could_take_is_ended_and_the_page_read_again(field: str, value: Any) -> None:
    flawed, sound = given_job(**{field: value}), given_job()
    if value is None:
        flawed.pop(field, None)

    played = play(
        due_page("default", {"thumbnail": 1}, NOW, limit=2), [[flawed, sound], [flawed], Counted(1), [sound, sound]]
    )

    write = played.asked[2]
    assert isinstance(write, Call)
    assert write.args[1]["$set"]["cause"] == "invalid"
    assert [candidate.id for candidate in played.result] == [sound["_id"]] * 2


@pytest.mark.parametrize(
    "meanwhile",
    [{"available_at": NOW + timedelta(seconds=30)}, {"state": "completed"}, {"state": "cancelled"}],
    ids=str,
)
def test_a_flawed_job_is_ended_only_as_it_was_read(meanwhile: Document) -> None:
    flawed = given_job(priority="high", state="dequeued")
    played = play(due_page("default", {"thumbnail": 1}, NOW, limit=2), [[flawed], [flawed], Counted(1), []])

    write = played.asked[2]

    assert isinstance(write, Call)
    assert matches(write.args[0], flawed)
    assert not matches(write.args[0], {**flawed, **meanwhile})


@pytest.mark.parametrize("reply", [Counted(0), REFUSED], ids=["moved meanwhile", "refused"])
def test_a_flawed_job_that_cannot_be_ended_is_passed_over(reply: Any) -> None:
    flawed, sound = given_job(lost="x"), given_job()

    played = play(due_page("default", {"thumbnail": 1}, NOW, limit=2), [[flawed, sound], [flawed], reply])

    assert [candidate.id for candidate in played.result] == [sound["_id"]]


def test_a_stream_that_reports_a_flawed_job_offers_what_no_version_understands() -> None:
    candidate = Candidate.of(given_job(available_at="soon", name=["x"]))

    assert candidate.flawed
    assert candidate.version > 2**31


def test_a_due_time_that_is_several_is_not_waited_for() -> None:
    assert play(next_due("default", ["thumbnail"], NOW), [[{"available_at": [NOW]}]]).result is None


# Claims


def claiming(ids: list[Any], clock: ScriptedClock) -> Op[list[Record]]:
    return claim_many(ids, clock, worker="w", lease=30, patience=2)


def test_a_refused_batch_returns_what_it_had_claimed_before(clock: ScriptedClock) -> None:
    document = held_job()

    played = play(claiming([document["_id"], "other"], clock), [REFUSED, Counted(1), [document]], clock=clock)

    assert [record.id for record in played.result] == [document["_id"]]


@pytest.mark.parametrize(
    "replies", [[REFUSED, Counted(0), []], [AccessDenied("db", "not allowed")]], ids=["nothing claimed", "no right"]
)
def test_a_batch_that_claims_nothing_is_refused(clock: ScriptedClock, replies: list[Any]) -> None:
    with pytest.raises(StoreError):
        play(claiming(["a", "b"], clock), replies, clock=clock)


async def test_members_of_a_group_that_were_claimed_one_by_one_are_kept_where_the_server_goes_away(
    clock: ScriptedClock,
) -> None:
    waiting = [Candidate(number, "t", 0, NOW, 1, 0) for number in range(3)]
    replies: list[Any] = [REFUSED, Claim([held_record(_id=0)]), UNANSWERED]

    async def arun(rule: Op[Any]) -> Any:
        rule.close()
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    store: Any = SimpleNamespace(arun=arun, clock=clock, place=SimpleNamespace(timeout=10.0))

    records = await claims.Claims(store, worker="w", lease=30.0).claim_together(waiting)

    assert [record.id for record in records] == [0]


def test_a_held_job_whose_flag_is_text_is_to_be_cancelled_without_a_reason() -> None:
    document = held_job(cancel="x")

    held = Held(document["_id"], document["claim"]["token"])

    assert play(flags([held]), [[document]]).result.cancelled == {held: ""}


@pytest.fixture
def memory() -> Iterator[tuple[axeq.Queue, Any]]:
    database = mongomock.MongoClient()["axeq"]
    with axeq.Store(database) as store:
        yield axeq.Queue(store), database["jobs"]


def test_a_job_whose_claims_are_refused_is_left_alone_and_the_others_complete(
    memory: tuple[axeq.Queue, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue, jobs = memory
    made = queue.enqueue_many([Probe(value=number) for number in range(5)])
    asked: list[Any] = []

    def one(candidate: Candidate, *given: Any, **options: Any) -> Op[list[Record]]:
        if candidate.id == made[2].id:
            asked.append(candidate.id)
            raise REFUSED
        return (yield from lifecycle.claim_one(candidate, *given, **options))

    def many(ids: list[Any], *given: Any, **options: Any) -> Op[list[Record]]:
        if made[2].id in ids:
            raise REFUSED
        return (yield from lifecycle.claim_many(ids, *given, **options))

    monkeypatch.setattr(claims, "claim_one", one)
    monkeypatch.setattr(claims, "claim_many", many)
    pool = quick_pool(queue.store)
    pool.add(axeq.Task(Probe, probe, workers=10))

    with caplog.at_level(logging.ERROR, "axeq.pool"), running(pool):
        eventually(lambda: jobs.count_documents({"state": "completed"}) == 4)
        assert queue.enqueue(Probe(value="after")).wait(DEADLINE) == "after"

    assert len(asked) == 1
    assert [record.getMessage() for record in caplog.records if "left alone" in record.getMessage()] != []
    assert queue.get(made[2].id).state is axeq.State.ENQUEUED


def test_a_worker_is_given_back_whatever_fails_around_its_handler(
    memory: tuple[axeq.Queue, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, _ = memory
    failing = [RuntimeError("not the handler's"), RuntimeError("nor this")]
    execute = Executor.execute

    async def fragile(self: Executor, attempt: Any) -> Any:
        if failing:
            raise failing.pop()
        return await execute(self, attempt)

    monkeypatch.setattr(Executor, "execute", fragile)
    pool = quick_pool(queue.store)
    pool.add(axeq.Task(Probe, probe, workers=1, min_delay=0.01, max_delay=0.01))

    with running(pool):
        made = [queue.enqueue(Probe(value=number)) for number in range(3)]
        assert [job.wait(DEADLINE) for job in made] == [0, 1, 2]

    assert sorted(event["verb"] for job in made for event in queue.get(job.id).events) == ["fail", "fail"]


# Outcomes


def test_an_outcome_that_the_server_refuses_does_not_cost_the_others_theirs(clock: ScriptedClock) -> None:
    held = [held_job() for _ in range(4)]
    batch = [settlement(Record(document), Failed({"message": "m"}), Limits(), clock) for document in held]

    played = play(settle(batch, clock), [REFUSED, REFUSED, Counted(1), REFUSED, Counted(2)], clock=clock)

    assert played.result.refused == {held[1]["_id"]: str(REFUSED)}
    assert played.result.lost == frozenset()


def test_an_outcome_that_the_driver_refuses_does_not_cost_the_others_theirs(clock: ScriptedClock) -> None:
    held = [held_job() for _ in range(2)]
    batch = [settlement(Record(document), Failed({"message": "m"}), Limits(), clock) for document in held]
    too_large = PayloadInvalid("the server cannot store it: DocumentTooLarge")

    played = play(settle(batch, clock), [too_large, too_large, Counted(1)], clock=clock)

    assert played.result.refused == {held[0]["_id"]: str(too_large)}


async def test_a_batch_that_nobody_can_write_is_let_go_and_the_next_is_written(clock: ScriptedClock) -> None:
    broken, sound = (settlement(Record(held_job()), Completed(), Limits(), clock) for _ in range(2))
    told: list[tuple[Any, Settled | None]] = []
    replies: list[Any] = [TypeError("not the server's"), Settled()]

    class Store:
        async def arun(self, rule: Op[Settled]) -> Settled:
            rule.close()
            reply = replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply  # type: ignore[no-any-return]

    store: Any = Store()
    store.clock = clock
    settler = Settler(store, done=lambda batch, settled: told.append((batch[0].id, settled)))

    settler.add(broken)
    await settler.drain()
    settler.add(sound)
    await settler.drain()

    assert told == [(broken.id, None), (sound.id, Settled())]


class Deaf:
    def __str__(self) -> str:
        raise SystemExit("no text")


class DeafError(Deaf, Exception):
    pass


@pytest.mark.parametrize("error", [DeafError(), Retry(Deaf()), Cancel(Deaf())], ids=lambda error: type(error).__name__)  # type: ignore[arg-type]
def test_an_exception_whose_text_ends_the_program_ends_its_job_alone(error: BaseException) -> None:
    outcome = decide(error, Record(held_job()), Limits())

    assert isinstance(outcome, Failed | Cancelled)
    assert "raised SystemExit" in repr(outcome)


def test_an_exception_without_a_text_keeps_its_type() -> None:
    assert describe(DeafError())["type"] == "DeafError"


def test_the_end_of_a_flawed_job_relies_on_nothing_in_it() -> None:
    update = end_flawed({"attempts": "many", "events": "x"}, "attempts are text", NOW, retention=60, worker=None)

    assert set(update) == {"$set", "$unset"}
    assert update["$set"]["attempts"] == 0


# Enqueues


@pytest.mark.parametrize("failing", [UNSENT, UNANSWERED])
def test_an_enqueue_whose_look_up_fails_is_unknown_where_it_may_have_been_stored(
    clock: ScriptedClock, failing: Exception
) -> None:
    rule = insert(Draft("t", 1, "default", {}, id="a", retention=1), clock)

    with pytest.raises(EnqueueUnknown):
        play(rule, [UNANSWERED, DuplicateKey(), failing, ...], clock=clock)


def test_an_enqueue_whose_look_up_fails_is_sent_again(clock: ScriptedClock) -> None:
    stored = given_job(_id="a")
    rule = insert(Draft("t", 1, "default", {}, id="a"), clock)

    played = play(rule, [UNANSWERED, DuplicateKey(), UNSENT, DuplicateKey(), [stored]], clock=clock)

    assert played.result.document == stored


def test_an_enqueue_whose_look_ups_fail_for_ever_is_unknown(clock: ScriptedClock) -> None:
    def reply(command: Any) -> Any:
        return DuplicateKey() if isinstance(command, Call) else UNSENT

    rule = insert(Draft("t", 1, "default", {}, id="a"), clock)

    with pytest.raises(EnqueueUnknown):
        play(rule, [UNANSWERED, reply, ...], clock=clock)
