"""What is stored and shown on a real server: sealed jobs that nobody else reads, and values that stay values."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson.binary import Binary
from pydantic import SecretStr

import axeq
from axeq.documents.codec import CODEC_OPTIONS, SEALED
from tests.support.masking import Mask
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe, probe_in_process
from tests.support.waiting import DEADLINE, cancelled, eventually, settled

SECRET = "s3cr3t-w0rd"  # a test's own
EXPRESSIONS = ["$data.value", "$$ROOT", "$_id", "$$NOW", "{$toUpper: 'a'}", "$state"]


class Login(axeq.Model[SecretStr], name="login"):
    password: SecretStr


class Flaky(Mask):
    """Cannot seal while it is `down`."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False

    def encode(self, data: bytes, /) -> bytes:
        if self.down:
            raise ConnectionError(f"no key store for {data!r}")
        return super().encode(data)


def pool_for(store: axeq.Store, handler: Any = probe, **options: Any) -> axeq.Pool:
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, handler, **{"min_delay": 0.01, "max_delay": 0.05, **options}))
    return pool


def put_back(job: axeq.Job[Any, Any]) -> axeq.Job[Any, Any]:
    return eventually(lambda: job if job.refresh().events else False)


@pytest.fixture
async def sealed(store: axeq.Store) -> AsyncIterator[axeq.Store]:
    """The store of each kind, with a codec."""
    async with axeq.Store(store._given, database=store.place.database, codec=Mask()) as sealed:
        yield sealed


@pytest.fixture
def sealed_store(uri: str) -> Any:
    with axeq.Store(uri, codec=Mask()) as store:
        yield store


# Sealed jobs, in stores of every kind


def test_a_sealed_job_runs_and_shows_nothing_of_its_payload_or_result(sealed: axeq.Store, jobs: Any) -> None:
    with running(pool_for(sealed)):
        job = axeq.Queue(sealed).enqueue(Probe(value={"card": SECRET}), label="order 17")

        assert job.wait(DEADLINE) == {"card": SECRET}
    (stored,) = jobs.find()
    found = axeq.Queue(sealed).get(job.id, model=Probe)

    assert SECRET.encode() not in bson.encode(stored, codec_options=CODEC_OPTIONS)
    assert [type(stored[field]) for field in ("data", "result")] == [Binary, Binary]
    assert [stored[field].subtype for field in ("data", "result")] == [SEALED, SEALED]
    assert (stored["name"], stored["label"], stored["state"], stored["attempts"]) == (
        "probe",
        "order 17",
        "completed",
        1,
    )
    assert found.payload == Probe(value={"card": SECRET})
    assert (found.data["value"], found.result) == ({"card": SECRET}, {"card": SECRET})


async def test_both_faces_open_what_was_sealed(sealed: axeq.Store) -> None:
    queue = axeq.AsyncQueue(sealed)
    (job, _) = await queue.enqueue_many([Probe(value=SECRET), Probe(value=2)])

    with running(pool_for(sealed)):
        result = await job.wait(DEADLINE)
        found = await queue.wait(job.id, timeout=DEADLINE)
        (again, _) = await asyncio.gather(queue.get(job.id), queue.find())

    assert result == SECRET
    assert (found.result, found.payload["value"]) == (SECRET, SECRET)
    assert again.data["value"] == SECRET


def test_without_the_codec_a_job_is_seen_and_its_content_is_not(sealed: axeq.Store, store: axeq.Store) -> None:
    with running(pool_for(sealed)):
        axeq.Queue(sealed).enqueue(Probe(value=SECRET)).wait(DEADLINE)

    (seen,) = axeq.Queue(store).find()

    assert (seen.name, seen.state, seen.attempts) == ("probe", axeq.State.COMPLETED, 1)
    assert (type(seen.data), type(seen.result)) == (Binary, Binary)
    for read in (
        lambda: seen.payload,
        lambda: seen.wait(1),
        lambda: axeq.Queue(store).get(seen.id, model=Probe).wait(1),
    ):
        with pytest.raises(axeq.PayloadSealed, match="this store has no codec"):
            read()


# What becomes of them


def test_a_failure_is_sealed_but_for_its_type(sealed_store: axeq.Store, plain_store: axeq.Store, raw: Any) -> None:
    with running(pool_for(sealed_store, max_attempts=2)):
        job = axeq.Queue(sealed_store).enqueue(Probe(outcome="raise", value=SECRET))
        error = cancelled(job)
    (stored,) = raw.find()
    seen = axeq.Queue(plain_store).get(job.id)

    assert SECRET.encode() not in bson.encode(stored, codec_options=CODEC_OPTIONS)
    assert error.error is not None
    assert (error.error["type"], error.error["message"]) == ("ValueError", SECRET)
    assert "raise ValueError(ctx.model.value)" in error.error["traceback"]
    assert job.refresh().error == error.error
    assert seen.error is not None
    assert (seen.error["type"], seen.error["message"]) == ("ValueError", "(sealed)")
    assert [event["verb"] for event in seen.events] == ["fail", "cancel"]
    assert SECRET not in str(cancelled(seen))


