"""taskiq on Redis streams, with its result backend or, as is its default, without one."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import harness
from redis.asyncio import Redis
from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

OPTIONS = harness.options()

broker = RedisStreamBroker(OPTIONS.url)
if OPTIONS.results:
    broker = broker.with_result_backend(RedisAsyncResultBackend(OPTIONS.url))


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def on_startup(_: TaskiqState) -> None:
    harness.started()


@broker.task(task_name="note")
async def note(x: int, s: str) -> int | None:
    return harness.handle(x)


class TaskiqPeer(harness.Peer):
    package = "taskiq"
    settings = "RedisStreamBroker, --workers 1 --max-async-tasks 10"

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        self.redis = Redis.from_url(self.options.url)
        await self.redis.flushdb()
        await broker.startup()
        yield
        await broker.shutdown()
        await self.redis.aclose()

    def empty(self) -> None:
        """Nothing to do: start-up has made the consumer group in the emptied database."""

    async def enqueue(self, x: int) -> None:
        await note.kiq(**harness.payload(x))

    async def finished(self) -> bool:
        (group,) = await self.redis.xinfo_groups("taskiq")
        return group["pending"] == 0 and group["lag"] == 0

    def command(self) -> list[str]:
        many = str(self.options.concurrency)
        start = [sys.executable, "-m", "taskiq", "worker", "taskiq_peer:broker"]
        return [*start, "--workers", "1", "--max-async-tasks", many]


if __name__ == "__main__":
    harness.main(TaskiqPeer)
