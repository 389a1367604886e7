"""taskiq-mongodb, with its result backend or, as is taskiq's default, without one."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import harness
from taskiq import TaskiqEvents, TaskiqState
from taskiq_mongodb import MongoBroker, MongoResultBackend

OPTIONS = harness.options()

broker = MongoBroker(OPTIONS.url, OPTIONS.database, queues={"name": "taskiq", "poll_interval": 0.01})
if OPTIONS.results:
    broker = broker.with_result_backend(MongoResultBackend(OPTIONS.url, OPTIONS.database))


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def on_startup(_: TaskiqState) -> None:
    harness.started()


@broker.task(task_name="note")
async def note(x: int, s: str) -> int | None:
    return harness.handle(x)


class TaskiqMongodbPeer(harness.Peer):
    package = "taskiq-mongodb"
    settings = "--workers 1 --max-async-tasks 10, poll_interval=0.01 (default 0.5)"

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        await broker.client.drop_database(self.options.database)
        await broker.startup()
        yield
        await broker.shutdown()

    def empty(self) -> None:
        """Nothing to do: start-up has made the indexes in the emptied database."""

    async def enqueue(self, x: int) -> None:
        await note.kiq(**harness.payload(x))

    async def finished(self) -> bool:
        return await broker.collection.find_one({}) is None

    def command(self) -> list[str]:
        many = str(self.options.concurrency)
        start = [sys.executable, "-m", "taskiq", "worker", "taskiq_mongodb_peer:broker"]
        return [*start, "--workers", "1", "--max-async-tasks", many]


if __name__ == "__main__":
    harness.main(TaskiqMongodbPeer)
