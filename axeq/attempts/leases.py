"""The lease thread: extends what the pool holds, from outside the pool's loop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from axeq.rules.lifecycle import Held, Holding, extend, flags
from axeq.wire.store import Store
from axeq.words.errors import StoreError

__all__ = ["LAPSED", "Leases"]

LAPSED = "no extension was acknowledged for a whole lease"
"""Why a lease is taken for lost though nobody has said so."""

_LOGGER = logging.getLogger("axeq.leases")
_FLAGS_EVERY = 1.0
_SHORTEST_PAUSE = 0.05
_ENOUGH = 0.5
"""Seconds that even a slow server answers an extension in."""


class Leases:
    """The leases that a pool holds, kept alive by a thread with a client of its own.

    A handler that blocks the pool's loop so keeps its job, and a killed process loses its jobs within one
    `lease` (seconds). `report` is called in the thread with what each beat learned, and once the server answers again.
    """

    def __init__(self, store: Store, *, lease: float, report: Callable[[Holding], None]) -> None:
        self._store = store
        self._lease = lease
        self._report = report
        self._lock = threading.Lock()
        self._held: dict[Any, Held] = {}
        self._confirmed: dict[Any, float] = {}
        self._suspended: dict[Any, float] = {}
        self._beats_every = lease / 3
        self._ticks_every = min(_FLAGS_EVERY, self._beats_every)
        self._pause = min(max(lease / 20, _SHORTEST_PAUSE), self._ticks_every)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="axeq-leases", daemon=True)
        self.failure: Exception | None = None
        """What ended the thread, where it was not told to end."""
        self.healthy = True
        """Whether the server has acknowledged the last extension; a pool claims nothing while it has not."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, once its command under way has; blocks at most for that command's deadline."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def hold(self, jobs: Iterable[Held], *, since: float) -> None:
        """Takes on jobs whose leases began at `since` (monotonic)."""
        with self._lock:
            for job in jobs:
                self._held[job.id] = job
                self._confirmed[job.id] = since

    def drop(self, ids: Iterable[Any]) -> None:
        """Lets go of jobs: their leases are no longer extended."""
        with self._lock:
            for identity in ids:
                self._held.pop(identity, None)
                self._confirmed.pop(identity, None)
                self._suspended.pop(identity, None)

    def suspend(self, ids: Iterable[Any], seconds: float) -> None:
        """Does not extend jobs for so long, or until `resume`: a write would undo their handler's transaction."""
        until = time.monotonic() + seconds
        with self._lock:
            self._suspended.update(dict.fromkeys(ids, until))

    def resume(self, ids: Iterable[Any]) -> None:
        """Extends jobs again, from the next beat on."""
        with self._lock:
            for identity in ids:
                self._suspended.pop(identity, None)

    def confirm(self, ids: Iterable[Any], moment: float) -> None:
        """Notes that somebody else has extended jobs to a lease from `moment` (monotonic)."""
        with self._lock:
            self._confirmed.update((identity, moment) for identity in ids if identity in self._held)

    def confirmed_until(self, identity: Any) -> float:
        """Returns until when (monotonic) the lease of a job is confirmed; minus infinity where it is not held."""
        return self._confirmed.get(identity, float("-inf")) + self._lease

    def lapsed(self) -> list[Held]:
        """Returns the claims whose extension has gone without acknowledgement for a whole lease."""
        horizon = time.monotonic() - self._lease
        with self._lock:
            return [self._held[identity] for identity, moment in self._confirmed.items() if moment <= horizon]

    def _run(self) -> None:
        try:
            self._keep()
        except Exception as error:  # noqa: BLE001 - nobody would hear of it in a thread, and every lease would lapse
            self.healthy = False
            self.failure = error

    def _keep(self) -> None:
        wire = self._store.spare_wire(timeout=max(self._beats_every, min(_ENOUGH, self._lease / 2)))
        idle_since = time.monotonic()
        due = idle_since + self._beats_every
        try:
            while not self._ending.wait(min(self._ticks_every, max(due - time.monotonic(), 0))):
                begun = time.monotonic()
                if begun < due:
                    self._beat(wire, extending=False)
                    continue
                self._complain(begun - max(due, idle_since))
                self._beat(wire, extending=True)
                idle_since = time.monotonic()
                due = begun + self._beats_every if self.healthy else idle_since + self._pause
        finally:
            wire.close()

    def _complain(self, late: float) -> None:
        if late > self._beats_every:
            _LOGGER.warning(
                "lease beat %.1f s late: code that holds the GIL for long belongs in executor='process'", late
            )

    def _beat(self, wire: Any, *, extending: bool) -> None:
        with self._lock:
            held, beside = self._apart() if self._suspended else (list(self._held.values()), [])
        if not held and not beside:
            self._answered()
            return
        sent = time.monotonic()
        try:
            clock, lease = self._store.clock, self._lease
            if extending:
                rule = extend(held, clock, lease=lease, beside=beside, patience=self._patience(held))
            else:
                rule = flags([*held, *beside])
            holding: Holding = wire.run(rule)
        except StoreError as error:
            if extending:
                self.healthy = False
            _LOGGER.warning("leases of %d jobs not confirmed: %s", len(held), error)
            return
        if extending:
            self._answered()
            self._confirm([job for job in held if job not in holding.lost], sent)
        if holding.lost or holding.cancelled:
            self._report(holding)

    def _patience(self, held: Iterable[Held]) -> float:
        """Returns how long to wait for an extension: half of what is left of the first lease to lapse, so that there is
        time for another try; longer where a slow server needs it and a try still fits in.
        """
        now = time.monotonic()
        with self._lock:
            ends = [self._confirmed.get(job.id, now) + self._lease for job in held]
        left = min((end - now for end in ends if end > now), default=self._lease)
        return max(left / 2, min(_ENOUGH, left - 3 * self._pause), self._pause)

    def _answered(self) -> None:
        if not self.healthy:
            self.healthy = True
            self._report(Holding())  # the pool waits for it

    def _apart(self) -> tuple[list[Held], list[Held]]:
        """Returns the jobs to extend, and those that are suspended."""
        now = time.monotonic()
        apart: tuple[list[Held], list[Held]] = ([], [])
        for held in self._held.values():
            apart[self._suspended.get(held.id, 0.0) > now].append(held)
        return apart

    def _confirm(self, held: Iterable[Held], sent: float) -> None:
        with self._lock:
            for job in held:
                if self._held.get(job.id) == job:
                    self._confirmed[job.id] = max(sent, self._confirmed.get(job.id, 0.0))
