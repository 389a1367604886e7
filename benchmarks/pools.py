"""axeq's side: a process that runs pools as it is asked to, and says what they did."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

import axeq
from axeq.rules import workers

__all__ = ["Made", "Noop"]

_LONGEST_DRAIN = 150.0


class Made(BaseModel):
    total: int


class Noop(axeq.Model[Made | None], name="noop"):
    x: int
    s: str


class Plain(BaseModel):
    x: int


class Commands(CommandListener):
    """Counts the commands of a client; the driver's own monitoring is not among them."""

    def __init__(self) -> None:
        self.count = 0

    def started(self, event: CommandStartedEvent) -> None:
        self.count += 1

    def succeeded(self, event: CommandSucceededEvent) -> None: ...

    def failed(self, event: CommandFailedEvent) -> None: ...


class Operator:
    """Does what the parent asks, one pool at a time."""

    def __init__(self) -> None:
        self._commands = Commands()
        self._starts: dict[int, float] = {}
        self._open: AsyncExitStack | None = None
        self._pool: axeq.Pool | None = None

    async def drain(self, uri: str, database: str, *, total: int, results: bool) -> dict[str, Any]:
        """Runs a pool until `total` jobs have completed; `since_first` leaves out what came before its first claim."""
        async with axeq.Store(uri, database=database) as store:
            pool = axeq.Pool(store)
            pool.add(axeq.Task(Noop, _adds if results else _does_nothing, workers=10))
            async with pool:
                began = time.monotonic()
                first = None
                while pool.counts["complete"] < total:
                    await asyncio.sleep(0.005)
                    if first is None and pool.counts["dequeue"]:
                        first = time.monotonic()
                    if time.monotonic() - began > _LONGEST_DRAIN:
                        raise TimeoutError(f"{pool.counts['complete']} of {total} jobs completed: {pool.counts}")
                ended = time.monotonic()
        return {"seconds": ended - began, "since_first": ended - (first or began), "peak_mb": _peak_mb()}

    async def open(self, uri: str, database: str, *, tasks: int = 0, heartbeat: float | None = None) -> dict[str, Any]:
        """Enters a pool: of `tasks` idle tasks on a client whose commands are counted, or of one on the payload."""
        if heartbeat is not None:
            workers.HEARTBEAT = heartbeat
        self._open = AsyncExitStack()
        if tasks:
            client = await self._open.enter_async_context(
                AsyncMongoClient[Any](uri, event_listeners=[self._commands], tz_aware=True)
            )
        store = await self._open.enter_async_context(axeq.Store(client if tasks else uri, database=database))
        self._pool = axeq.Pool(store)
        for number in range(tasks):
            self._pool.add(axeq.Task(Plain, _plain, name=f"idle{number}"))
        if not tasks:
            self._pool.add(axeq.Task(Noop, self._noted, workers=10))
        await self._open.enter_async_context(self._pool)
        return {"open": True}

    async def look(self) -> dict[str, Any]:
        """Returns what the pool has counted, the commands sent, and the CPU seconds of the process."""
        assert self._pool is not None
        return {
            "counts": dict(self._pool.counts),
            "commands": self._commands.count,
            "cpu": time.process_time(),
            "at": time.monotonic(),
        }

    async def starts(self) -> dict[int, float]:
        """Returns when the handler of each job started."""
        return self._starts

    async def close(self) -> dict[str, Any]:
        """Leaves the pool and returns its last counts."""
        if self._open is None or self._pool is None:
            return {}
        await self._open.aclose()
        counts, self._open, self._pool = dict(self._pool.counts), None, None
        return counts

    async def _noted(self, ctx: axeq.Context[Noop, Made | None]) -> Made | None:
        self._starts[ctx.model.x] = time.monotonic()
        return None


async def _does_nothing(ctx: axeq.Context[Noop, Made | None]) -> Made | None:
    return None


async def _adds(ctx: axeq.Context[Noop, Made | None]) -> Made | None:
    return Made(total=ctx.model.x)


async def _plain(ctx: axeq.Context[Plain, None]) -> None: ...


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss has the parent's peak in it, from before the exec
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


async def main() -> None:
    operator = Operator()
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            print(json.dumps(await getattr(operator, request.pop("do"))(**request)), flush=True)
    finally:
        await operator.close()


if __name__ == "__main__":
    asyncio.run(main())
