"""A worker process whose handlers have processes of their own: `process_worker URI LEDGER LEASE WORKERS`.

Its whole group is sent signals, and a handler's process also while it starts.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import axeq
from tests.races.serving import Ledger, serve


class Apart(axeq.Model[int], name="apart"):
    """Runs until the file `end` exists, holding the GIL all the while where it `holds`."""

    ledger: str
    end: str = ""
    holds: bool = False


def apart(ctx: axeq.Context[Apart, int]) -> int:
    Ledger(ctx.model.ledger).write("start", ctx.job.id)
    while ctx.model.holds:
        ctypes.PyDLL(None).sleep(60)
    while not Path(ctx.model.end).exists():
        time.sleep(0.01)
    return os.getpid()


def build(store: axeq.Store, ledger: Ledger, lease: float, workers: int) -> axeq.Pool:
    pool = axeq.Pool(store, lease=lease, drain=60, max_lag=0)
    pool.add(axeq.Task(Apart, apart, executor="process", workers=workers))
    return pool


if __name__ == "__main__":
    serve(build)
elif __name__ == "__mp_main__":  # in a handler's process, while it starts
    for early in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), early)
