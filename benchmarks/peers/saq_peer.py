"""saq: results are kept ten minutes, its default."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import harness
from saq import Queue, Worker


async def note(_: Any, *, x: int, s: str) -> int | None:
    return harness.handle(x)


async def on_startup(_: Any) -> None:
    harness.started()


class SaqPeer(harness.Peer):
    package = "saq"
    settings = "concurrency=10"

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        self.queue = Queue.from_url(self.options.url)
        await self.queue.connect()
        yield
        await self.queue.disconnect()

    async def empty(self) -> None:
        await self.queue.redis.flushdb()

    async def enqueue(self, x: int) -> None:
        await self.queue.enqueue("note", **harness.payload(x))

    async def finished(self) -> bool:
        return await self.queue.count("incomplete") == 0

    def work(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        queue = Queue.from_url(self.options.url)
        await queue.connect()
        await Worker(queue, [note], concurrency=self.options.concurrency, startup=on_startup).start()


if __name__ == "__main__":
    harness.main(SaqPeer)
