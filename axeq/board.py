"""What a pool knows to be due: ids per task in order, bounded. In memory only; it does no IO and decides no
claim.
"""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from axeq.due import Candidate

__all__ = ["Board"]

_FRESH_FOR = 1.0


class Board:
    """Candidates by task, by priority and then due time.

    `max_lag` in seconds, default 100 ms, spreads the claims of a job that has just fallen due over as long a
    time, so that idle pools do not all go for it at once. `monotonic` and `chance` (0 to 1) are replaced in
    tests.
    """

    def __init__(
        self,
        *,
        max_lag: float = 0.1,
        monotonic: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._max_lag = max_lag
        self._monotonic = monotonic
        self._chance = chance
        self._entries: dict[str, list[_Entry]] = {}
        self._read_at: dict[str, float] = {}
        self._more: set[str] = set()

    def fill(self, names: Sequence[str], candidates: Iterable[Candidate], *, horizon: datetime, more: bool) -> None:
        """Takes what a read of the jobs of `names` due by `horizon` brought, in place of what was known of those.

        `more` says that the read had a full page.
        """
        seen = {entry.candidate.id: entry for name in names for entry in self._entries.get(name, ())}
        now = self._monotonic()
        for name in names:
            known = self._entries.get(name, ())
            self._entries[name] = [entry for entry in known if entry.candidate.available_at > horizon]
            self._read_at[name] = now
            (self._more.add if more else self._more.discard)(name)
        for candidate in candidates:
            before = seen.get(candidate.id)
            visible_at = before.visible_at if before is not None else self._visible_at(candidate)
            self._entries[candidate.name].append(_Entry(candidate, visible_at))
        for name in names:
            self._entries[name].sort(key=_Entry.order)

    def offer(self, candidate: Candidate) -> None:
        """Adds one candidate, as a change stream reports it."""
        entries = self._entries.setdefault(candidate.name, [])
        if not entries:
            self._read_at[candidate.name] = self._monotonic()
        if all(entry.candidate.id != candidate.id for entry in entries):
            insort(entries, _Entry(candidate, self._visible_at(candidate)), key=_Entry.order)

    def take(self, name: str, count: int, now: datetime, *, apart: Collection[Any] = ()) -> list[Candidate]:
        """Removes and returns up to `count` candidates of a task that have never lost a lease.

        `now` is the server's time; ids in `apart` are dropped.
        """
        return self._remove(name, count, apart, lambda entry: not entry.candidate.lost and entry.visible_at <= now)

    def take_lost(
        self, name: str, now: datetime, *, most_lost: int | None, apart: Collection[Any] = ()
    ) -> Candidate | None:
        """Removes and returns one candidate that has lost a lease, at most `most_lost` times; None where there
        is none.
        """
        found = self._remove(
            name,
            1,
            apart,
            lambda entry: (
                entry.candidate.lost > 0
                and (most_lost is None or entry.candidate.lost <= most_lost)
                and entry.visible_at <= now
            ),
        )
        return found[0] if found else None

    def count(self, name: str) -> int:
        """Returns how many candidates of a task are known."""
        return len(self._entries.get(name, ()))

    def fresh(self, name: str) -> bool:
        """Whether a task's candidates were read within the last second, by which order is exact."""
        read_at = self._read_at.get(name)
        return read_at is not None and self._monotonic() - read_at <= _FRESH_FOR

    def more(self, name: str) -> bool:
        """Whether there may be due jobs of a task beyond those known."""
        return name in self._more

    def suspect_more(self, name: str) -> None:
        """Notes that a task had jobs just now, so that there may be more."""
        self._more.add(name)

    def next_visible(self, names: Iterable[str]) -> datetime | None:
        """Returns when the first known candidate of `names` may be claimed, by the server's clock."""
        moments = [entry.visible_at for name in names for entry in self._entries.get(name, ())]
        return min(moments, default=None)

    def _visible_at(self, candidate: Candidate) -> datetime:
        return candidate.available_at + timedelta(seconds=self._max_lag * self._chance())

    def _remove(
        self, name: str, count: int, apart: Collection[Any], wanted: Callable[[_Entry], bool]
    ) -> list[Candidate]:
        taken: list[Candidate] = []
        kept: list[_Entry] = []
        for entry in self._entries.get(name, ()):
            if entry.candidate.id in apart:
                continue
            if len(taken) < count and wanted(entry):
                taken.append(entry.candidate)
            else:
                kept.append(entry)
        self._entries[name] = kept
        return taken


class _Entry:
    __slots__ = ("candidate", "visible_at")

    def __init__(self, candidate: Candidate, visible_at: datetime) -> None:
        self.candidate = candidate
        self.visible_at = visible_at

    def order(self) -> tuple[int, datetime]:
        return self.candidate.priority, self.candidate.available_at
