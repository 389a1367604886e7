"""What becomes of a job in the store: outcomes as fenced writes, sent in batches and sent again until answered."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from axeq.documents.failure import excerpt
from axeq.documents.record import EVENTS_KEPT, Document, Record, event
from axeq.rules.enqueue import PATIENCE
from axeq.rules.lifecycle import FENCE, cancel_reason, owns, token_of
from axeq.rules.outcome import Cancelled, Completed, Failed, Flawed, Limits, Outcome, Released, Snoozed, due, end_flawed
from axeq.wire.wire import JOBS, Call, Find, Merge, Op, Sleep, Update
from axeq.words.clock import Clock, milliseconds
from axeq.words.errors import AccessDenied, PayloadInvalid, StoreError, StoreUnavailable
from axeq.words.states import TRANSITIONS, Cause, State

__all__ = [
    "Settled",
    "Settlement",
    "applied",
    "cancelling",
    "command_of",
    "expiry",
    "insistently",
    "logged",
    "patiently",
    "settle",
    "settlement",
    "settlements",
]

T = TypeVar("T")

_DEQUEUED = State.DEQUEUED.value
_RESENT = 60.0
"""Seconds from its enqueue for which a job is kept at the least."""
_MANY_ALIKE = 8
"""From how many on outcomes that are alike are a write of their own."""
_NOTHING: Document = {}
_COMPLETION_UNSETS: Document = {"available_at": "", "cancel": "", "error": ""}
_SAID = ("progress", "status", "result")
"""What a handler may have reported while it ran."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """One outcome on its way to the store.

    `instead` makes the cancellation that takes its place where somebody asked for one meanwhile, from the reason.
    `apart` says that it can share no write with other completions.
    """

    id: Any
    token: Any
    verb: str
    update: Document
    instead: Callable[[str], Document] | None = None
    alike: Hashable = None
    apart: bool = False

    @property
    def write(self) -> Update:
        """The fenced write."""
        fence: Document = {"_id": self.id, "claim.token": self.token, "state": _DEQUEUED}
        if self.instead is not None:
            fence["cancel"] = {"$exists": False}
        return Update(fence, self.update)

    def write_with(self, others: Sequence[Settlement]) -> Update:
        """Returns one fenced write for this and `others`, which are alike."""
        write = self.write
        if not others:
            return write
        ids = [self.id, *(other.id for other in others)]
        return Update({**write.filter, "_id": {"$in": ids}}, write.update, many=True)

    def cancelled(self, reason: str) -> Settlement:
        """Returns the cancellation that takes its place."""
        assert self.instead is not None
        return Settlement(self.id, self.token, "cancel", self.instead(reason))

    def shown_by(self, document: Document | None) -> bool:
        """Whether `document` shows that an earlier, unanswered try has written it."""
        return (
            document is not None
            and token_of(document) == self.token
            and document.get("state") == TRANSITIONS[self.verb].target.value
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a batch: ids whose lease was lost, the updates of those that ended cancelled because somebody
    had asked, and why the server refused others.
    """

    lost: frozenset[Any] = frozenset()
    cancelled: Mapping[Any, Document] = field(default_factory=dict)
    refused: Mapping[Any, str] = field(default_factory=dict)

    def with_those_of(self, other: Settled) -> Settled:
        """Returns what became of two batches."""
        return Settled(
            self.lost | other.lost,
            {**self.cancelled, **other.cancelled},
            {**self.refused, **other.refused},
        )


def settlement(
    record: Record,
    outcome: Outcome,
    limits: Limits,
    clock: Clock,
    *,
    started_at: datetime | None = None,
    ended_at: datetime | None = None,
    said: Document | None = None,
) -> Settlement:
    """Returns the write that carries out `outcome`, with what the handler `said` last. The clock must have been
    measured.
    """
    stamped = _stamped(started_at, ended_at, said)
    update = _UPDATES[type(outcome)](record, outcome, limits, clock, stamped)
    instead = alike = None
    if isinstance(outcome, Completed) and update["$unset"] is not _COMPLETION_UNSETS:
        return Settlement(record.id, record.token, "complete", update, apart=True)
    if isinstance(outcome, Completed) and outcome.result is None and not said:
        alike = (record.token, started_at, ended_at, update["$set"]["expire_at"])
    elif not isinstance(outcome, Completed | Cancelled | Flawed):
        instead = partial(_cancel_asked, record, limits, clock, stamped)
    return Settlement(record.id, record.token, _VERBS[type(outcome)], update, instead, alike)


