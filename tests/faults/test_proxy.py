"""The proxy does to a connection what its toxics say, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pymongo
import pytest
from pymongo.errors import AutoReconnect, NotPrimaryError, PyMongoError

from axeq.wire.capabilities import probe
from tests.faults.proxy import Proxy
from tests.faults.seeds import rng
from tests.faults.toxics import Bandwidth, BlackHole, Cut, Hold, Latency, NotPrimary, Slicer
from tests.support.waiting import DEADLINE, eventually

Client = pymongo.MongoClient[dict[str, Any]]


@pytest.fixture
def client(proxy: Proxy, server_uri: str, database: str) -> Iterator[Client]:
    """A client by way of the proxy, which does not retry by itself."""
    with pymongo.MongoClient[dict[str, Any]](proxy.uri(), retryWrites=False, retryReads=False) as client:
        yield client
    with pymongo.MongoClient[dict[str, Any]](server_uri) as direct:
        direct.drop_database(database)


@pytest.fixture
def things(client: Client, database: str) -> Any:
    things = client[database]["things"]
    things.insert_one({"_id": "first"})
    return things


def test_a_driver_stays_with_the_proxy_whatever_the_server_calls_itself(client: Client, proxy: Proxy) -> None:
    client.admin.command("ping")

    assert client.nodes == frozenset({("127.0.0.1", proxy.port)})


@pytest.mark.parametrize("direct", [False, True])
def test_a_server_can_do_by_way_of_the_proxy_what_it_can_do(
    proxy: Proxy, server_uri: str, database: str, direct: bool
) -> None:
    with pymongo.MongoClient[dict[str, Any]](server_uri) as client:
        able = probe(client, database)

    options = {"directConnection": True, "replicaSet": None} if direct else {}
    with pymongo.MongoClient[dict[str, Any]](proxy.uri(), **options) as client:
        assert probe(client, database) == able
        client.drop_database(database)


def test_a_cut_reply_belongs_to_a_command_that_was_carried_out(proxy: Proxy, things: Any) -> None:
    with proxy.toxic(Cut(1.0, {"insert"}, rng("cut"), times=1)), pytest.raises(AutoReconnect):
        things.insert_one({"_id": "second"})

    assert things.count_documents({}) == 2
    assert proxy.injected == {"cut": 1}


@pytest.mark.parametrize(("executed", "stored"), [(False, 1), (True, 2)])
def test_a_step_down_is_answered_with_or_without_the_command(
    proxy: Proxy, things: Any, executed: bool, stored: int
) -> None:
    refused = NotPrimary(1.0, {"insert"}, rng("step down"), times=1, executed=executed)

    with proxy.toxic(refused), pytest.raises(NotPrimaryError):
        things.insert_one({"_id": "second"})

    assert things.count_documents({}) == stored


def test_the_same_seed_strikes_the_same_commands(proxy: Proxy, things: Any) -> None:
    def struck() -> list[int]:
        with proxy.toxic(Cut(0.3, {"insert"}, rng("same", seed=7))):
            return [number for number in range(12) if _fails(lambda: things.insert_one({}))]

    first = struck()

    assert struck() == first
    assert 1 <= len(first) <= 11


def test_every_segment_of_one_byte_arrives(proxy: Proxy, things: Any) -> None:
    with proxy.toxic(Slicer(1)):
        found = things.find_one({"_id": "first"})

    assert found == {"_id": "first"}


def test_a_narrow_connection_takes_its_time(proxy: Proxy, things: Any) -> None:
    began = time.monotonic()
    with proxy.toxic(Bandwidth(20_000)):
        things.insert_one({"padding": "x" * 4000})

    assert time.monotonic() - began >= 0.2


def test_latency_is_added_to_a_round_trip(proxy: Proxy, things: Any) -> None:
    with proxy.toxic(Latency(0.1, 0.0, rng("latency"))):
        began = time.monotonic()
        things.find_one()

    assert time.monotonic() - began >= 0.1


def test_a_black_hole_delivers_nothing_until_it_ends(proxy: Proxy, things: Any) -> None:
    with proxy.toxic(BlackHole()), pymongo.timeout(0.5), pytest.raises(PyMongoError) as raised:
        things.find_one()

    assert raised.value.timeout
    assert things.find_one() == {"_id": "first"}


def test_a_reset_reaches_every_connection(proxy: Proxy, things: Any) -> None:
    with proxy.toxic(BlackHole()), ThreadPoolExecutor(1) as threads:
        fails = threads.submit(_fails, things.find_one)
        eventually(lambda: proxy.commands["find"] > 0)
        count = proxy.reset()

        assert fails.result(DEADLINE)
    assert count >= 2  # the pool's, and the monitor's
    assert things.find_one() == {"_id": "first"}


@pytest.mark.parametrize(("executed", "stored"), [(False, 1), (True, 2)])
def test_a_held_command_was_carried_out_or_was_not(proxy: Proxy, things: Any, executed: bool, stored: int) -> None:
    hold = Hold("insert", executed=executed)

    with proxy.toxic(hold), ThreadPoolExecutor(1) as threads:
        fails = threads.submit(_fails, lambda: things.insert_one({"_id": "second"}))
        assert hold.held.wait(DEADLINE)
        proxy.reset()

        assert fails.result(DEADLINE)
    assert things.count_documents({}) == stored


def _fails(act: Any) -> bool:
    try:
        act()
    except PyMongoError:
        return True
    return False
