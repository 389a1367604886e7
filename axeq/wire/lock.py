"""A lock that a fork leaves free."""

from __future__ import annotations

import os
import threading
from types import TracebackType

__all__ = ["ProcessLock"]


class ProcessLock:
    """A lock of each process's own: one that a thread holds while its process forks is free in the child, where that
    thread is not.
    """

    def __init__(self) -> None:
        self._by_process: dict[int, threading.Lock] = {}

    def __enter__(self) -> None:
        process = os.getpid()
        lock = self._by_process.get(process) or self._by_process.setdefault(process, threading.Lock())
        lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._by_process[os.getpid()].release()
