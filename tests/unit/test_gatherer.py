"""What a pool makes of the groups that wait, however slowly its server answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import mongomock
import pytest

import axeq
from axeq.rules.group import Arrival, arrivals
from axeq.wire.wire import Op, Sleep
from tests.support.probe import Probe
from tests.support.waiting import DEADLINE


async def test_a_group_is_called_also_where_each_look_takes_longer_than_it_is_claimed_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slowly(queue: str, versions: Mapping[str, int], now: datetime) -> Op[list[Arrival]]:
        found = yield from arrivals(queue, versions, now)
        yield Sleep(0.2)
        return found

    async def together(ctx: axeq.Context[Probe, Any]) -> int:
        return len(ctx.models)

    monkeypatch.setattr("axeq.running.gatherer._FRESH_FOR", 0.1)
    monkeypatch.setattr("axeq.running.gatherer.arrivals", slowly)
    store = axeq.Store(mongomock.MongoClient()["axeq"])
    jobs = await axeq.AsyncQueue(store).enqueue_many([Probe(value=value) for value in range(3)])
    pool = axeq.Pool(store, max_lag=0)
    pool.add(axeq.Task(Probe, together, group=axeq.Group(grace=0.01)))

    async with pool:
        results = [await job.wait(DEADLINE) for job in jobs]

    assert results == [3, 3, 3]
