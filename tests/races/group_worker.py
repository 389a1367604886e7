"""A worker process for groups and periodic jobs: `group_worker.py URI LEDGER LEASE WORKERS`. Prints `ready`.

The ledger has a line for each job of a call, named by the call: `call-TOKEN`, and `end-TOKEN` once it is through.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
import threading
import time

import axeq


class Piece(axeq.Model[int], name="piece"):
    number: int
    kills: bool = False
    seconds: float = 0.0


class Beat(axeq.Model[None], name="beat"):
    pass


def build(store: axeq.Store, descriptor: int, *, lease: float, workers: int) -> axeq.Pool:
    pool = axeq.Pool(store, lease=lease, drain=1)

    def write(event: str, jobs: list[axeq.Record]) -> None:
        lines = (f"{event} {job.id} {os.getpid()} {time.monotonic()}\n" for job in jobs)
        os.write(descriptor, "".join(lines).encode())

    @pool.task(Piece, workers=workers, group=axeq.Group(grace=0.1, max_size=40))
    async def piece(ctx: axeq.Context[Piece, int]) -> int:
        call = secrets.token_hex(4)
        write(f"call-{call}", ctx.jobs)
        if any(model.kills for model in ctx.models):
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(max(model.seconds for model in ctx.models))
        write(f"end-{call}", ctx.jobs)
        return len(ctx.jobs)

    @pool.task(Beat, every=0.25)
    async def beat(ctx: axeq.Context[Beat, None]) -> None:
        write("beat", ctx.jobs)

    return pool


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    uri, path, lease, workers = sys.argv[1:]
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store = axeq.Store(uri)
    pool = build(store, descriptor, lease=float(lease), workers=int(workers))

    def announce() -> None:
        pool.ready.wait()
        print("ready", flush=True)

    threading.Thread(target=announce, daemon=True).start()
    pool.run()
    store.close()


if __name__ == "__main__":
    main()
