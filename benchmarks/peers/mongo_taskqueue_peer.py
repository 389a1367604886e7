"""mongo-taskqueue: ten asynchronous loops of next, handle, on_success; it has no worker of its own."""

import asyncio

import harness
import pymongo
from mongotq import AsyncTaskQueue, get_task_queue


class MongoTaskqueuePeer(harness.Peer):
    package = "mongo-taskqueue"
    settings = "ten loops, sleep 0.01 when empty, its indexes"

    def __init__(self, options: harness.Options) -> None:
        super().__init__(options)
        self.queue = AsyncTaskQueue(options.database, "jobs", options.url)

    def empty(self) -> None:
        self.client = pymongo.MongoClient(self.options.url)
        self.client.drop_database(self.options.database)
        with get_task_queue(self.options.database, "jobs", self.options.url, ttl=-1) as queue:
            queue.create_index()

    async def enqueue(self, x: int) -> None:
        await self.queue.append(harness.payload(x))

    def finished(self) -> bool:
        jobs = self.client[self.options.database]["jobs"]
        return jobs.count_documents({"status": {"$ne": "successful"}}, limit=1) == 0

    def work(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        harness.started()
        await asyncio.gather(*(self._loop() for _ in range(self.options.concurrency)))

    async def _loop(self) -> None:
        while True:
            task = await self.queue.next()
            if task is None:
                await asyncio.sleep(0.01)
                continue
            harness.handle(task.payload["x"])
            await self.queue.on_success(task)


if __name__ == "__main__":
    harness.main(MongoTaskqueuePeer)
