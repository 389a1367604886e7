"""A worker process for the race tests: `worker URI LEDGER LEASE WORKERS`. Every handler writes to the ledger."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import axeq
from tests.races.serving import Ledger, serve


class Count(axeq.Model[int], name="count"):
    number: int


class Slow(axeq.Model[int], name="slow"):
    seconds: float


class Poison(axeq.Model[None], name="mixed"):
    kills: bool = False


class Block(axeq.Model[None], name="block"):
    seconds: float


class Stubborn(axeq.Model[None], name="stubborn"):
    seconds: float


def build(store: axeq.Store, ledger: Ledger, lease: float, workers: int) -> axeq.Pool:
    pool = axeq.Pool(store, lease=lease, drain=1, max_lag=0)

    @pool.task(Count, workers=workers)
    async def count(ctx: axeq.Context[Count, int]) -> int:
        ledger.write("run", ctx.job.id)
        return ctx.model.number

    @pool.task(Slow, workers=workers, min_delay=0.1)
    async def slow(ctx: axeq.Context[Slow, int]) -> int:
        ledger.write("start", ctx.job.id)
        await asyncio.sleep(ctx.model.seconds)
        ledger.write("end", ctx.job.id)
        return os.getpid()

    @pool.task(Poison, workers=workers, max_lost=3)
    async def mixed(ctx: axeq.Context[Poison, None]) -> None:
        ledger.write("poison" if ctx.model.kills else "run", ctx.job.id)
        if ctx.model.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.02)

    @pool.task(Block, workers=1)
    async def block(ctx: axeq.Context[Block, None]) -> None:
        ledger.write("start", ctx.job.id)
        time.sleep(ctx.model.seconds)
        ledger.write("end", ctx.job.id)

    @pool.task(Stubborn, workers=2, timeout=0.3, min_delay=0.05, max_attempts=2)
    def stubborn(ctx: axeq.Context[Stubborn, None]) -> None:
        ledger.write("start", ctx.job.id)
        threading.Event().wait(ctx.model.seconds)  # looks at nothing
        ledger.write("end", ctx.job.id)

    return pool


if __name__ == "__main__":
    serve(build)
