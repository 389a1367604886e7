"""Processes for plain functions that hold the GIL, crash, or must be stopped for certain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from axeq.attempts.threads import Threads
from axeq.documents.record import Document
from axeq.faces.context import Context
from axeq.faces.hands import Hands
from axeq.rules.outcome import Collision, Limits, Reported, decide, describe
from axeq.rules.settlement import Settlement
from axeq.wire.store import Store
from axeq.words.errors import AxeqError, Cancel, ResultInvalid, Retry, Snooze

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["ProcessDied", "Processes"]

_OUTCOMES = (Retry, Cancel, Snooze)
_OF_THE_POOL = frozenset({signal.SIGINT, signal.SIGTERM})
"""What a terminal or a service manager sends to the whole group, for the pool to act on."""
_ANSWER = "answer"
_CONFIRMED = frozenset({"suspend", "begins"})
"""What the handler goes on after only once the pool has done it."""


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

    async def call(
        self,
        key: object,
        function: Callable[[Any], Any],
        context: Context[Any, Any],
        limits: Limits,
        heard: Callable[[str, Sequence[Any]], None],
        *,
        sure_until: float,
    ) -> Any:
        """Calls `function(context)` in a process and returns what it returns; all are pickled.

        `key` names the call for `kill`. `heard` is called, in a thread, with what the function asks of the pool.
        Raises `ProcessDied`, and what the function raised: outcomes as they are, anything else as `Reported` with
        what `limits` made of it there, where its class is known. A process that comes to the call after `sure_until`
        (monotonic, which all processes share) asks the pool first whether it may still begin.
        """
        child = self._waiting() or _Child()
        self._busy[key] = child
        try:
            ok, value = await self._threads.call(lambda: child.call((function, context, limits, sure_until), heard))
        finally:
            del self._busy[key]
            if child.reusable:
                self._idle.append(child)
        if not ok:
            raise value
        return value

    def _waiting(self) -> _Child | None:
        """Returns an idle child; what has ended by itself meanwhile is no failure of the next job."""
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            child.join()
        return None

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

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.is_alive()

    def call(self, work: tuple[Any, ...], heard: Callable[[str, Sequence[Any]], None]) -> tuple[bool, Any]:
        call = pickle.dumps(work)
        try:
            self._start()
            assert self._pipe is not None
            self._pipe.send_bytes(call)
            while True:
                what, arguments = pickle.loads(self._pipe.recv_bytes())  # noqa: S301 - from our own child
                if what == _ANSWER:
                    answer: tuple[bool, Any] = arguments
                    return answer
                heard(what, arguments)
                if what in _CONFIRMED:
                    self._pipe.send_bytes(pickle.dumps(what))
        except (EOFError, OSError):
            self.reusable = False
            self.join()
            raise ProcessDied(self._process.exitcode if self._process else None) from None
        except BaseException:
            self.kill()  # the handler may live, and its answer would be taken for that of the next job
            self.join()
            raise

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
    """Starts a child with the pool's signals blocked: they reach the whole group, also a child that is not ready."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # the first child would start it, and that unblocks them
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_POOL)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _serve(pipe: Connection) -> None:
    """Runs calls until the parent hangs up, or has gone."""
    for number in _OF_THE_POOL:
        signal.signal(number, _left_to_the_pool)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_THE_POOL)
    _die_with_parent()
    hands = _FarHands(pipe)
    stores: dict[bytes, Store] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            hands.say(_ANSWER, _answer(pipe.recv_bytes(), hands, stores))


def _left_to_the_pool(number: int, frame: Any) -> None:
    """Does nothing, yet is no SIG_IGN: programs that a handler starts would inherit that, and could not be ended."""


class _FarHands(Hands):
    """The pool's hands as a handler in another process has them: what it asks goes through the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def say(self, what: str, arguments: Sequence[Any]) -> None:
        with self._lock:
            self._pipe.send_bytes(_pickled(what, arguments))
            if what in _CONFIRMED:
                self._pipe.recv_bytes()

    def begins(self, attempt: Any) -> None:
        self.say("begins", ())

    def report(self, attempt: Any, fields: Document) -> None:
        self.say("report", (fields,))

    def keep(self, attempt: Any, state: Any) -> None:
        self.say("keep", (state,))

    def extend(self, attempt: Any, seconds: float) -> None:
        self.say("extend", (seconds,))

    def suspend(self, attempt: Any, seconds: float) -> None:
        self.say("suspend", (seconds,))

    def extended(self, attempt: Any, seconds: float) -> None:
        self.say("extended", (seconds,))

    def began(self, attempt: Any, session: Any) -> None:
        self.say("began", (dict(session),))

    def resume(self, attempt: Any) -> None:
        self.say("resume", ())

    def cancel(self, attempt: Any, reason: str) -> None:
        self.say("cancel", (reason,))

    def lose(self, attempt: Any, reason: str) -> None:
        self.say("lose", (reason,))

    def complete(self, attempt: Any, entries: Sequence[Settlement]) -> None:
        self.say("complete", (entries,))


def _pickled(what: str, arguments: Sequence[Any]) -> bytes:
    try:
        return pickle.dumps((what, arguments))
    except Exception as error:  # noqa: BLE001 - a __reduce__ may raise anything
        refused = ResultInvalid(f"the result cannot leave the handler's process: {error}")
        return pickle.dumps((_ANSWER, (False, refused)))


def _answer(call: bytes, hands: Hands, stores: dict[bytes, Store]) -> tuple[bool, Any]:
    try:
        function, context, limits, sure_until = pickle.loads(call)  # noqa: S301 - from the parent process, through a private pipe
    except BaseException as error:  # noqa: BLE001 - as of a module that cannot be imported here
        return False, Reported(describe(error))
    try:
        context._hands = hands
        # One store for all calls, for each has clients of its own.
        context.store = stores.setdefault(pickle.dumps(context.store), context.store)
        if time.monotonic() >= sure_until:
            hands.begins(None)
        value = function(context)
        return True, context.result if value is None else value
    except _OUTCOMES as outcome:
        return False, outcome
    except asyncio.CancelledError as error:
        return False, error
    except BaseException as error:  # noqa: BLE001 - even SystemExit is the job's failure, not this process's end
        if error is context._collision:
            return False, Collision(str(error))
        return False, Reported(describe(error), decide(error, context.job, limits))


def _die_with_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    with contextlib.suppress(ImportError, AttributeError, OSError):  # Linux alone has the kernel do it
        import fcntl

        # The thread gets no turn while a handler holds the GIL.
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETSIG, signal.SIGKILL)  # type: ignore[attr-defined, unused-ignore]
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, os.O_ASYNC)


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
