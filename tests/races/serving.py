"""What the worker processes of the race tests share: their arguments, their word that they are ready, their ledger."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable

import axeq

__all__ = ["Ledger", "serve"]


class Ledger:
    """A file opened for appending, so that the tests know what ran without asking axeq.

    One line per event: what happened, the job, the process, the moment (monotonic, the same for all processes).
    """

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, event: str, *jobs: object) -> None:
        lines = (f"{event} {job} {os.getpid()} {time.monotonic()}\n" for job in jobs)
        os.write(self.descriptor, "".join(lines).encode())


def serve(build: Callable[[axeq.Store, Ledger, float, int], axeq.Pool]) -> None:
    """Runs what `build` makes of the program's arguments, `URI LEDGER LEASE WORKERS`, until it is stopped.

    Prints `ready`, logs to standard error.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    uri, path, lease, workers = sys.argv[1:]
    store = axeq.Store(uri)
    pool = build(store, Ledger(path), float(lease), int(workers))

    def announce() -> None:
        pool.ready.wait()
        print("ready", flush=True)

    threading.Thread(target=announce, daemon=True).start()
    pool.run()
    store.close()
