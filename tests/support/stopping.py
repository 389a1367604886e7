"""A pool in a process of its own, to be sent signals: `python -m tests.support.stopping URI DRAIN`.

Prints "ready", then a line for each job that starts, and "ended" with the pool's counts. A job of value 0 hangs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

import axeq
from tests.support.probe import Probe


def main() -> None:
    uri, drain = sys.argv[1:]
    with axeq.Store(uri) as store:
        pool = axeq.Pool(store, max_lag=0, lease=10, drain=float(drain))

        @pool.task(Probe, workers=4)
        async def work(ctx: axeq.Context[Probe, Any]) -> None:
            print("started", ctx.model.outcome, flush=True)
            await asyncio.sleep(ctx.model.delay)

        threading.Thread(target=announce, args=(pool,), daemon=True).start()
        pool.run()
    print("ended", json.dumps(dict(pool.counts)), flush=True)


def announce(pool: axeq.Pool) -> None:
    pool.ready.wait()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
