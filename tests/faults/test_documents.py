"""What people, models and hands at the database put in: every value comes back equal or is refused by name, and no
stored document stops a pool.
"""

from __future__ import annotations

import enum
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import bson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

import axeq
from axeq.documents.codec import CODEC_OPTIONS
from axeq.documents.failure import failure
from axeq.documents.record import Record
from axeq.rules.outcome import Failed, Limits
from axeq.rules.settlement import settlement
from axeq.words.clock import milliseconds
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe, stored_probe
from tests.support.waiting import DEADLINE, eventually
from tests.unit.playing import ScriptedClock, held_job

from .inputs import KIB, MIB, Anything, fuzzed, on_mongomock
from .model_collection import updated


class Colour(enum.Enum):
    RED = "red"


# F30: payloads

KEYS = (
    st.text(max_size=6)
    | st.sampled_from(["", "$set", "a.b", "\0", "a\0b", "$", "_id", "\ud800", "1", "state", "__class__"])
    | st.integers(0, 3)
    | st.booleans()
    | st.none()
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) - 2, 2**63 + 1)
    | st.sampled_from([2**63, -(2**63) - 1, 2**63 - 1, -(2**63)])
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\ud800", "a\0b", "$where", "\u2028"])
    | st.binary(max_size=8)
    | st.decimals(allow_nan=False)
    | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))  # noqa: DTZ001
    | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC) | st.just(ZoneInfo("Asia/Tokyo")))  # noqa: DTZ001
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.sampled_from([Colour.RED, object(), 1j, range(3), Exception("x"), type, len])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.frozensets(st.integers(0, 9), max_size=4)
    ),
    max_leaves=12,
)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def as_read(value: Any) -> Any:
    """Returns what a value is after it was stored, by the table of docs/payloads.md."""
    match value:
        case enum.Enum():
            return as_read(value.value)
        case datetime():
            return milliseconds(value).replace(fold=0)
        case date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case dict():
            return {str(as_read(key)): as_read(item) for key, item in value.items()}
        case frozenset():
            return [as_read(item) for item in sorted(value, key=repr)]
        case list() | tuple():
            return [as_read(item) for item in value]
    return value


@fuzzed
@given(VALUES)
@example(nested(200))
@example({"$set": {"state": "completed"}})
@example({1: "a", "1": "b"})
@example(float("nan"))
@example(Decimal("sNaN"))
@example(datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Zurich")))
def test_a_payload_comes_back_equal_or_is_refused_by_field_and_nothing_is_stored(value: Any) -> None:
    queue, jobs = on_mongomock()

    try:
        job = queue.enqueue(Anything(value=value))
    except axeq.PayloadInvalid as refused:
        assert "anything" in str(refused)  # noqa: PT017
        assert jobs.count_documents({}) == 0
    else:
        read = queue.get(job.id, model=Anything).payload.value
        assert repr(read) == repr(as_read(value))
        assert jobs.count_documents({}) == 1


@fuzzed
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_of_many_payloads_all_are_stored_or_none(values: list[Any]) -> None:
    queue, jobs = on_mongomock()

    try:
        queue.enqueue_many([Anything(value=value) for value in values])
    except axeq.PayloadInvalid:
        assert jobs.count_documents({}) == 0
    else:
        assert jobs.count_documents({}) == len(values)


def test_keys_that_become_the_same_text_are_refused() -> None:
    queue, jobs = on_mongomock()

    with pytest.raises(axeq.PayloadInvalid, match=r"anything\.value"):
        queue.enqueue(Anything(value={1: "a", "1": "b"}))

    assert jobs.count_documents({}) == 0


def test_uuids_and_decimals_are_read_back_as_such() -> None:
    queue, _ = on_mongomock()
    value = [uuid.UUID(int=7), Decimal("1.10")]

    assert queue.get(queue.enqueue(Anything(value=value)).id, model=Anything).payload.value == value


# F31: sizes


@pytest.mark.parametrize("size", [int(15.9 * MIB), 16 * MIB, 17 * MIB])
@pytest.mark.parametrize("limit", [256 * KIB, 8 * MIB])
def test_a_payload_beyond_the_limit_is_refused_with_both_sizes_before_anything_is_sent(size: int, limit: int) -> None:
    queue, jobs = on_mongomock()
    queue = axeq.Queue(queue.store, max_payload=limit)

    with pytest.raises(axeq.PayloadTooLarge) as refused:
        queue.enqueue(Anything(value="x" * size))

    assert size <= refused.value.size <= size + 100
    assert refused.value.limit == limit
    assert f"{refused.value.size:,}" in str(refused.value)
    assert f"{limit:,}" in str(refused.value)
    assert jobs.count_documents({}) == 0


def test_a_job_stays_small_however_often_and_loudly_it_fails() -> None:
    document = held_job(data={"value": "x" * 256 * KIB})
    clock = ScriptedClock()
    loud = Failed(failure("E" * 10_000, "m" * MIB, "t" * MIB))

    for attempt in range(100):
        entry = settlement(Record({**document, "attempts": attempt}), loud, Limits(), clock)  # type: ignore[arg-type]
        document = updated(document, entry.update)

    assert len(document["events"]) == 50
    assert len(bson.encode(document, codec_options=CODEC_OPTIONS)) < (256 + 256) * KIB


# F32: documents changed by hand

CORRUPTED: dict[str, dict[str, Any]] = {
    "no data": {"data": ...},
    "data that is text": {"data": "x"},
    "data that is null": {"data": None},
    "no attempts": {"attempts": ...},
    "attempts below zero": {"attempts": -1},
    "no lost": {"lost": ...},
    "lost below zero": {"lost": -1},
    "an unknown state": {"state": "weird"},
    "no state": {"state": ...},
    "events that are text": {"events": "x"},
    "events that are text, of a job that fails": {"events": "x", "data": {"outcome": "raise"}},
    "a claim that is text": {"claim": "x"},
    "no priority": {"priority": ...},
    "a version that is text": {"version": "x"},
    "no version": {"version": ...},
    "a version of the future": {"version": 10**6},
    "a due time that is text": {"available_at": "soon"},
    "a name that is a number": {"name": 5},
}
WRONG: dict[str, dict[str, Any]] = {
    "retention": {"retention": "x"},
    "retention without end": {"retention": 1e300},
    "timeout": {"timeout": "x"},
    "timeout without end": {"timeout": 1e300},
    "created_at that is missing": {"created_at": ...},
    "created_at at the end of time": {"created_at": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)},
    "attempts": {"attempts": "many"},
    "lost": {"lost": "x"},
    "lost below zero": {"lost": -1},
    "lost that is missing": {"lost": ...},
    "priority": {"priority": "high"},
    "priority that is no number": {"priority": float("nan")},
    "max_attempts": {"max_attempts": "x"},
    "deadline": {"deadline": "x"},
    "cancel": {"cancel": "x"},
    "error": {"error": "x", "attempts": 5},
    "events": {"events": "x", "data": {"outcome": "raise"}},
    "available_at": {"available_at": [datetime(2020, 1, 1, tzinfo=UTC)]},
    "name": {"name": ["probe"]},
    "_id": {"_id": {"given": "by hand"}},
}
"""Documents that no rule can work with; the first field is the one to blame."""


