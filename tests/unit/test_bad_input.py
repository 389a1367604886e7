"""Values that the verbs of a queue and a store cannot use: refused by name, before anything is sent."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import mongomock
import pytest

import axeq
from axeq.errors import ConfigurationError
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
