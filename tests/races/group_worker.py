"""A worker process for groups and periodic jobs: `group_worker URI LEDGER LEASE WORKERS`.

The ledger has a line for each job of a call, named by the call: `call-TOKEN`, and `end-TOKEN` once it is through.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal

import axeq
from tests.races.serving import Ledger, serve


class Piece(axeq.Model[int], name="piece"):
    number: int
    kills: bool = False
    seconds: float = 0.0


class Beat(axeq.Model[None], name="beat"):
    pass


def build(store: axeq.Store, ledger: Ledger, lease: float, workers: int) -> axeq.Pool:
    pool = axeq.Pool(store, lease=lease, drain=1)

    @pool.task(Piece, workers=workers, group=axeq.Group(grace=0.1, max_size=40))
    async def piece(ctx: axeq.Context[Piece, int]) -> int:
        call, ids = secrets.token_hex(4), [job.id for job in ctx.jobs]
        ledger.write(f"call-{call}", *ids)
        if any(model.kills for model in ctx.models):
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(max(model.seconds for model in ctx.models))
        ledger.write(f"end-{call}", *ids)
        return len(ctx.jobs)

    @pool.task(Beat, every=0.25)
    async def beat(ctx: axeq.Context[Beat, None]) -> None:
        ledger.write("beat", ctx.job.id)

    return pool


if __name__ == "__main__":
    serve(build)
