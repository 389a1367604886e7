"""Starts `worker.py` together with a web app and ends it with the app: for development, or one small machine.

An app that is served by several processes would start as many workers; run `python worker.py` by hand there.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def worker() -> Iterator[None]:
    """Has a worker run, in a process of its own, while the block does."""
    process = multiprocessing.get_context("spawn").Process(target=_work, name="worker")
    process.start()
    try:
        yield
    finally:
        process.terminate()  # SIGTERM: the pool claims nothing more, lets handlers finish and gives back the rest
        process.join()


def _work() -> None:
    os.setpgrp()  # Ctrl-C is for the app alone, which then ends the worker: a second signal would hurry the pool
    from worker import pool  # here, because the app's own process needs no handlers

    threading.Thread(target=_stop_with_parent, args=(pool.stop,), daemon=True).start()
    pool.run()


def _stop_with_parent(stop: Callable[[], None]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # an app that was killed ends nobody
    stop()
