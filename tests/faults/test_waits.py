"""Waits for jobs whose server falls silent."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import axeq
from tests.faults.proxy import Proxy
from tests.faults.tasks import Work
from tests.faults.toxics import BlackHole
from tests.support.waiting import eventually


@pytest.mark.parametrize("kind", [axeq.Queue, axeq.AsyncQueue])
def test_a_wait_by_a_stream_ends_though_the_server_falls_silent(proxy: Proxy, database: str, kind: Any) -> None:
    raised: list[BaseException] = []

    def wait() -> None:
        for _ in range(10):
            try:
                if kind is axeq.Queue:
                    job.wait(timeout=3)
                else:
                    asyncio.run(awaited())
            except axeq.AxeqError as error:
                if store._changes.opened:  # else it took so long to come to a stream that the time was up
                    raised.append(error)
                    return

    async def awaited() -> None:
        try:
            await axeq.AsyncQueue(store).wait(job.id, timeout=3)
        finally:
            await store.leave_loop()

    def opened() -> None:
        assert store._changes.opened

    with axeq.Store(proxy.uri(database), timeout=2.0) as store:
        job = axeq.Queue(store).enqueue(Work(number=1))
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        eventually(opened)

        with proxy.toxic(BlackHole()):
            waiting.join(60)

        assert not waiting.is_alive()
    assert len(raised) == 1
