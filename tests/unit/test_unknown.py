"""Names that a pool adopts: how many at a time, and which come back."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import mongomock
import pytest

import axeq
from axeq.rules.workers import Serving, announce, leave
from axeq.running.unknown import Unknown


class Feed:
    """A feed that notes what it reads for others."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def adopt(self, name: str, version: int) -> None:
        self.names.add(name)

    def give_up(self, name: str) -> None:
        self.names.discard(name)


class Resting:
    async def resting(self) -> None:
        """Returns at once, as in a pool that has nothing to do."""


async def whatever(ctx: axeq.Context[Any, Any]) -> None:
    """Runs jobs of any name."""


@pytest.fixture
def store() -> Iterator[axeq.Store]:
    with axeq.Store(mongomock.MongoClient()["axeq"]) as store:
        yield store


@pytest.fixture(autouse=True)
def two_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axeq.running.unknown._MOST_ADOPTED", 2)


def unknown_of(store: axeq.Store, *queues: str) -> Unknown:
    plan: Any = SimpleNamespace(store=store, strangers=whatever, unknown={})
    plan.hooks = SimpleNamespace(tell=lambda *told: None)
    sources: Any = {queue: SimpleNamespace(feed=Feed(), foreign=frozenset()) for queue in queues}
    hints: Any = Resting()
    return Unknown(plan, sources, {}, hints, lambda task: None)


def comes(store: axeq.Store, name: str, queue: str = "default") -> None:
    """Enqueues a job of a name."""
    model: Any = type("Strange", (axeq.Model,), {"__module__": __name__}, name=name)
    axeq.Queue(store, queue).enqueue(model())


async def test_names_that_were_given_up_leave_room_for_others(store: axeq.Store) -> None:
    unknown = unknown_of(store, "default")
    comes(store, "a")
    comes(store, "b")
    await unknown.look(10)
    await store.arun(announce("theirs", Serving(["default"], ["a", "b"]), store.clock))
    comes(store, "c")
    comes(store, "d")

    await unknown.look(10)

    assert sorted(unknown.adopted) == ["c", "d"]


async def test_no_more_names_are_adopted_at_a_time_than_there_is_room_for(store: axeq.Store) -> None:
    unknown = unknown_of(store, "default")
    comes(store, "a")
    comes(store, "b")
    await unknown.look(10)
    await store.arun(announce("theirs", Serving(["default"], ["a"]), store.clock))
    comes(store, "c")
    await unknown.look(10)
    await store.arun(leave("theirs", store.clock))

    await unknown.look(10)

    assert sorted(unknown.adopted) == ["b", "c"]


async def test_a_name_that_is_adopted_already_is_run_for_another_queue_though_there_is_no_room(
    store: axeq.Store,
) -> None:
    unknown = unknown_of(store, "default", "more")
    comes(store, "a")
    comes(store, "b")
    await unknown.look(10)
    comes(store, "a", "more")
    comes(store, "c", "more")

    await unknown.look(10)

    assert unknown._adopted == {"a": {"default", "more"}, "b": {"default"}}
