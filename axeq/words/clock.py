"""The server's time, known between two bounds. It does no IO: `wire` feeds it samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

__all__ = ["LONG_READING", "Clock", "LocalClock", "ServerClock", "milliseconds"]

LONG_READING = 0.01
"""Seconds: jobs are claimed later, leases and due times written later, by as much as a reading of the clock took."""
_LONG_ONE_KEPT = 1.0


def milliseconds(moment: datetime, *, up: bool = False) -> datetime:
    """Returns `moment` in UTC, cut to the millisecond that BSON stores; with `up` to the next one."""
    moment = moment.astimezone(UTC)
    if up:
        moment += timedelta(microseconds=999)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


class Clock(Protocol):
    """The time by which due and lapsed are judged and written."""

    def earliest(self) -> datetime:
        """Returns a moment that the server's clock has certainly reached: judge due and lapsed by it."""
        ...

    def latest(self) -> datetime:
        """Returns a moment that the server's clock has not yet passed: write due times and lease ends from it."""
        ...

    def monotonic(self) -> float:
        """Returns seconds that only ever grow, for waits inside the process."""
        ...

    @property
    def stale(self) -> bool:
        """Whether the server should be asked for its time before the clock is read."""
        ...

    @property
    def unsure(self) -> bool:
        """Whether the clock was never read, or is in doubt, or its last reading is too old to write anything by."""
        ...

    def observe(self, server_time: datetime, sent: float, received: float) -> None:
        """Takes a reading of the server's clock, asked for at `sent` and answered at `received` (monotonic)."""
        ...

    def doubt(self) -> None:
        """Has the server's time measured anew, as after an error."""
        ...

    def follow(self, election: Any) -> None:
        """Has the server's time measured anew where `election`, the id of the primary's, is later than any before."""
        ...


class LocalClock:
    """The process's own clock, for stores that have none (mongomock)."""

    stale = unsure = False

    def earliest(self) -> datetime:
        return milliseconds(datetime.now(UTC))

    latest = earliest

    def monotonic(self) -> float:
        return time.monotonic()

    def observe(self, server_time: datetime, sent: float, received: float) -> None:
        """Ignores the reading: this clock is its own authority."""

    def doubt(self) -> None:
        """Does nothing: there is no other clock to ask."""

    def follow(self, election: Any) -> None:
        """Does nothing: there is no primary."""


@dataclass(frozen=True, slots=True)
class _Sample:
    server_time: datetime
    sent: float
    received: float

    @property
    def round_trip(self) -> float:
        return self.received - self.sent


class ServerClock:
    """The server's clock by `hello.localTime`.

    The reading was taken somewhere between `sent` and `received`, so the server's time now lies between
    `localTime + (monotonic - received)` and `localTime + (monotonic - sent)`. Of the recent samples the one
    with the shortest round trip gives the narrowest bounds. `max_age` is in seconds, default 60; it also bounds
    the drift between two samples. While even the best has a long round trip, as at a start that had to wait for its
    turn, the server is asked again after a second, then after twice as long each time.
    """

    def __init__(self, *, max_age: float = 60.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._max_age = max_age
        self._monotonic = monotonic
        self._samples: tuple[_Sample, ...] = ()
        self._best: _Sample | None = None
        self._kept = max_age
        self._next_kept = _LONG_ONE_KEPT
        """Seconds for which the next long reading is relied on."""
        self._election: Any = None

    @property
    def stale(self) -> bool:
        return self._older_than(self._kept)

    @property
    def unsure(self) -> bool:
        return self._older_than(self._max_age)

    def observe(self, server_time: datetime, sent: float, received: float) -> None:
        stale = self.stale
        horizon = received - 3 * self._max_age
        recent = tuple(sample for sample in self._samples if sample.received >= horizon)[-4:]
        self._samples = (*recent, _Sample(server_time, sent, received))
        self._best = min(self._samples, key=lambda sample: sample.round_trip)
        if self._best.round_trip <= LONG_READING:
            self._kept, self._next_kept = self._max_age, _LONG_ONE_KEPT
        elif stale:  # else it is the second of two, and says no more than the first
            self._kept, self._next_kept = min(self._next_kept, self._max_age), 2 * self._next_kept

    def doubt(self) -> None:
        self._samples = ()
        self._next_kept = _LONG_ONE_KEPT

    def follow(self, election: Any) -> None:
        # Only forwards: the clients of a store learn of an election one after the other.
        if election is not None and (self._election is None or election > self._election):
            self._election = election
            self.doubt()

    def earliest(self) -> datetime:
        best = self._sample()
        return milliseconds(best.server_time + timedelta(seconds=self._monotonic() - best.received))

    def latest(self) -> datetime:
        best = self._sample()
        return milliseconds(best.server_time + timedelta(seconds=self._monotonic() - best.sent), up=True)

    def monotonic(self) -> float:
        return self._monotonic()

    def _older_than(self, seconds: float) -> bool:
        newest = self._samples[-1] if self._samples else None
        return newest is None or self._monotonic() - newest.received > seconds

    def _sample(self) -> _Sample:
        if self._best is None:
            raise RuntimeError("the server's time is read before it was measured")
        return self._best
