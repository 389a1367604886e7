"""The MongoDB server that benchmarks run on."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axeq.wire.embedded import Home, open_embedded, take_lock

__all__ = ["mongodb"]

_ENDS_WITHIN = 30.0


@contextmanager
def mongodb() -> Iterator[tuple[str, str]]:
    """Yields a server's URI, and what it is: the one that AXEQ_URI names, or one of this run's own."""
    if uri := os.environ.get("AXEQ_URI"):
        yield uri, "the server that AXEQ_URI names"
        return
    folder = Path(tempfile.mkdtemp(prefix="axeq-benchmark-"))
    try:
        with open_embedded(folder) as embedded:
            yield embedded.uri, f"{Path(embedded.server).name}, run by axeq with durable commits"
    finally:
        # The keeper ends the server some seconds after the last user; its files must outlive it.
        lock = take_lock(Home(folder).keeper_lock, exclusive=True, timeout=_ENDS_WITHIN)
        if lock is not None:
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
