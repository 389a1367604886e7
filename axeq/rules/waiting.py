"""Waiting for jobs to end: looked for a few times, then told by a change stream, where there is one to have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from axeq.documents.codec import Codec
from axeq.documents.failure import opened_failure
from axeq.documents.record import Document, Record
from axeq.wire.wire import JOBS, Change, Find, Op, Sleep
from axeq.words.clock import Clock
from axeq.words.errors import JobCancelled, JobGone, JobNotFound, WaitTimeout
from axeq.words.states import FINAL, State

__all__ = ["wait", "wait_many"]

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.005, 0.5
_POLLED = 0.05
"""Seconds for which a wait looks by itself: a job that ends so soon is not worth a stream."""
_STREAMED = 10.0
_PAGE = 1000
"""How many jobs are read at once, and the most that a stream is opened for."""


def wait(identity: Any, clock: Clock, *, timeout: float | None, codec: Codec | None = None) -> Op[Record]:
    """Returns a job once it has completed; `timeout` in seconds, None waits for ever. `codec` opens a failure.

    Raises `WaitTimeout`, `JobCancelled`, `JobNotFound`, or `JobGone` where it was removed meanwhile.
    """
    (record,) = yield from wait_many([identity], clock, timeout=timeout)
    if record.state is State.CANCELLED:
        raise JobCancelled(identity, record.cause, opened_failure(record.error, codec))
    return record


def wait_many(ids: Sequence[Any], clock: Clock, *, timeout: float | None) -> Op[list[Record]]:
    """Returns jobs once all of them have ended, in the order of `ids`, whatever their end; `timeout` as for `wait`.

    Raises `WaitTimeout`, `JobNotFound`, or `JobGone` where one was removed meanwhile.
    """
    awaited = _Awaited(ids)
    yield from _patiently(awaited, clock, timeout)
    return [awaited.ended[identity] for identity in ids]


class _Awaited:
    """Jobs that are waited for: those still `pending`, with the state that each was last seen in, None before the
    first look, and those that have `ended`.
    """

    def __init__(self, ids: Sequence[Any]) -> None:
        self.pending: dict[Any, State | None] = dict.fromkeys(ids)
        self.ended: dict[Any, Record] = {}

    def look(self) -> Op[bool | None]:
        """Takes down what has ended, and returns whether all have; None where some have not."""
        pending = list(self.pending)
        for start in range(0, len(pending), _PAGE):
            yield from self._look_at(pending[start : start + _PAGE])
        return None if self.pending else True

    def _look_at(self, ids: Sequence[Any]) -> Op[None]:
        if len(ids) > 1:  # payloads are read once, of those that have ended
            states = yield Find(JOBS, {"_id": {"$in": list(ids)}}, {"_id": 1, "state": 1})
            self._seen(ids, states)
            ids = [document["_id"] for document in states if document["state"] in FINAL]
        if not ids:
            return
        documents = yield Find(JOBS, {"_id": ids[0] if len(ids) == 1 else {"$in": list(ids)}}, limit=len(ids))
        self._seen(ids, documents)
        for record in map(Record, documents):
            if record.final:
                self.ended[record.id] = record
                del self.pending[record.id]

    def _seen(self, ids: Sequence[Any], documents: Sequence[Document]) -> None:
        states = {document["_id"]: State(document["state"]) for document in documents}
        for identity in ids:
            if identity not in states:
                raise JobNotFound(identity) if self.pending[identity] is None else JobGone(identity)
            self.pending[identity] = states[identity]


def _patiently(awaited: _Awaited, clock: Clock, timeout: float | None) -> Op[None]:
    started = clock.monotonic()
    pause = _SHORTEST_PAUSE
    while not (yield from awaited.look()):
        waited = clock.monotonic() - started
        left = _STREAMED if timeout is None else timeout - waited
        if left <= 0:
            assert timeout is not None
            identity, state = next(iter(awaited.pending.items()))
            raise WaitTimeout(identity, timeout, str(state), others=len(awaited.pending) - 1)
        if waited >= _POLLED and len(awaited.pending) <= _PAGE:
            if (yield Change(tuple(awaited.pending), awaited.look, min(left, _STREAMED))):
                return
            followed = clock.monotonic() - started - waited
            left -= min(followed, left)
        yield Sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE)
