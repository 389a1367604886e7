"""What a pool knows to be due: ids per task in order, bounded. In memory only; it does no IO and decides no
claim.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from axeq.rules.due import Candidate
from axeq.supply.lag import Lag

__all__ = ["Board"]

_MOST_KNOWN = 8000
_LEFT_FOR_LONG = timedelta(seconds=3)
_REMEMBERED = 3.0
"""Seconds for which what was taken is known to be: most reads and words of a stream take less."""
_NEVER = datetime.min.replace(tzinfo=UTC)


class Board:
    """Candidates by task: by priority, this pool's own before others', then by due time.

    `lag` says which are its own, and how long the pool leaves each alone from when it is due and seen.
    `monotonic` counts seconds. Moments are by the server's clock.
    """

    def __init__(self, lag: Lag, *, monotonic: Callable[[], float]) -> None:
        self._lag = lag
        self._monotonic = monotonic
        self._sheets: dict[str, _Sheet] = {}
        self._taken_before: dict[Any, tuple[float, datetime]] = {}
        """By id, in that order, when candidates were taken and since when they were due."""

    def fill(
        self,
        names: Sequence[str],
        candidates: Sequence[Candidate],
        *,
        horizon: datetime,
        since: float,
        full: bool,
    ) -> None:
        """Takes what a read of the jobs of `names` due by `horizon` brought, in place of what was known of those.

        `since` is the moment at which the read began, as `monotonic` counts: what a stream has reported from
        then on, the read may not have seen, and stays; what was taken from then on, it may still show, and stays away.
        Of a `full` page, what comes after it in order stays, too.
        """
        before = {name: self._sheets.get(name) or _Sheet() for name in names}
        end = (candidates[-1].priority, candidates[-1].available_at) if full else None
        for name, sheet in before.items():
            unread = [entry for entry in sheet.entries.values() if entry.unread(horizon, since, end)]
            self._sheets[name] = _Sheet(unread, read_at=self._monotonic(), more=sheet.more)
        for candidate in candidates:
            if not self._taken_since(candidate.id, since):
                self._seen(candidate, before[candidate.name].entries.get(candidate.id), horizon)

    def extend(self, name: str, candidates: Iterable[Candidate], *, horizon: datetime, since: float) -> None:
        """Adds jobs of a task, due by `horizon`, that come after those known, from a read that began at `since`.

        Where very many are known, those of other pools are passed over: they are read again when their turn comes.
        """
        sheet = self._sheets.setdefault(name, _Sheet())
        for candidate in candidates:
            if self._taken_since(candidate.id, since):
                continue
            entry = self._seen(candidate, sheet.entries.get(candidate.id), horizon)
            if len(sheet.entries) > _MOST_KNOWN and not entry.own:
                del sheet.entries[candidate.id]

    def _seen(self, candidate: Candidate, known: _Entry | None, horizon: datetime) -> _Entry:
        """Puts down that a read up to `horizon` has found a candidate.

        One that its pool has left for long is this one's from then on: that pool is dead, or has too much to do.
        """
        entry = known or self._entry(candidate, horizon)
        entry.confirmed_at = horizon
        entry.own = entry.own or horizon - entry.visible_at >= _LEFT_FOR_LONG
        self._sheets[candidate.name].add(entry)
        return entry

    def rank_anew(self, now: datetime) -> None:
        """Asks the lag again whose the candidates are: other pools are live than before."""
        for sheet in self._sheets.values():
            for entry in list(sheet.entries.values()):
                own, _ = self._lag.delay(entry.candidate)
                if own and not entry.own:
                    entry.own, entry.visible_at = True, min(entry.visible_at, now)
                    sheet.add(entry)

    def offer(self, candidate: Candidate, now: datetime) -> None:
        """Adds one candidate that a change stream reports, which may be later than the claim of it."""
        if self._taken_before.get(candidate.id, (0.0, _NEVER))[1] == candidate.available_at:
            return
        sheet = self._sheets.setdefault(candidate.name, _Sheet())
        if not sheet.entries:
            sheet.read_at = self._monotonic()
        if candidate.id not in sheet.entries:
            sheet.add(self._entry(candidate, now))

    def drop(self, identity: Any) -> None:
        """Forgets a candidate that another pool has claimed."""
        for sheet in self._sheets.values():
            sheet.entries.pop(identity, None)

    def take(self, name: str, count: int, now: datetime, *, idle: int, apart: Collection[Any] = ()) -> list[Candidate]:
        """Removes and returns up to `count` candidates of a task that have never lost a lease.

        Those of other pools only where this one has none of its own left, here or in the store, for at most
        `idle` workers, and where a read has found them after their pools had had time: most are gone by then.
        Ids in `apart` are dropped.
        """
        own = self._taken(
            name, count, apart, lambda entry: entry.own and not entry.candidate.lost and entry.visible_at <= now
        )
        if own or self.more(name):
            return own
        return self._taken(
            name,
            min(count, idle),
            apart,
            lambda entry: not entry.candidate.lost and entry.visible_at <= entry.confirmed_at,
        )

    def unconfirmed(self, name: str, now: datetime) -> bool:
        """Whether other pools have had time for a candidate that no read has found since."""
        sheet = self._sheets.get(name)
        return sheet is not None and any(
            not entry.own and entry.confirmed_at < entry.visible_at <= now for entry in sheet.entries.values()
        )

    def take_lost(
        self, name: str, now: datetime, *, most_lost: int | None, apart: Collection[Any] = ()
    ) -> Candidate | None:
        """Removes and returns a candidate that has lost a lease, at most `most_lost` times; None without one."""
        sheet = self._sheets.get(name)
        if sheet is None or not sheet.has_lost:
            return None
        most = float("inf") if most_lost is None else most_lost
        found = self._taken(name, 1, apart, lambda entry: 0 < entry.candidate.lost <= most and entry.visible_at <= now)
        return found[0] if found else None

    def lost_first(self, name: str, now: datetime, *, most_lost: int | None, apart: Collection[Any] = ()) -> bool:
        """Whether the candidate that goes before all others has lost a lease, at most `most_lost` times."""
        sheet = self._sheets.get(name)
        if sheet is None or not sheet.has_lost:
            return False
        most = float("inf") if most_lost is None else most_lost
        for identity, entry in sheet.in_order():
            lost = entry.candidate.lost
            if entry.visible_at <= now and lost <= most and identity not in apart:
                return lost > 0
        return False

    def count(self, name: str) -> int:
        """Returns how many candidates of a task are known."""
        sheet = self._sheets.get(name)
        return len(sheet.entries) if sheet else 0

    def count_own(self, name: str) -> int:
        """Returns how many of them are this pool's own."""
        sheet = self._sheets.get(name)
        return sum(entry.own for entry in sheet.entries.values()) if sheet else 0

    def fresh(self, name: str, *, within: float) -> bool:
        """Whether a task's candidates were read in the last so many seconds."""
        sheet = self._sheets.get(name)
        return sheet is not None and self._monotonic() - sheet.read_at <= within

    def more(self, name: str) -> bool:
        """Whether there may be due jobs of a task beyond those known."""
        sheet = self._sheets.get(name)
        return sheet is not None and sheet.more

    def expect_more(self, name: str, more: bool) -> None:
        """Notes whether there may be due jobs of a task beyond those known."""
        self._sheets.setdefault(name, _Sheet()).more = more

    def next_visible(self, names: Iterable[str]) -> datetime | None:
        """Returns when the first known candidate of `names` may be claimed."""
        sheets = [self._sheets[name] for name in names if name in self._sheets]
        return min((entry.visible_at for sheet in sheets for entry in sheet.entries.values()), default=None)

    def _entry(self, candidate: Candidate, now: datetime) -> _Entry:
        own, seconds = self._lag.delay(candidate)
        seen = candidate.available_at if own else max(candidate.available_at, now)
        return _Entry(candidate, own, seen + timedelta(seconds=seconds), self._monotonic())

    def _taken(
        self, name: str, count: int, apart: Collection[Any], wanted: Callable[[_Entry], bool]
    ) -> list[Candidate]:
        sheet = self._sheets.get(name)
        taken: list[Candidate] = []
        if sheet is None or count < 1:
            return taken
        gone: list[Candidate] = []
        for identity, entry in sheet.in_order():
            if identity in apart:
                gone.append(entry.candidate)
            elif wanted(entry):
                taken.append(entry.candidate)
                gone.append(entry.candidate)
                if len(taken) == count:
                    break
        for candidate in gone:
            del sheet.entries[candidate.id]
        self._remember(gone)
        return taken

    def _taken_since(self, identity: Any, since: float) -> bool:
        moment, _ = self._taken_before.get(identity, (float("-inf"), _NEVER))
        return moment >= since

    def _remember(self, gone: Iterable[Candidate]) -> None:
        """Puts down what was taken now, and forgets what was taken long ago."""
        now, taken = self._monotonic(), self._taken_before
        for candidate in gone:
            taken.pop(candidate.id, None)
            taken[candidate.id] = now, candidate.available_at
        while taken and next(iter(taken.values()))[0] < now - _REMEMBERED:
            del taken[next(iter(taken))]


