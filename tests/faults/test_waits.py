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
        try:
            if kind is axeq.Queue:
                job.wait(timeout=10)
            else:
                asyncio.run(awaited())
        except axeq.AxeqError as error:
            raised.append(error)

    async def awaited() -> None:
        try:
            await axeq.AsyncQueue(store).wait(job.id, timeout=10)
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
