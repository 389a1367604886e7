"""A job that completes in its handler's own transaction: what comes before the snapshot, and the last write before the
commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from axeq.rules.lifecycle import FENCE, Held, Holding, extend
from axeq.rules.settlement import Settlement, command_of, insistently, patiently
from axeq.wire.commands import Abort, Begin, Commit, Joined, SharedOp
from axeq.wire.wire import JOBS, Find, Op
from axeq.words.clock import Clock
from axeq.words.errors import StoreError

__all__ = ["LIMIT", "Ending", "abandoned", "concluded", "opened"]

LIMIT = 60.0
"""Seconds that a transaction may take, as servers allow by default."""


class Ending(Enum):
    """How the end of a transaction ended."""

    COMMITTED = "committed"
    UNDONE = "undone"
    """The commit failed, and nothing has happened."""
    LOST = "lost"
    """Nothing has happened, and the job is another's."""
    UNKNOWN = "unknown"
    """Nobody answered for so long that the lease is left to lapse."""


def opened(held: Sequence[Held], clock: Clock, *, lease: float) -> SharedOp[Holding]:
    """Extends the jobs of an attempt for as long as the transaction may take and begins it, unless each is lost or
    somebody asked to cancel it. `lease` is in seconds.

    Nothing may write a job from here until the end: it would come after the snapshot, and so undo everything.
    """
    holding = yield from extend(held, clock, lease=LIMIT + lease)
    if len(holding.lost) + len(holding.cancelled) < len(held):
        yield Begin()
    return holding


def abandoned() -> SharedOp[None]:
    """Undoes the transaction."""
    yield Abort()


def concluded(entries: Sequence[Settlement], clock: Clock, *, lease: float) -> SharedOp[Ending]:
    """Completes the jobs as the last write, and commits.

    Raises what the write raises; nothing of the transaction has happened then.
    """
    try:
        result = yield Joined(command_of(entries))
    except Exception:
        yield Abort()
        raise
    if result.matched_count != len(entries):
        yield Abort()
        return Ending.LOST
    try:
        yield from insistently(_commit, clock)
    except StoreError:
        return (yield from _judged(entries, clock, lease))
    return Ending.COMMITTED


def _commit() -> SharedOp[None]:
    yield Commit()


def _judged(entries: Sequence[Settlement], clock: Clock, lease: float) -> Op[Ending]:
    """Finds out what became of a commit that failed.

    The extension writes the jobs that the transaction has written, so it takes effect only once that has ended: what
    it finds dequeued stays so.
    """
    held = [Held(entry.id, entry.token) for entry in entries]
    try:
        holding = yield from insistently(lambda: extend(held, clock, lease=lease), clock)
        if not holding.lost:
            return Ending.UNDONE
        documents = yield from patiently(Find(JOBS, {"_id": {"$in": [job.id for job in held]}}, FENCE), clock)
    except StoreError:
        return Ending.UNKNOWN
    found = {document["_id"]: document for document in documents}
    shown = all(entry.shown_by(found.get(entry.id)) for entry in entries)
    return Ending.COMMITTED if shown else Ending.LOST
