"""axeq, with its defaults but for the ten workers: fence, leases and majority writes stay on."""

import harness
import pymongo

import axeq


class Note(axeq.Model[int | None], name="note"):
    x: int
    s: str


class AxeqPeer(harness.Peer):
    package = "axeq"
    settings = "defaults, workers=10"

    def __init__(self, options: harness.Options) -> None:
        super().__init__(options)
        self.store = axeq.Store(options.url)
        self.queue = axeq.AsyncQueue(self.store)

    async def empty(self) -> None:
        with pymongo.MongoClient(self.options.url) as client:
            client.drop_database(self.options.database)
        self.jobs = pymongo.AsyncMongoClient(self.options.url)[self.options.database]["jobs"]

    async def enqueue(self, x: int) -> None:
        await self.queue.enqueue(Note(**harness.payload(x)))

    async def finished(self) -> bool:
        return await self.jobs.find_one({"available_at": {"$exists": True}}) is None

    def work(self) -> None:
        pool = axeq.Pool(self.store)

        @pool.task(Note, workers=self.options.concurrency)
        async def note(ctx: axeq.Context[Note, int | None]) -> int | None:
            return harness.handle(ctx.model.x)

        harness.started()
        pool.run()


if __name__ == "__main__":
    harness.main(AxeqPeer)