class _Entry:
    __slots__ = ("candidate", "confirmed_at", "own", "seen_at", "visible_at")

    def __init__(self, candidate: Candidate, own: bool, visible_at: datetime, seen_at: float) -> None:
        self.candidate = candidate
        self.own = own
        self.visible_at = visible_at
        self.seen_at = seen_at
        self.confirmed_at = _NEVER

    def unread(self, horizon: datetime, since: float, end: tuple[int, datetime] | None) -> bool:
        """Whether a read up to `horizon`, begun at `since`, whose page ended with `end`, cannot have seen it."""
        due = self.candidate.available_at
        return due > horizon or self.seen_at >= since or (end is not None and (self.candidate.priority, due) >= end)

    @property
    def order(self) -> tuple[int, bool, datetime]:
        return self.candidate.priority, not self.own, self.candidate.available_at


class _Sheet:
    """The candidates of one task, by id, put in order when they are next looked through."""

    __slots__ = ("_ordered", "entries", "has_lost", "more", "read_at")

    def __init__(self, entries: Iterable[_Entry] = (), *, read_at: float = float("-inf"), more: bool = False) -> None:
        self.entries: dict[Any, _Entry] = {}
        self.read_at = read_at
        self.more = more
        self.has_lost = False
        self._ordered = True
        for entry in entries:
            self.add(entry)

    def add(self, entry: _Entry) -> None:
        self.entries[entry.candidate.id] = entry
        self.has_lost = self.has_lost or entry.candidate.lost > 0
        self._ordered = False

    def in_order(self) -> Iterable[tuple[Any, _Entry]]:
        if not self._ordered:
            self.entries = dict(sorted(self.entries.items(), key=lambda item: item[1].order))
            self._ordered = True
        return self.entries.items()
