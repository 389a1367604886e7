"""Groups: jobs of a task that one call of its handler takes together, and when they are ready for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from axeq.documents.record import Document
from axeq.rules.due import BOARD, Candidate, due_query, sound
from axeq.wire.wire import JOBS, Find, Op
from axeq.words.duration import Duration, seconds
from axeq.words.number import whole

__all__ = ["LARGEST_GROUP", "Arrival", "Gathering", "Group", "arrivals", "gather"]

LARGEST_GROUP = 5000
"""How many jobs one call may take, and how many are read to see which groups are ready."""

_MEMBER = {**BOARD, "group": 1}
_FEWEST_TOGETHER = 2
"""`max_lost` below which jobs whose worker died are not gathered again: they could not die alone any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """When the jobs of a group have come together: `Task(Model, handler, group=Group(grace=10))`.

    One call of the handler takes them once no job has come to the group for `grace` (default 60 s), or its first has
    waited for `max_delay` (default None: it waits for as long as jobs keep coming), or there are `max_size` of them
    (default 1,000, at most 5,000); more than that are taken by further calls. Durations are `timedelta` or seconds.
    Raises `ConfigurationError` for an option that cannot work.
    """

    grace: Duration = 60.0
    max_delay: Duration | None = None
    max_size: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "grace", seconds(self.grace, "grace"))
        if self.max_delay is not None:
            object.__setattr__(self, "max_delay", seconds(self.max_delay, "max_delay"))
        whole("max_size", self.max_size, 1, LARGEST_GROUP)

    @property
    def patience(self) -> timedelta:
        """How long a job that comes alone waits."""
        assert isinstance(self.grace, float)
        assert self.max_delay is None or isinstance(self.max_delay, float)
        return timedelta(seconds=self.grace if self.max_delay is None else min(self.grace, self.max_delay))

    def ready_at(self, first: datetime, last: datetime) -> datetime:
        """Returns when jobs that came from `first` to `last` are ready, if there are no more and no others come."""
        assert isinstance(self.grace, float)
        quiet = last + timedelta(seconds=self.grace)
        if self.max_delay is None:
            return quiet
        assert isinstance(self.max_delay, float)
        return min(quiet, first + timedelta(seconds=self.max_delay))


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job that waits in a group; None is the group of those without a name. It came when it fell due."""

    candidate: Candidate
    group: str | None


@dataclass(frozen=True, slots=True)
class Gathering:
    """A call to be: jobs of one group that have all lost equally many leases, and when they are ready."""

    group: str | None
    candidates: tuple[Candidate, ...]
    ready_at: datetime

    @property
    def name(self) -> str:
        """The task's name."""
        return self.candidates[0].name

    @property
    def lost(self) -> int:
        """How many leases each has lost."""
        return self.candidates[0].lost

    @property
    def order(self) -> tuple[int, datetime]:
        """What comes first: its most urgent job's priority, then what has been ready for longest."""
        return self.candidates[0].priority, self.ready_at

    def stands_for(self, queue: str) -> Candidate:
        """Returns what pools rank each other by, so that one of them takes all of the group."""
        first = self.candidates[0]
        return Candidate(f"{queue}/{first.name}/{self.group or ''}", first.name, 0, self.ready_at, first.version, 0)


def arrivals(queue: str, versions: Mapping[str, int], now: datetime) -> Op[list[Arrival]]:
    """Returns jobs due by `now` of the tasks in `versions` (name to the newest version understood), at most
    `LARGEST_GROUP` of each: by priority, the first to come first.
    """
    found = yield from _page(queue, versions, now)
    if len(found) < LARGEST_GROUP or len(versions) == 1:
        return found
    pages = []
    for name, version in versions.items():
        pages += yield from _page(queue, {name: version}, now)
    return pages


def _page(queue: str, versions: Mapping[str, int], now: datetime) -> Op[list[Arrival]]:
    query, order = due_query(queue, versions, now), [("priority", 1), ("available_at", 1)]
    found = yield from sound(Find(JOBS, query, _MEMBER, sort=order, limit=LARGEST_GROUP), now)
    return [
        Arrival(candidate, _group_of(document))
        for candidate, document in found
        if candidate.version <= versions.get(candidate.name, 0)
    ]


def _group_of(document: Document) -> str | None:
    group = document.get("group")
    return group if isinstance(group, str) else None


def gather(waiting: Iterable[Arrival], terms: Group, *, max_lost: int | None) -> list[Gathering]:
    """Returns the calls that the jobs of one task make, each job in exactly one, and when each call is ready.

    Jobs whose worker has died once are gathered again at once, with each other: any of them may have killed it. Those
    that have died more often, or for which `max_lost` leaves no more, are alone.
    """
    fresh: dict[str | None, list[Candidate]] = {}
    again: dict[str | None, list[Candidate]] = {}
    gatherings: list[Gathering] = []
    regathers = max_lost is None or max_lost >= _FEWEST_TOGETHER
    for arrival in waiting:
        candidate = arrival.candidate
        if not candidate.lost:
            fresh.setdefault(arrival.group, []).append(candidate)
        elif candidate.lost == 1 and regathers:
            again.setdefault(arrival.group, []).append(candidate)
        else:
            gatherings.append(Gathering(arrival.group, (candidate,), candidate.available_at))
    for group, candidates in again.items():
        gatherings += [Gathering(group, part, _last(part)) for part in _parts(candidates, terms.max_size)]
    for group, candidates in fresh.items():
        for part in _parts(candidates, terms.max_size):
            full = len(part) == terms.max_size
            ready_at = _last(part) if full else terms.ready_at(_first(part), _last(part))
            gatherings.append(Gathering(group, part, ready_at))
    return gatherings


def _parts(candidates: Sequence[Candidate], size: int) -> Iterator[tuple[Candidate, ...]]:
    ordered = sorted(candidates, key=lambda candidate: (candidate.priority, candidate.available_at))
    for start in range(0, len(ordered), size):
        yield tuple(ordered[start : start + size])


def _first(candidates: Sequence[Candidate]) -> datetime:
    return min(candidate.available_at for candidate in candidates)


def _last(candidates: Sequence[Candidate]) -> datetime:
    return max(candidate.available_at for candidate in candidates)
