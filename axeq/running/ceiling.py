"""How many jobs to ask a server for at once, so that it answers in good time. Pure; no clock, no IO."""

from __future__ import annotations

__all__ = ["Ceiling"]

_TARGET, _LATEST = 1 / 4, 1 / 2
"""How much of its patience a claim may take: where its time goes into its jobs, and at the most."""
_UNANSWERED = 1 / 4
_LEAST = 20
_MOST = 2000
"""Beyond what any claim asks for."""
_FASTEST_GROWTH = 2.0
_FORGETTING = 1.1


class Ceiling:
    """The most jobs that one claim takes: less while claims are slow, and more again while they are quick.

    `patience` is the seconds after which a claim counts as unanswered. A claim should take a quarter of that. On a
    server that is slow to answer however little it is asked for, it may take twice what the quickest of late took,
    up to half the patience: smaller claims would only be more of them there.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._quickest = float("inf")
        self._most: int | None = None

    @property
    def most(self) -> int | None:
        """How many jobs a claim may take, at least 20; None for any number."""
        return self._most

    def answered(self, count: int, seconds: float) -> None:
        """Takes note of a claim of so many jobs that took so long."""
        self._quickest = min(seconds, self._quickest * _FORGETTING)
        aim = min(max(self._patience * _TARGET, 2 * self._quickest), self._patience * _LATEST)
        if seconds > aim:
            self._lower(int(count * aim / seconds))
        elif self._most is not None and 2 * count >= self._most:  # a smaller one says little about larger ones
            grown = int(self._most * min(aim / max(seconds, 0.001), _FASTEST_GROWTH))
            self._most = grown if grown < _MOST else None

    def unanswered(self, count: int) -> None:
        """Takes note of a claim of so many jobs that had no answer in time."""
        self._lower(int(count * _UNANSWERED))

    def _lower(self, most: int) -> None:
        before = _MOST if self._most is None else self._most
        self._most = min(before, max(most, _LEAST))
