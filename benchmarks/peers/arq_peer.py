"""arq: results are kept an hour, its default; it looks for jobs each 10 ms instead of each 500 ms."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import harness
from arq import create_pool, run_worker
from arq.connections import RedisSettings


async def note(_: dict[Any, Any], x: int, s: str) -> int | None:
    return harness.handle(x)


async def on_startup(_: dict[Any, Any]) -> None:
    harness.started()


class ArqPeer(harness.Peer):
    package = "arq"
    settings = "max_jobs=10, poll_delay=0.01 (default 0.5)"

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        self.redis = await create_pool(RedisSettings.from_dsn(self.options.url))
        yield
        await self.redis.aclose()

    async def empty(self) -> None:
        await self.redis.flushdb()

    async def enqueue(self, x: int) -> None:
        await self.redis.enqueue_job("note", **harness.payload(x))

    async def finished(self) -> bool:
        return await self.redis.zcard("arq:queue") == 0

    def work(self) -> None:
        run_worker(
            {"functions": [note], "on_startup": on_startup},
            redis_settings=RedisSettings.from_dsn(self.options.url),
            max_jobs=self.options.concurrency,
            poll_delay=0.01,
        )


if __name__ == "__main__":
    harness.main(ArqPeer)
