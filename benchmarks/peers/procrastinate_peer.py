"""procrastinate on Postgres: finished jobs stay as rows without a result, its default."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import harness
import psycopg
from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=harness.options().url))


@app.task(name="note")
async def note(x: int, s: str) -> int | None:
    return harness.handle(x)


class ProcrastinatePeer(harness.Peer):
    package = "procrastinate"
    settings = "concurrency=10, listen/notify"

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        async with app.open_async():
            yield

    async def empty(self) -> None:
        self.connection = await psycopg.AsyncConnection.connect(self.options.url, autocommit=True)
        await self.connection.execute("drop schema public cascade")
        await self.connection.execute("create schema public")
        await app.schema_manager.apply_schema_async()

    async def enqueue(self, x: int) -> None:
        await note.defer_async(**harness.payload(x))

    async def finished(self) -> bool:
        left = await self.connection.execute("select 1 from procrastinate_jobs where status <> 'succeeded' limit 1")
        return await left.fetchone() is None

    def work(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        async with app.open_async():
            harness.started()
            await app.run_worker_async(concurrency=self.options.concurrency)


if __name__ == "__main__":
    harness.main(ProcrastinatePeer)
