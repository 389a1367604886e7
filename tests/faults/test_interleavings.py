"""Every interleaving of two pools, somebody outside, lost replies and passing time, over one job and axeq's own rules.

The first breach is told with the shortest way to it. Run with `-s` to see how many moments there were.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from axeq.rules import lifecycle
from axeq.wire.wire import Call

from .interleaving_explorer import Explored, explore
from .interleaving_oracle import Broken
from .model_collection import Collection, NotUnderstood

OUTCOMES = ("complete", "complete with result", "fail", "snooze", "release", "cancel")

SMALL: dict[str, dict[str, Any]] = {
    "one fault in any outcome": {"outcomes": OUTCOMES, "faults": 1},
    "a lease or a delay that passes": {"outcomes": ("complete", "fail", "release"), "jumps": 1},
    "an enqueue with a fault": {"outcomes": ("complete",), "outside": ("insert",), "faults": 1},
    "a cancel by hand": {"outcomes": OUTCOMES, "outside": ("cancel",)},
    "a retry by hand": {"outcomes": OUTCOMES, "outside": ("retry",)},
    "a removal by hand": {"outcomes": OUTCOMES, "outside": ("remove",)},
    "a cancel and a retry by hand": {"outcomes": ("complete", "cancel"), "outside": ("cancel", "retry")},
}
LARGE: dict[str, dict[str, Any]] = {
    "two faults": {"outcomes": ("complete",), "faults": 2},
    "a fault and a lease that passes": {"outcomes": ("complete", "fail"), "faults": 1, "jumps": 1},
    "two leases that pass": {"outcomes": ("complete", "release"), "jumps": 2},
    "an enqueue with two faults": {"outcomes": ("complete",), "outside": ("insert",), "faults": 2},
    "a cancel by hand and a lease that passes": {"outcomes": ("snooze",), "outside": ("cancel",), "jumps": 1},
    "a cancel by hand and a fault": {"outcomes": ("complete", "fail"), "outside": ("cancel",), "faults": 1},
    "a retry by hand and a fault": {"outcomes": ("complete", "fail"), "outside": ("retry",), "faults": 1},
}
FULL: dict[str, dict[str, Any]] = {
    "two faults, and jobs given back": {"outcomes": ("complete", "release"), "faults": 2},
    "a fault, and a retry after a lease that passes": {
        "outcomes": ("complete", "cancel"),
        "outside": ("retry",),
        "faults": 1,
        "jumps": 1,
    },
}
"""Minutes, not seconds: with `AXEQ_FULL=1`."""


def explored(name: str, options: dict[str, Any]) -> Explored:
    result = explore(**options)
    print(f"\n{name}: {result.moments:,} moments, {result.steps:,} steps, {result.ended:,} where the job has ended")
    return result


@pytest.mark.parametrize("name", SMALL)
def test_no_short_interleaving_breaks_a_promise(name: str) -> None:
    result = explored(name, SMALL[name])

    assert result.moments > 300
    assert result.ended


@pytest.mark.parametrize("name", LARGE)
def test_no_interleaving_breaks_a_promise(name: str) -> None:
    result = explored(name, LARGE[name])

    assert result.moments > 3000
    assert result.ended


@pytest.mark.skipif(not os.environ.get("AXEQ_FULL"), reason="takes minutes: AXEQ_FULL=1 runs it")
@pytest.mark.parametrize("name", FULL)
def test_no_long_interleaving_breaks_a_promise(name: str) -> None:
    assert explored(name, FULL[name]).moments > 20_000


def without(key: str, execute: Any) -> Any:
    """Returns what carries commands out as if their filters did not say `key`."""

    def careless(self: Collection, command: Any) -> Any:
        if isinstance(command, Call) and isinstance(command.args[0], dict):
            query = {name: wanted for name, wanted in command.args[0].items() if name != key}
            command = Call(command.collection, command.method, (query, *command.args[1:]), command.kwargs)
        return execute(self, command)

    return careless


@pytest.mark.parametrize(
    ("key", "options", "breach"),
    [
        ("claim.token", SMALL["a lease or a delay that passes"], "a stale"),
        ("state", SMALL["one fault in any outcome"], "a stale"),
        ("available_at", SMALL["one fault in any outcome"], "a completed job is claimed"),
        ("lost", SMALL["a lease or a delay that passes"], "counts"),
    ],
)
def test_a_guard_that_is_left_out_is_found_with_the_way_there(
    monkeypatch: pytest.MonkeyPatch, key: str, options: dict[str, Any], breach: str
) -> None:
    monkeypatch.setattr(Collection, "execute", without(key, Collection.execute))

    with pytest.raises(Broken, match=rf"{breach}.*, after: .*claim") as broken:
        explore(**options)

    print(f"\nwithout {key}: {broken.value}")


def test_a_lease_that_lasts_shorter_than_promised_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(clock: Any, lease: float) -> Any:
        return clock.earliest()

    monkeypatch.setattr(lifecycle, "lease_end", short)

    with pytest.raises(Broken, match="two attempts overlap within their leases"):
        explore(**SMALL["one fault in any outcome"])


def test_the_collection_refuses_what_it_does_not_know() -> None:
    collection = Collection({"job": {"_id": "job"}})

    for command in (
        Call("jobs", "aggregate", ([],)),
        Call("control", "delete_one", ({},)),
        Call("jobs", "delete_one", ({"_id": {"$regex": "j"}},)),
        Call("jobs", "delete_one", ({"$nor": []},)),
        Call("jobs", "update_one", ({}, {"$rename": {"a": "b"}})),
        Call("jobs", "update_one", ({}, {"$set": {"a.b": 1}})),
    ):
        with pytest.raises(NotUnderstood):
            collection.execute(command)
