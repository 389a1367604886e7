"""Values that the verbs of a queue and a store cannot use: refused by name, before anything is sent."""

from __future__ import annotations

from datetime import timedelta
from types import MappingProxyType
from typing import Any

import mongomock
import pytest

import axeq
from axeq.words.errors import ConfigurationError
from tests.support.probe import Probe
from tests.support.waiting import settled


@pytest.fixture(params=[axeq.Queue, axeq.AsyncQueue])
def queue(request: pytest.FixtureRequest) -> Any:
    return request.param(axeq.Store(mongomock.MongoClient()))


# Jobs by the many


@pytest.mark.parametrize("verb", ["remove_many", "retry_many", "wait_many"])
@pytest.mark.parametrize("jobs", ["ab", b"\x01\x02", bytearray(b"\x01"), MappingProxyType({"a": 1}), 7])
async def test_one_id_is_not_taken_for_the_ids_that_it_could_be_split_into(queue: Any, verb: str, jobs: Any) -> None:
    with pytest.raises(ConfigurationError, match="jobs must be a list"):
        await settled(getattr(queue, verb)(jobs))


@pytest.mark.parametrize("payloads", [Probe(), None, 7])
async def test_one_payload_is_not_taken_for_many(queue: Any, payloads: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"enqueue_many takes a list of payloads, .*: enqueue takes one"):
        await settled(queue.enqueue_many(payloads))


# One job


@pytest.mark.parametrize(
    ("payload", "mend"),
    [({"value": 1}, "as in Thumbnail(image=...), not a dict"), (Probe, "not a class: call it")],
)
async def test_what_is_no_payload_is_told_what_one_looks_like(queue: Any, payload: Any, mend: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a pydantic model") as caught:
        await settled(queue.enqueue(payload))

    assert mend in str(caught.value)


@pytest.mark.parametrize(
    ("model", "mend"), [(Probe(), "Probe, not an instance of it"), ("probe", "as in axeq.Model, not 'probe'")]
)
async def test_what_is_no_model_to_pull_is_told_what_one_is(queue: Any, model: Any, mend: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a pydantic model") as caught:
        await settled(queue.take(model))

    assert mend in str(caught.value)


@pytest.mark.parametrize("verb", ["get", "exists", "wait", "cancel", "retry", "remove"])
async def test_a_job_in_place_of_its_id_is_asked_for_the_id(queue: Any, verb: str) -> None:
    job = await settled(queue.enqueue(Probe(), id="seven"))

    with pytest.raises(ConfigurationError, match=r"give its \.id, 'seven'"):
        await settled(getattr(queue, verb)(job))


async def test_the_text_of_an_id_that_axeq_made_is_told_from_the_id(queue: Any) -> None:
    job = await settled(queue.enqueue(Probe()))

    with pytest.raises(axeq.JobNotFound, match=rf"bson\.ObjectId\('{job.id}'\)"):
        await settled(queue.get(str(job.id)))


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_a_model_in_place_of_a_tasks_name_is_told_the_name(queue: Any, verb: str) -> None:
    with pytest.raises(ConfigurationError, match="that of Probe is 'probe'"):
        await settled(getattr(queue, verb)(Probe))


async def test_a_duration_in_place_of_a_moment_is_told_how_to_make_one(queue: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"deadline must be .* not timedelta: as in datetime\.now\("):
        await settled(queue.enqueue(Probe(), deadline=timedelta(hours=1)))


# Where the jobs live


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://user:s3/cret@host/db",
        "mongodb://user:27017/s3cret@host/db",
        "mongodb://user:s3?cret@host/db",
        "mongodb://user:27017/s3?cret@host/db",
        "mongodb+srv://user:s3/cret@host/db",
    ],
)
def test_no_part_of_a_password_that_was_not_encoded_is_shown(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded") as raised:
        axeq.Store(uri)

    assert "cret" not in str(raised.value)
    assert "s3" not in str(raised.value)


def test_what_is_wrong_with_a_uri_whose_password_is_in_its_place_is_said() -> None:
    with pytest.raises(ConfigurationError, match="Port"):
        axeq.Store("mongodb://user:s3%2Fcret@host:x/db")


@pytest.mark.parametrize("path", ["db?appName=a@b", "db"])
def test_a_password_in_its_place_is_taken(path: str) -> None:
    assert axeq.Store(f"mongodb://user:s3%2Fcret@host/{path}").place.database == "db"


NAMES_OF_DATABASES = ["a b", "a.b", "a/b", "a$b", 'a"b', "a\\b", "a\0b", "", "é" * 32, 5, b"shop"]
NAMES_OF_COLLECTIONS = ["a$b", "a..b", ".a", "a.", "a\0b", "", "system.jobs", "j" * 201, 5]


@pytest.mark.parametrize("database", NAMES_OF_DATABASES)
def test_a_database_that_cannot_be_is_refused_at_once(database: Any) -> None:
    with pytest.raises(ConfigurationError, match="database must be"):
        axeq.Store("mongodb://localhost", database=database)


@pytest.mark.parametrize("collection", NAMES_OF_COLLECTIONS)
def test_a_collection_that_cannot_be_is_refused_at_once(collection: Any) -> None:
    with pytest.raises(ConfigurationError, match="collection must be"):
        axeq.Store("mongodb://localhost", collection=collection)


# Looking and counting


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        ("find", "state", "done"),
        ("find", "state", 3),
        ("find", "state", ["completed"]),
        *[(verb, "limit", value) for verb in ("find", "dead") for value in (-1, 0, "x", None, True, 2**31)],
        *[(verb, "skip", value) for verb in ("find", "dead") for value in (-1, "x", None, 1.5, 2**63)],
        *[(verb, "cap", value) for verb in ("stats", "stats_by_task") for value in (-1, 0, "x", None, 2**63)],
    ],
)
async def test_what_a_search_cannot_go_by_is_named(queue: Any, verb: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{option} must be .*, not ") as raised:
        await settled(getattr(queue, verb)(**{option: value}))

    assert repr(value) in str(raised.value)


async def test_a_state_is_also_known_by_its_text(queue: Any) -> None:
    assert await settled(queue.find(state="completed", limit=1, skip=0)) == []
