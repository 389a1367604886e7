"""How fast jobs go through: a rate that counts only the time in which anything is under way."""

from __future__ import annotations

import time

__all__ = ["Pace"]

_MEMORY = 0.2
_LEAST = 0.02


class Pace:
    """Jobs a second over the last 200 ms of work; rests do not slow it down, a job that takes long does at once.

    The first few jobs are taken to have filled 20 ms: a moment says little.
    """

    __slots__ = ("_jobs", "_mark", "_seconds", "_under_way")

    def __init__(self) -> None:
        self._jobs = 0.0
        self._seconds = 0.0
        self._mark = 0.0
        self._under_way = 0

    def begin(self) -> None:
        """Counts a job as under way."""
        self._under_way += 1
        if self._under_way == 1:
            self._mark = time.monotonic()

    def end(self) -> None:
        """Counts a job as through."""
        self._jobs += 1
        self._advance()
        self._under_way -= 1

    @property
    def rate(self) -> float:
        """Jobs a second, as far as is known; 0 before the first."""
        self._advance()
        return self._jobs / max(self._seconds, _LEAST)

    def _advance(self) -> None:
        if not self._under_way:
            return
        now = time.monotonic()
        self._seconds += now - self._mark
        self._mark = now
        if self._seconds > _MEMORY:
            self._jobs *= _MEMORY / self._seconds
            self._seconds = _MEMORY