def settlements(
    outcomes: Iterable[tuple[Record, Outcome]],
    limits: Limits,
    clock: Clock,
    *,
    started_at: datetime | None = None,
    ended_at: datetime | None = None,
    said: Document | None = None,
) -> list[Settlement]:
    """Returns the writes for jobs that were handled together: those that are alike go as one."""
    entries: list[Settlement] = []
    shared: dict[Hashable, Settlement] = {}
    stamped = _stamped(started_at, ended_at, said)
    for record, outcome in outcomes:
        terms = _terms(record, outcome, limits)
        first = shared.get(terms)
        if first is None:
            first = settlement(record, outcome, limits, clock, started_at=started_at, ended_at=ended_at, said=said)
            shared[terms] = first = replace(first, alike=(started_at, terms))
            entries.append(first)
        else:
            instead = partial(_cancel_asked, record, limits, clock, stamped) if first.instead is not None else None
            entries.append(replace(first, id=record.id, instead=instead))
    return entries


def _terms(record: Record, outcome: Outcome, limits: Limits) -> Hashable:
    """Returns what an update depends on: for equal ones it is the same. The outcomes must outlive the terms."""
    created_at = record.created_at if min(limits.retention, limits.cancelled_retention) < _RESENT else None
    reported = tuple(field in record.document for field in ("progress", "result", "checkpoint"))
    return record.token, id(outcome), record.attempts, record.lost > 1, record.retention, created_at, reported


def _stamped(started_at: datetime | None, ended_at: datetime | None, said: Document | None) -> Document:
    times = {"started_at": started_at, "ended_at": ended_at}
    return {key: value for key, value in times.items() if value is not None} | (said or {})


def settle(batch: Sequence[Settlement], clock: Clock) -> Op[Settled]:
    """Writes a batch of outcomes, each under its fence, and tells which leases were lost.

    An unanswered write is sent again for `PATIENCE` seconds, then `StoreUnavailable` is raised and the leases
    lapse. A refused batch is halved until what cannot be written stands alone.
    """
    try:
        missing = yield from _written(batch, clock)
    except (AccessDenied, StoreUnavailable):
        raise
    except (StoreError, PayloadInvalid) as error:
        if len(batch) == 1:
            return Settled(refused={batch[0].id: str(error)})
        middle = len(batch) // 2
        first = yield from settle(batch[:middle], clock)
        return first.with_those_of((yield from settle(batch[middle:], clock)))
    return (yield from _accounted(missing, clock)) if missing else Settled()


def applied(document: Document, update: Document) -> Document:
    """Returns `document` as a settlement's update leaves it; `document` itself stays as it is."""
    changed = {key: value for key, value in document.items() if key not in update.get("$unset", ())}
    changed.update(update.get("$set", {}))
    for key, number in update.get("$inc", {}).items():
        changed[key] = changed.get(key, 0) + number
    for key, push in update.get("$push", {}).items():
        changed[key] = [*changed.get(key, ()), *push["$each"]][push["$slice"] :]
    return changed


def _accounted(missing: Sequence[Settlement], clock: Clock) -> Op[Settled]:
    """Finds out what became of a batch of which not every write matched."""
    documents = yield from patiently(Find(JOBS, {"_id": {"$in": [entry.id for entry in missing]}}, FENCE), clock)
    found = {document["_id"]: document for document in documents}
    flagged = [
        entry.cancelled(cancel_reason(found[entry.id]))
        for entry in missing
        if entry.instead is not None and owns(found.get(entry.id), entry.token) and "cancel" in found[entry.id]
    ]
    instead = {entry.id: entry.update for entry in flagged}
    lost = {entry.id for entry in missing if entry.id not in instead and not entry.shown_by(found.get(entry.id))}
    if not flagged:
        return Settled(frozenset(lost))
    ended = yield from settle(flagged, clock)
    gone = ended.lost | ended.refused.keys()
    return Settled(
        ended.lost | lost,
        {identity: update for identity, update in instead.items() if identity not in gone},
        ended.refused,
    )


