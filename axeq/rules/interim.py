"""What is written of a job between its claim and its end: what its handler reports, and its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from axeq.documents.record import Document
from axeq.rules.enqueue import PATIENCE
from axeq.rules.lifecycle import FENCE, Held, fence, fence_all, lease_end
from axeq.rules.settlement import patiently
from axeq.wire.wire import JOBS, Call, Op, Update
from axeq.words.clock import Clock
from axeq.words.errors import LeaseLost

__all__ = ["beat", "keep", "report"]


def report(words: Sequence[tuple[Held, Document]]) -> Op[None]:
    """Stores the latest word of each handler, all in one command.

    What a lost lease has passed to others stays as they left it, and nobody hears of it here: the next extension or
    the outcome does.
    """
    writes = [Update(fence(held), {"$set": fields}) for held, fields in words]
    yield Call(JOBS, "bulk_write", (writes,), {"ordered": False})


def keep(held: Sequence[Held], state: Any, clock: Clock) -> Op[None]:
    """Stores the checkpoint of the jobs of one attempt, sent again until answered. Raises `LeaseLost`."""
    command = Call(JOBS, "update_many", (fence_all(held), {"$set": {"checkpoint": state}}))
    result = yield from patiently(command, clock)
    if result.matched_count < len(held):
        raise LeaseLost(held[0].id, "another worker has it, or it is gone: its checkpoint is not stored")


def beat(held: Held, clock: Clock, *, lease: float, checkpoint: Any = None) -> Op[Document]:
    """Extends one lease to so many seconds from now, and stores a checkpoint with the same write, None for none.

    Returns the job as `FENCE` and with its lease's end; sent again until answered, for as long as a lease at the most.
    Raises `LeaseLost`.
    """
    update: Document = {"$max": {"available_at": lease_end(clock, lease)}}
    if checkpoint is not None:
        update["$set"] = {"checkpoint": checkpoint}
    options = {"return_document": True, "projection": {**FENCE, "available_at": 1}}
    command = Call(JOBS, "find_one_and_update", (fence(held), update), options)
    document: Document | None = yield from patiently(command, clock, min(lease, PATIENCE))
    if document is None:
        raise LeaseLost(held.id, "another worker has it, or it is gone")
    return document
