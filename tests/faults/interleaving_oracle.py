"""What the contract allows, written without a look at how axeq does it: every write that reaches the job is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from axeq.documents.record import Document

from .interleaving_rules import LIMITS, Token, Underway, moment

__all__ = ["Broken", "Ledger", "check_ended", "check_stored", "judged"]

LIVE = frozenset({"enqueued", "dequeued", "failed"})
_TARGETS = {
    "complete": "completed",
    "complete with result": "completed",
    "fail": "failed",
    "snooze": "enqueued",
    "release": "enqueued",
    "cancel": "cancelled",
    "requested": "cancelled",
    "exhausted": "cancelled",
}


class Broken(AssertionError):
    """A promise that an interleaving breaks."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the job must show: its counts, what the last claim added to them, and which claims have had their say."""

    attempts: int = 0
    lost: int = 0
    charged: int = 0
    stored: int = 0
    applied: frozenset[Token] = frozenset()


def promise(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


def token_of(document: Document) -> Any:
    return document.get("claim", {}).get("token")


def judged(
    before: Document | None,
    after: Document | None,
    by: Underway,
    server: int,
    running: Sequence[int],
    ledger: Ledger,
) -> Ledger:
    """Returns the ledger after a write by a rule; `running` tells until when other pools may rely on their leases."""
    if before == after:
        return ledger
    if before is None:
        promise(by.rule == "insert", f"{by.rule} brings a removed job back")
        promise(not ledger.stored, "a job is stored a second time")
        return replace(ledger, stored=1)
    if after is None:
        promise(by.rule == "remove", f"{by.rule} removes the job")
        return ledger
    if by.rule.startswith("claim"):
        if token_of(before) == by.inputs[0]:
            return _extended(before, after, by, ledger)
        return _claimed(before, after, by, server, running, ledger)
    if by.rule == "extend":
        return _extended(before, after, by, ledger)
    if by.rule == "settle":
        return _settled(before, after, by, ledger)
    return _changed_by_hand(before, after, by, server, ledger)


def _claimed(
    before: Document, after: Document, by: Underway, server: int, running: Sequence[int], ledger: Ledger
) -> Ledger:
    promise(before["state"] in LIVE, f"a {before['state']} job is claimed")
    promise(before["available_at"] <= moment(server), "a job is claimed before its time or within another's lease")
    promise(all(until <= server for until in running), "two attempts overlap within their leases")
    promise(after["state"] == "dequeued" and token_of(after) == by.inputs[0], "a claim leaves no mark of its own")
    promise(by.rule != "claim_many" or not before["lost"], "a job that lost a lease is claimed with others")
    charged = 0 if before["lost"] else 1
    return replace(ledger, attempts=ledger.attempts + charged, lost=ledger.lost + 1, charged=charged)


def _extended(before: Document, after: Document, by: Underway, ledger: Ledger) -> Ledger:
    _promise_held(before, by)
    promise(before["available_at"] <= after["available_at"], "an extension shortens the lease")
    promise({**before, "available_at": None} == {**after, "available_at": None}, "an extension changes more")
    return ledger


def _settled(before: Document, after: Document, by: Underway, ledger: Ledger) -> Ledger:
    token, _, outcome = by.inputs
    _promise_held(before, by)
    target = _TARGETS[outcome]
    if "cancel" in before and target in ("failed", "enqueued"):
        target = "cancelled"
    promise(after["state"] == target, f"{outcome} leaves a job {after['state']}")
    promise(target in ("enqueued", "failed") or "cancel" not in after, "a job that has ended keeps its cancel flag")
    applied = ledger.applied | {token}
    if outcome == "release" and target == "enqueued":
        return replace(ledger, attempts=ledger.attempts - ledger.charged, lost=ledger.lost - 1, applied=applied)
    refund = 1 if outcome == "snooze" and target == "enqueued" else 0
    return replace(ledger, attempts=ledger.attempts - refund, lost=0, applied=applied)


def _promise_held(before: Document, by: Underway) -> None:
    held = before["state"] == "dequeued" and token_of(before) == by.inputs[0]
    promise(held, f"a stale {by.rule} changes a {before['state']} job")


def _changed_by_hand(before: Document, after: Document, by: Underway, server: int, ledger: Ledger) -> Ledger:
    if by.rule == "retry":
        promise(before["state"] in ("completed", "cancelled", "failed"), f"a {before['state']} job is retried")
        promise(after["state"] == "enqueued", f"a retry leaves a job {after['state']}")
        gone = {"cause", "cancel", "error", "result", "finished_at", "expire_at"}
        promise(not gone & after.keys(), "a retry leaves traces of the end")
        return replace(ledger, attempts=0, lost=0)
    promise(by.rule == "cancel", f"{by.rule} changes the job")
    promise(before["state"] in LIVE, f"a cancel changes a {before['state']} job")
    if before["state"] == "dequeued" and before["available_at"] > moment(server):
        promise({**after, "cancel": None} == {**before, "cancel": None}, "a cancel changes a running job")
        return ledger
    if after["state"] == "dequeued":  # it was asked while the lease held, and arrived late
        promise({**after, "cancel": None} == {**before, "cancel": None}, "a cancel changes a running job")
        return ledger
    promise(after["state"] == "cancelled", f"a cancel leaves a job {after['state']}")
    return replace(ledger, lost=0)


def check_stored(document: Document | None, ledger: Ledger) -> None:
    """Raises `Broken` where the job as it is stored is none that can be."""
    if document is None:
        return
    live = document["state"] in LIVE
    promise(("available_at" in document) == live, f"a {document['state']} job has the wrong due time")
    promise(("finished_at" in document) == (not live), f"a {document['state']} job has the wrong end")
    promise(("expire_at" in document) == (not live), f"a {document['state']} job expires")
    counts = (document["attempts"], document["lost"])
    promise(counts == (ledger.attempts, ledger.lost), f"counts {counts} should be {ledger}")
    promise(document["attempts"] >= 0 and document["lost"] >= 0, f"counts {counts} are negative")
    # One claim beyond each limit is what finds out that it is reached.
    promise(document["attempts"] <= LIMITS.max_attempts + 1, f"attempts {counts[0]} exceed the limit")
    assert LIMITS.max_lost is not None
    promise(document["lost"] <= LIMITS.max_lost + 2, f"lost leases {counts[1]} exceed the limit")


def check_ended(ended: Underway, document: Document | None, ledger: Ledger) -> None:
    """Raises `Broken` where what a rule reports is not what happened."""
    if ended.error is not None:
        nothing = ended.rule == "insert" and ended.error == "StoreUnavailable"
        promise(not nothing or not ledger.stored, "an enqueue says that nothing was stored though the job was")
        return
    if ended.rule.startswith("claim"):
        held = document is not None and document["state"] == "dequeued" and token_of(document) == ended.inputs[0]
        promise(bool(ended.result) or not held, "a claim took a job and says that it did not")
        for record in ended.result:
            promise(record.token == ended.inputs[0], "a claim returns a job of another")
    elif ended.rule == "settle":
        token, _, outcome = ended.inputs
        lost, applied = bool(ended.result.lost), token in ledger.applied
        promise(lost or applied, f"{outcome} is reported though it was never written")
        shown = document is not None and document["state"] == _TARGETS[outcome] and token_of(document) == token
        promise(not (lost and applied and shown), f"{outcome} is reported lost though it was written")
    elif ended.rule == "extend" and ended.result.lost:
        held = document is not None and document["state"] == "dequeued" and token_of(document) == ended.inputs[0]
        promise(not held, "a lease that holds is reported lost")
    elif ended.rule == "insert":
        promise(bool(ledger.stored), "an enqueue returns though the job was never stored")
