"""beanie-batteries-queue: one iterator of its queue, up to ten of its tasks at once, each finished by hand.

Ten iterators are slower: they race each other for the same first task.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import harness
import pymongo
from beanie import init_beanie
from beanie_batteries_queue import State, Task


class Note(Task):
    x: int
    s: str

    async def run(self) -> None:
        harness.handle(self.x)


class BeanieBatteriesQueuePeer(harness.Peer):
    package = "beanie-batteries-queue"
    settings = "one iterator, ten tasks at once, sleep_time=0.01 (default 1)"

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        async with pymongo.AsyncMongoClient(self.options.url) as self.client:
            yield

    async def empty(self) -> None:
        await self.client.drop_database(self.options.database)
        await init_beanie(database=self.client[self.options.database], document_models=[Note])

    async def enqueue(self, x: int) -> None:
        await Note(**harness.payload(x)).push()

    async def finished(self) -> bool:
        return await Note.find_one({"state": {"$in": [State.CREATED, State.RUNNING]}}) is None

    def work(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        async with pymongo.AsyncMongoClient(self.options.url) as client, asyncio.TaskGroup() as running:
            await init_beanie(database=client[self.options.database], document_models=[Note])
            free = asyncio.Semaphore(self.options.concurrency)
            harness.started()
            async for task in Note.queue(sleep_time=0.01):
                await free.acquire()
                running.create_task(_run(task, free))


async def _run(task: Note, free: asyncio.Semaphore) -> None:
    await task.run()
    await task.finish()
    free.release()


if __name__ == "__main__":
    harness.main(BeanieBatteriesQueuePeer)