@pytest.mark.parametrize("kind", ["payload", "result"])
def test_what_does_not_validate_is_not_quoted(kind: str, sealed_store: axeq.Store, raw: Any) -> None:
    class Checked(axeq.Model[int], name="checked"):
        number: Any

    pool = quick_pool(sealed_store)

    @pool.task(Checked)
    async def check(ctx: axeq.Context[Checked, int]) -> int:
        return SECRET  # type: ignore[return-value]

    job = axeq.Queue(sealed_store).enqueue(Checked(number=SECRET))
    if kind == "payload":
        strange = axeq.Queue(sealed_store).enqueue(Probe(value=SECRET))
        raw.update_one({"_id": job.id}, {"$set": {"data": strange.document["data"]}})
        strange.remove()
    with running(pool):
        error = cancelled(job)

    assert error.cause == {"payload": "invalid", "result": "result"}[kind]
    assert SECRET.encode() not in bson.encode(raw.find_one(), codec_options=CODEC_OPTIONS)


@pytest.mark.parametrize("codec", [None, Mask(1)], ids=["no codec", "another key"])
def test_a_pool_that_cannot_open_a_job_puts_it_back_uncounted_and_says_so_once(
    codec: Any,
    uri: str,
    sealed_store: axeq.Store,
    raw: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs = axeq.Queue(sealed_store).enqueue_many([Probe(value=number) for number in range(3)])
    with axeq.Store(uri, codec=codec) as other, running(pool_for(other, max_attempts=1)) as pool:
        for job in jobs:
            put_back(job)
        assert axeq.Queue(other).enqueue(Probe(value="mine")).wait(DEADLINE) == "mine"
        said = [record for record in caplog.records if (record.name, record.levelno) == ("axeq.pool", logging.ERROR)]

    for job in jobs:
        assert (job.state, job.attempts, job.lost, job.error) == (axeq.State.ENQUEUED, 0, 0, None)
        assert job.available_at is not None
        assert job.available_at > datetime.now(UTC) + timedelta(seconds=20)
        assert [event["verb"] for event in job.events] == ["snooze"]
        assert "is sealed, and" in job.events[0]["reason"]
    assert [record.getMessage().partition(" are put back")[0] for record in said] == ["jobs of 'probe'"]
    assert pool.counts["snooze"] == 3

    raw.update_many({"state": "enqueued"}, {"$set": {"available_at": datetime.now(UTC)}})
    with running(pool_for(sealed_store, max_attempts=1)):
        assert [job.wait(DEADLINE) for job in jobs] == [0, 1, 2]


def test_jobs_from_before_the_codec_still_run(sealed_store: axeq.Store, plain_store: axeq.Store) -> None:
    job = axeq.Queue(plain_store).enqueue(Probe(value="before"))

    with running(pool_for(sealed_store)):
        done = axeq.Queue(sealed_store).get(job.id, model=Probe)

        assert done.wait(DEADLINE) == "before"


def test_a_result_that_cannot_be_sealed_now_is_tried_again_and_never_stored_plain(uri: str, raw: Any) -> None:
    codec = Flaky()
    with axeq.Store(uri, codec=codec) as store:
        job = axeq.Queue(store).enqueue(Probe(value=SECRET))
        codec.down = True
        with running(pool_for(store)):
            eventually(lambda: job.refresh().attempts >= 2)
            stored = raw.find_one()
            codec.down = False

            assert job.wait(DEADLINE) == SECRET
    assert stored["error"]["type"] == "PayloadSealed"
    assert SECRET.encode() not in bson.encode(stored, codec_options=CODEC_OPTIONS)


def test_secrets_are_sealed_by_value(sealed_store: axeq.Store, raw: Any) -> None:
    pool = quick_pool(sealed_store)

    @pool.task(Login)
    async def log_in(ctx: axeq.Context[Login, SecretStr]) -> SecretStr:
        return ctx.model.password

    with running(pool):
        job = axeq.Queue(sealed_store).enqueue(Login(password=SecretStr(SECRET)))

        assert job.wait(DEADLINE).get_secret_value() == SECRET
    assert SECRET.encode() not in bson.encode(raw.find_one(), codec_options=CODEC_OPTIONS)


def test_a_handler_in_a_process_of_its_own_gets_an_opened_payload(sealed_store: axeq.Store) -> None:
    with running(pool_for(sealed_store, probe_in_process, executor="process", max_attempts=1)):
        queue = axeq.Queue(sealed_store)
        good, bad = queue.enqueue(Probe(value=SECRET)), queue.enqueue(Probe(outcome="raise", value=SECRET))

        assert good.wait(DEADLINE) == SECRET
        error = cancelled(bad).error

    assert error is not None
    assert error["message"] == SECRET


def test_a_job_that_was_sealed_can_be_retried_by_hand(sealed_store: axeq.Store) -> None:
    with running(pool_for(sealed_store)):
        job = axeq.Queue(sealed_store).enqueue(Probe(value=SECRET))
        job.wait(DEADLINE)

        assert job.retry().wait(DEADLINE) == SECRET
        assert job.attempts == 1


# Values stay values


@pytest.mark.kinds("uri", "mongomock")
async def test_results_that_look_like_expressions_come_back_as_they_are(queue: Any, store: axeq.Store) -> None:
    values = [{"text": text, "all": EXPRESSIONS} for text in EXPRESSIONS * 20]
    made = await settled(queue.enqueue_many([Probe(value=value) for value in values]))

    with running(pool_for(store, workers=50)):
        for job in made:
            await settled(job.wait(DEADLINE))
        found = [(await settled(queue.get(job.id))).result for job in made]

    assert found == values


@pytest.mark.kinds("uri", "mongomock")
async def test_ids_that_look_like_expressions_are_settled_as_themselves(queue: Any, store: axeq.Store) -> None:
    for text in EXPRESSIONS:
        await settled(queue.enqueue(Probe(value=text), id=text))

    with running(pool_for(store, workers=50)):
        done = [await settled(queue.wait(text, timeout=DEADLINE)) for text in EXPRESSIONS]

    assert [(job.id, job.result) for job in done] == [(text, text) for text in EXPRESSIONS]


def test_failures_that_look_like_expressions_are_stored_as_text(plain_store: axeq.Store) -> None:
    queue = axeq.Queue(plain_store)

    with running(pool_for(plain_store, max_attempts=1)):
        jobs = [queue.enqueue(Probe(outcome="raise", value=text)) for text in EXPRESSIONS]
        messages = [(cancelled(job).error or {})["message"] for job in jobs]

    assert messages == EXPRESSIONS


# Bounds


def test_what_a_handler_raises_is_kept_in_bounds(plain_store: axeq.Store, raw: Any) -> None:
    long = "é" * 1_000_000
    pool = quick_pool(plain_store)

    @pool.task(Probe, max_attempts=1)
    async def fail(ctx: axeq.Context[Probe, Any]) -> None:
        raise type("E" * 100_000, (Exception,), {})(long)

    with running(pool):
        cancelled(axeq.Queue(plain_store).enqueue(Probe()))
    stored = raw.find_one()

    assert {key: len(value.encode()) for key, value in stored["error"].items()} == {
        "type": 256,
        "message": pytest.approx(2048, abs=2),
        "traceback": pytest.approx(16_384, abs=2),
    }
    assert len(bson.encode(stored, codec_options=CODEC_OPTIONS)) < 32_768


@pytest.mark.parametrize("name", ["os.system", "builtins/eval", "tests.support.probe:probe"])
def test_a_job_that_no_task_is_for_is_never_touched_whatever_its_name(
    name: str, plain_store: axeq.Store, raw: Any
) -> None:
    strange = axeq.Queue(plain_store).enqueue(Probe().model_copy(), name="probe")
    raw.update_one({"_id": strange.id}, {"$set": {"name": name}})
    before = raw.find_one()

    with running(pool_for(plain_store)) as pool:
        eventually(lambda: pool.unknown == {name: 1})
        assert axeq.Queue(plain_store).enqueue(Probe(value=1)).wait(DEADLINE) == 1

    assert raw.find_one({"_id": strange.id}) == before


def test_a_uri_that_a_handler_quotes_is_stored_and_logged_without_its_password(
    plain_store: axeq.Store, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="axeq")
    uri = f"mongodb://ann:{SECRET}@127.0.0.1:1/shop"

    with running(pool_for(plain_store, max_attempts=1)):
        error = cancelled(axeq.Queue(plain_store).enqueue(Probe(outcome="raise", value=f"cannot use {uri}")))

    assert error.error is not None
    assert error.error["message"] == "cannot use mongodb://***@127.0.0.1:1/shop"
    assert SECRET not in bson.encode({"error": raw.find_one()["error"]}).decode(errors="replace")
    assert SECRET not in caplog.text + str(error)


def test_a_codec_is_called_from_many_threads_at_once(sealed_store: axeq.Store) -> None:
    queue = axeq.Queue(sealed_store)
    made: list[axeq.Job[Any, Any]] = []
    threads = [threading.Thread(target=lambda: made.append(queue.enqueue(Probe(value=SECRET)))) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [queue.get(job.id, model=Probe).payload.value for job in made] == [SECRET] * 8
