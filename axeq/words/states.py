"""The state machine as data. Every set of states and every filter on a state is derived from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["FINAL", "LIVE", "TRANSITIONS", "Cancellation", "Cause", "Phase", "State", "Transition", "sources"]


class State(StrEnum):
    """Where a job stands."""

    ENQUEUED = "enqueued"
    """Waits for its time and a worker."""
    DEQUEUED = "dequeued"
    """Belongs to a worker until its lease ends."""
    COMPLETED = "completed"
    """Its handler returned."""
    FAILED = "failed"
    """Its last attempt failed; it will be tried again."""
    CANCELLED = "cancelled"
    """Ended without completing; its cause says why."""


class Cause(StrEnum):
    """Why a job ended cancelled."""

    EXHAUSTED = "exhausted"
    """Too many attempts, no further one by its backoff, or too many leases lost in a row."""
    INVALID = "invalid"
    """Its stored payload no longer validates."""
    EXPIRED = "expired"
    """Its deadline passed before it had completed."""
    REQUESTED = "requested"
    """Somebody cancelled it."""
    HANDLER = "handler"
    """Its handler raised `Cancel`, or something that its task does not try again."""
    RESULT = "result"
    """Its handler returned something that cannot be stored."""


class Phase(StrEnum):
    """What a job is waiting for, or how it ended: its state, seen at a moment."""

    SCHEDULED = "scheduled"
    """Waits for its time."""
    PENDING = "pending"
    """Is due, and waits for a worker."""
    AGGREGATING = "aggregating"
    """Waits for others of its group."""
    ACTIVE = "active"
    """Belongs to a worker."""
    ORPHANED = "orphaned"
    """Belongs to a worker that has let its lease lapse; the next to come takes it over."""
    RETRYING = "retrying"
    """Has failed, and waits for its next attempt."""
    COMPLETED = "completed"
    """Its handler returned."""
    CANCELLED = "cancelled"
    """Ended because somebody cancelled it."""
    DEAD = "dead"
    """Ended cancelled though nobody had asked for it."""


class Cancellation(StrEnum):
    """What a cancel achieved."""

    CANCELLED = "cancelled"
    """The job has ended."""
    REQUESTED = "requested"
    """It is running: its handler is told, and a completion in the meantime wins."""
    TOO_LATE = "too late"
    """It had ended already."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One verb: the states it leads from, and the one it leads to."""

    sources: frozenset[State]
    target: State


def _transition(*sources: State, to: State) -> Transition:
    return Transition(frozenset(sources), to)


TRANSITIONS: dict[str, Transition] = {
    "dequeue": _transition(State.ENQUEUED, State.FAILED, State.DEQUEUED, to=State.DEQUEUED),
    "complete": _transition(State.DEQUEUED, to=State.COMPLETED),
    "fail": _transition(State.DEQUEUED, to=State.FAILED),
    "snooze": _transition(State.DEQUEUED, to=State.ENQUEUED),
    "release": _transition(State.DEQUEUED, to=State.ENQUEUED),
    "cancel": _transition(State.ENQUEUED, State.FAILED, State.DEQUEUED, to=State.CANCELLED),
    "retry": _transition(State.COMPLETED, State.CANCELLED, State.FAILED, to=State.ENQUEUED),
    "replace": _transition(State.ENQUEUED, State.FAILED, State.DEQUEUED, to=State.ENQUEUED),
}
"""A job dequeued again, or replaced while dequeued, is one whose lease lapsed. `retry` is the one by hand."""

LIVE: frozenset[State] = frozenset({State.ENQUEUED, State.DEQUEUED, State.FAILED})
"""States in which a job still has something to come: exactly those with an `available_at`."""

FINAL: frozenset[State] = frozenset(State) - LIVE
"""States that only a retry by hand leaves."""


def sources(verb: str) -> list[str]:
    """Returns the states that `verb` leads from, as a filter's `$in` takes them."""
    return sorted(TRANSITIONS[verb].sources)
