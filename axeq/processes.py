"""Processes for plain functions that hold the GIL, crash, or must be stopped for certain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from axeq.errors import AxeqError, Cancel, ResultInvalid, Retry, Snooze
from axeq.outcome import Limits, Reported, decide, describe
from axeq.threads import Threads

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["ProcessDied", "Processes"]

_OUTCOMES = (Retry, Cancel, Snooze)


class ProcessDied(AxeqError):
    """The process of a handler ended before the handler did."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"the handler's process ended with exit code {exit_code}")
        self.exit_code = exit_code


class Processes:
    """Child processes, one call at a time in each; idle ones serve again."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._idle: list[_Child] = []
        self._busy: dict[object, _Child] = {}

    async def call(self, key: object, function: Callable[[Any], Any], context: Any, limits: Limits) -> Any:
        """Calls `function(context)` in a process and returns what it returns; all are pickled.

        `key` names the call for `kill`. Raises `ProcessDied`, and what the function raised: outcomes as they are,
        anything else as `Reported` with what `limits` made of it there, where its class is known.
        """
        child = self._idle.pop() if self._idle else _Child()
        self._busy[key] = child
        try:
            ok, value = await self._threads.call(lambda: child.call(function, context, limits))
        finally:
            del self._busy[key]
            if child.reusable:
                self._idle.append(child)
        if not ok:
            raise value
        return value

    def kill(self, key: object) -> None:
        """Ends the process of a call under way; the call then raises `ProcessDied`."""
        child = self._busy.get(key)
        if child is not None:
            child.kill()

    async def close(self) -> None:
        """Ends all processes."""
        children = [*self._idle, *self._busy.values()]
        self._idle.clear()
        for child in children:
            child.kill()
        for child in children:
            await self._threads.call(child.join)


class _Child:
    def __init__(self) -> None:
        self.reusable = True
        self._process: Any = None
        self._pipe: Connection | None = None
        self._lock = threading.Lock()

    def call(self, function: Callable[[Any], Any], context: Any, limits: Limits) -> tuple[bool, Any]:
        try:
            self._start()
            assert self._pipe is not None
            self._pipe.send_bytes(pickle.dumps((function, context, limits)))
            answer: tuple[bool, Any] = pickle.loads(self._pipe.recv_bytes())  # noqa: S301 - from our own child
        except (EOFError, OSError):
            self.reusable = False
            self.join()
            raise ProcessDied(self._process.exitcode if self._process else None) from None
        return answer

    def kill(self) -> None:
        self.reusable = False
        with self._lock:
            if self._process is not None and self._process.is_alive():
                self._process.kill()

    def join(self) -> None:
        if self._process is not None:
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()

    def _start(self) -> None:
        with self._lock:
            if self._process is not None:
                return
            if not self.reusable:
                raise EOFError
            from multiprocessing import get_context  # only who uses processes pays for the import

            spawn = get_context("spawn")
            self._pipe, other = spawn.Pipe()
            self._process = spawn.Process(target=_serve, args=(other,), name="axeq-handler", daemon=True)
            _start_unsignalled(self._process)
            other.close()


def _start_unsignalled(process: Any) -> None:
    """Starts a child with SIGINT blocked: a Ctrl-C reaches the whole group, also a child that cannot ignore it yet."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # the first child would start it, and that unblocks SIGINT
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _serve(pipe: Connection) -> None:
    """Runs calls until the parent hangs up. The parent's Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_pickled(_answer(pipe.recv_bytes())))


def _pickled(answer: tuple[bool, Any]) -> bytes:
    try:
        return pickle.dumps(answer)
    except Exception as error:  # noqa: BLE001 - a __reduce__ may raise anything
        return pickle.dumps((False, ResultInvalid(f"the result cannot leave the handler's process: {error}")))


def _answer(call: bytes) -> tuple[bool, Any]:
    try:
        function, context, limits = pickle.loads(call)  # noqa: S301 - from the parent process, through a private pipe
    except BaseException as error:  # noqa: BLE001 - as of a module that cannot be imported here
        return False, Reported(describe(error))
    try:
        return True, function(context)
    except _OUTCOMES as outcome:
        return False, outcome
    except asyncio.CancelledError as error:
        return False, error
    except BaseException as error:  # noqa: BLE001 - even SystemExit is the job's failure, not this process's end
        return False, Reported(describe(error), decide(error, context.job, limits))


def _die_with_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
