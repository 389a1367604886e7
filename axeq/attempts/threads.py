"""Threads for plain functions. They are daemons: one that never returns must not keep the process from ending."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Threads"]

T = TypeVar("T")

_IDLE_SECONDS = 30.0

_Work = tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]


class Threads:
    """As many daemon threads as there is work for at once; idle ones serve again, and end after half a minute."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._started = 0
        self._closed = False

    def close(self) -> None:
        """Ends the idle threads now, and busy ones after their call. Nothing more may be called."""
        with self._lock:
            self._closed = True
            for _ in range(self._idle):
                self._work.put(None)

    async def call(self, function: Callable[[], T]) -> T:
        """Calls `function` in a thread and returns what it returns, or raises what it raises.

        Cancelling the caller does not stop the thread.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

        def deliver(value: Any, error: BaseException | None) -> None:
            if not future.done():
                future.set_result((value, error))

        def answer(value: Any, error: BaseException | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(deliver, value, error)

        self._submit((function, answer))
        value, error = await future
        if error is not None:
            raise error
        result: T = value
        return result

    def _submit(self, work: _Work) -> None:
        with self._lock:
            self._work.put(work)
            if self._idle > 0:
                self._idle -= 1
                return
            self._started += 1
            number = self._started
        threading.Thread(target=self._serve, name=f"{self._name}-{number}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._work.empty():
                        self._idle -= 1
                        return
                continue
            if work is None:
                return
            function, answer = work
            value, failure = None, None
            try:
                value = function()
            except BaseException as error:  # noqa: BLE001 - whatever ended the function is its caller's to judge
                failure = error
            with self._lock:
                self._idle += 1
                closed = self._closed
            answer(value, failure)
            if closed:
                return
            del work, function, answer, value, failure