def _written(batch: Sequence[Settlement], clock: Clock) -> Op[Sequence[Settlement]]:
    """Returns nothing where every write matched; else the whole batch, for the bulk's reply does not say which
    did not.
    """
    result = yield from patiently(command_of(batch), clock)
    return [] if result.matched_count == len(batch) else batch


def _writes(batch: Sequence[Settlement]) -> list[Update | Merge]:
    """Returns the fewest writes that carry the batch out: those that are alike go as one, and so do the other
    completions under one token.
    """
    alike: dict[Hashable, list[Settlement]] = {}
    for entry in batch:
        alike.setdefault(entry.id if entry.alike is None else entry.alike, []).append(entry)
    writes: list[Update | Merge] = []
    completions: dict[Any, list[Settlement]] = {}
    for first, *others in alike.values():
        if first.verb != "complete" or first.apart or len(others) >= _MANY_ALIKE:
            writes.append(first.write_with(others))
        else:
            completions.setdefault(first.token, []).extend((first, *others))
    return writes + [_merged(entries) for entries in completions.values()]


def _merged(completions: Sequence[Settlement]) -> Update | Merge:
    """Returns one fenced write for completions under one token."""
    first = completions[0]
    if len(completions) == 1:
        return first.write
    fields = {entry.id: entry.update["$set"] for entry in completions}
    return Merge({"claim.token": first.token, "state": _DEQUEUED}, fields, list(first.update["$unset"]))


def command_of(batch: Sequence[Settlement]) -> Call:
    """Returns the one command that writes a batch of outcomes, each under its fence."""
    (write, *others) = writes = _writes(batch)
    if others or isinstance(write, Merge):
        return Call(JOBS, "bulk_write", (writes,), {"ordered": False})
    return Call(JOBS, "update_many" if write.many else "update_one", (write.filter, write.update))


def patiently(command: Call | Find, clock: Clock, patience: float = PATIENCE) -> Op[Any]:
    """Sends a command that may be repeated, again and again for `patience` seconds until it is answered."""

    def sent() -> Op[Any]:
        return (yield command)

    return (yield from insistently(sent, clock, patience))


def insistently(
    rule: Callable[[], Generator[Any, Any, T]], clock: Clock, patience: float = PATIENCE
) -> Generator[Any, Any, T]:
    """Runs a rule that may be repeated, again and again for `patience` seconds until it is answered."""
    deadline = clock.monotonic() + patience
    pause = 0.05
    while True:
        try:
            return (yield from rule())
        except StoreUnavailable:
            if clock.monotonic() + pause >= deadline:
                raise
        yield Sleep(pause)
        pause = min(pause * 2, 2.0)


def _complete(record: Record, outcome: Completed, limits: Limits, clock: Clock, stamped: Document) -> Document:
    now = stamped.get("ended_at") or clock.earliest()
    fields = {
        **stamped,
        "state": State.COMPLETED.value,
        "lost": 0,
        "finished_at": now,
        "expire_at": expiry(record, now, limits.retention),
    }
    if outcome.result is not None:
        fields["result"] = outcome.result
    document = record.document
    if "progress" in document or "result" in document or "checkpoint" in document:
        return _complete_long(document, outcome, fields)
    return {"$set": fields, "$unset": _COMPLETION_UNSETS}


def _complete_long(document: Document, outcome: Completed, fields: Document) -> Document:
    """Completes a job that has reported, now or in an earlier attempt, or has a checkpoint."""
    unset = dict(_COMPLETION_UNSETS)
    if "progress" in document:
        fields["progress"] = 1.0
    if "checkpoint" in document:
        unset["checkpoint"] = ""
    if outcome.result is None and "result" in document:
        fields.pop("result", None)
        unset["result"] = ""
    return {"$set": fields, "$unset": unset}


def _fail(record: Record, outcome: Failed, limits: Limits, clock: Clock, stamped: Document) -> Document:
    at = milliseconds(due(clock.latest(), outcome.delay, outcome.at), up=True)
    return {
        "$set": {
            **stamped,
            "state": State.FAILED.value,
            "lost": 0,
            "available_at": at,
            "error": outcome.error,
        },
        **logged(record, "fail", clock, outcome.error["message"], worker=record.worker, error=_excerpt(outcome)),
    }


def _cancel(record: Record, outcome: Cancelled, limits: Limits, clock: Clock, stamped: Document) -> Document:
    return cancelling(record, outcome, limits, clock, stamped, worker=record.worker)