def others_complete(store: axeq.Store, jobs: Any, corrupted: list[dict[str, Any]], *, settled: bool = False) -> None:
    """Puts good jobs beside corrupted ones, and one after them, and waits until all the good ones have completed."""
    jobs.insert_many(corrupted)
    jobs.insert_many([stored_probe() for _ in range(50)])
    pool = quick_pool(store, lease=1, drain=1)
    pool.add(axeq.Task(Probe, probe, max_attempts=3, min_delay=0.01, max_delay=0.02))
    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(value="after"))
        good = {"state": "completed", "_id": {"$nin": [document["_id"] for document in corrupted]}}

        assert job.wait(DEADLINE) == "after"
        eventually(lambda: jobs.count_documents(good) == 51)
        if settled:
            eventually(lambda: jobs.count_documents({"available_at": {"$exists": True}}) == 0)


@pytest.mark.parametrize("kind", ["uri"], indirect=True)
def test_jobs_complete_beside_every_document_that_was_corrupted(store: axeq.Store, jobs: Any) -> None:
    others_complete(store, jobs, [stored_probe(**fields) for fields in CORRUPTED.values() for _ in range(3)])


@pytest.mark.parametrize("kind", ["uri"], indirect=True)
@pytest.mark.parametrize("what", WRONG)
def test_jobs_complete_beside_a_document_of_wrong_types(store: axeq.Store, jobs: Any, what: str) -> None:
    fields = WRONG[what]
    corrupted = [stored_probe(**fields) for _ in range(1 if "_id" in fields else 3)]

    others_complete(store, jobs, corrupted, settled=True)

    for document in corrupted:
        ended = jobs.find_one({"_id": {"$eq": document["_id"]}})
        assert (ended["state"], ended["cause"]) == ("cancelled", "invalid")
        assert ended["error"]["message"].startswith(f"{next(iter(fields))} ")
        assert "available_at" not in ended


# F33: models that have changed


class Before(BaseModel):
    width: int
    colour: str = "red"


class Added(BaseModel):
    width: int
    colour: str = "red"
    height: int = 7


class Removed(BaseModel):
    width: int


class Required(BaseModel):
    width: int
    owner: str


class Narrowed(BaseModel):
    width: bool


@pytest.mark.parametrize(
    ("model", "ends"),
    [
        (Added, {"width": 3, "colour": "red", "height": 7}),
        (Removed, {"width": 3}),
        (Required, "owner: Field required"),
        (Narrowed, "width: Input should be a valid boolean"),
    ],
    ids=["added with a default", "removed", "made required", "of another type"],
)
def test_a_job_of_an_older_model_runs_or_is_cancelled_with_the_field(model: type[BaseModel], ends: Any) -> None:
    queue, jobs = on_mongomock()
    job = queue.enqueue(Before(width=3), name="evolved")
    pool = quick_pool(queue.store)

    async def dump(ctx: Any) -> Any:
        return ctx.model.model_dump()

    pool.add(axeq.Task(model, dump, name="evolved"))
    with running(pool):
        if isinstance(ends, dict):
            assert job.wait(DEADLINE) == ends
            return
        with pytest.raises(axeq.JobCancelled, match=ends) as cancelled:
            job.wait(DEADLINE)

    assert cancelled.value.cause == "invalid"
    assert jobs.find_one({"_id": job.id})["data"] == {"width": 3, "colour": "red"}


# F35: labels and names that mean something to MongoDB


@pytest.mark.parametrize("label", ["$ne", "{'$ne': 1}", "$where: 1", "a.b", "../..", "<script>", "\u2028", "%00"])
def test_a_label_is_only_ever_text(label: str) -> None:
    queue, _ = on_mongomock()
    job = queue.enqueue(Anything(), label=label)
    queue.enqueue(Anything(), label="another")

    assert [found.id for found in queue.find(label=label)] == [job.id]
    with pytest.raises(axeq.LabelTaken):
        queue.enqueue(Anything(), label=label)