def cancelling(
    record: Record,
    outcome: Cancelled,
    limits: Limits,
    clock: Clock,
    stamped: Document = _NOTHING,
    *,
    worker: str | None = None,
) -> Document:
    """Returns the update that ends a job as cancelled; `worker` is None for what people do."""
    now = clock.earliest()
    fields = {
        **stamped,
        "state": State.CANCELLED.value,
        "lost": 0,
        "cause": outcome.cause.value,
        "finished_at": now,
        "expire_at": expiry(record, now, limits.cancelled_retention),
    }
    reason = outcome.reason or outcome.cause.value
    if outcome.error is not None:
        fields["error"] = outcome.error
    return {
        "$set": fields,
        "$unset": {"available_at": "", "cancel": ""},
        **logged(record, "cancel", clock, reason, worker=worker, error=_excerpt(outcome)),
    }


def _excerpt(outcome: Failed | Cancelled) -> Document | None:
    if outcome.error is None or outcome.excerpt is not None:
        return outcome.excerpt
    return excerpt(outcome.error)


def _cancel_asked(record: Record, limits: Limits, clock: Clock, stamped: Document, reason: str) -> Document:
    return _cancel(record, Cancelled(Cause.REQUESTED, reason), limits, clock, stamped)


def _snooze(record: Record, outcome: Snoozed, limits: Limits, clock: Clock, stamped: Document) -> Document:
    at = milliseconds(due(clock.latest(), outcome.delay, outcome.at), up=True)
    reason = outcome.reason
    if outcome.error is not None:
        reason = f"{outcome.error['type']}, no failure: {outcome.error['message']}"
    update: Document = {
        "$set": {**stamped, "state": State.ENQUEUED.value, "lost": 0, "available_at": at},
        "$inc": {"attempts": -1},
        **logged(record, "snooze", clock, reason, worker=record.worker),
    }
    if outcome.version is not None:
        update["$set"].update(data=outcome.data, version=outcome.version)
        update["$unset"] = {"checkpoint": ""}  # it was of the work on the payload before
    return update


def _release(record: Record, outcome: Released, limits: Limits, clock: Clock, stamped: Document) -> Document:
    # Exactly what the claim took: one that followed a lost lease took no attempt.
    taken = {"lost": -1} if record.lost > 1 else {"lost": -1, "attempts": -1}
    said = {key: stamped[key] for key in _SAID if key in stamped}
    return {
        "$set": {**said, "state": State.ENQUEUED.value, "available_at": outcome.at or clock.earliest()},
        "$inc": taken,
        **logged(record, "release", clock, outcome.reason, worker=record.worker),
    }


def _end_flawed(record: Record, outcome: Flawed, limits: Limits, clock: Clock, stamped: Document) -> Document:
    kept, now = limits.cancelled_retention, clock.earliest()
    return end_flawed(record.document, outcome.reason, now, retention=kept, worker=record.worker)


_UPDATES: Mapping[type, Any] = {
    Completed: _complete,
    Failed: _fail,
    Cancelled: _cancel,
    Snoozed: _snooze,
    Released: _release,
    Flawed: _end_flawed,
}
_VERBS: Mapping[type, str] = {
    Completed: "complete",
    Failed: "fail",
    Cancelled: "cancel",
    Snoozed: "snooze",
    Released: "release",
    Flawed: "cancel",
}


def expiry(record: Record, now: datetime, retention: float) -> datetime:
    """Returns when a job that ended `now` may be removed; the job's own retention goes before the task's, in
    seconds.

    An enqueue whose reply was lost is sent again for half a minute, so a job without its own retention is kept
    a minute from its enqueue at the least: it must not have come, run and gone.
    """
    if record.retention is not None:
        return now + timedelta(seconds=record.retention)
    return max(now + timedelta(seconds=retention), record.created_at + timedelta(seconds=_RESENT))


def logged(
    record: Record,
    verb: str,
    clock: Clock,
    reason: str = "",
    *,
    worker: str | None = None,
    error: Document | None = None,
) -> Document:
    """Returns the part of an update that adds an entry to the job's events; `worker` is None for what people do,
    `error` the excerpt of an attempt's failure.
    """
    entry = event(verb, clock.earliest(), attempt=record.attempts, worker=worker, reason=reason, error=error)
    return {"$push": {"events": {"$each": [entry], "$slice": -EVENTS_KEPT}}}
