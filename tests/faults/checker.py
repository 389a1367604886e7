"""Judges a run by its evidence: the stored documents, the ledger of executions, the history of changes, and what was
done to the processes. It asks axeq nothing.

The invariants are numbered I1 to I10. Where the catalogue speaks of a counter of claims, axeq's contract has a fresh
`claim.token` for each claim; `attempts` and `lost` follow the rules of a claim and of the write that ends it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import bson

from tests.faults.history import Change
from tests.faults.ledger import Execution, by_job

__all__ = ["CHECKS", "LIVE", "Breach", "Enqueued", "Evidence", "Harm", "Usage", "breaches", "reruns"]

LIVE = frozenset({"enqueued", "dequeued", "failed"})
FINAL = frozenset({"completed", "cancelled"})
_LARGEST = 256 * 1024
_MOST_EVENTS = 50
_EDGES = {
    "enqueued": {"dequeued", "cancelled"},
    "failed": {"dequeued", "cancelled"},
    "dequeued": {"completed", "failed", "cancelled", "enqueued", "dequeued"},
}
_HOUR = 3600.0
_GROWTH = 0.10
_WARM_AFTER = 30.0
"""Seconds: until then a process still reads its code and fills its pools of connections."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    """An enqueue that returned: the job, the Unix time before which it must not start, the size of its payload, and
    whether it is to be judged for having started late.
    """

    job: str
    due: float = 0.0
    payload: int = 0
    prompt: bool = True


@dataclass(frozen=True, slots=True)
class Harm:
    """What the harness did to a process (None: to all) from `at` to `until` (monotonic), so that it may lose leases."""

    kind: str
    pid: int | None
    at: float
    until: float


@dataclass(frozen=True, slots=True)
class Usage:
    """How much memory, and how many open files, a process had at a moment."""

    pid: int
    at: float
    resident: int
    files: int = 0


@dataclass
class Evidence:
    """All that is known of a run. Moments are monotonic seconds but for `Enqueued.due` and the wall times."""

    documents: Mapping[str, Mapping[str, Any]]
    executions: Sequence[Execution] = ()
    enqueued: Sequence[Enqueued] = ()
    history: Sequence[Change] = ()
    harms: Sequence[Harm] = ()
    usage: Sequence[Usage] = ()
    leaks: Sequence[str] = ()
    lease: float = 30.0
    max_attempts: int = 0
    drained: bool = True
    """Whether every job had the time to end."""
    clock_tolerance: float = 0.05
    start_within: float | None = None
    """How soon a due job must start (seconds); None where the load leaves no worker idle."""
    restart_within: float | None = None
    """How soon after its lease ended an orphan must start; None likewise."""
    server_ahead: float = 0.0
    """The server's clock less the wall clock of this machine."""


@dataclass(frozen=True, slots=True)
class Breach:
    """One invariant that did not hold, for one job (or process), and the facts."""

    invariant: str
    job: str
    facts: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.job}: {self.facts}"


Found = Iterator[tuple[str, str]]


def breaches(evidence: Evidence) -> list[Breach]:
    """Returns every breach of every invariant."""
    return [Breach(name, job, facts) for name, check in CHECKS.items() for job, facts in check(evidence)]


def reruns(executions: Sequence[Execution]) -> int:
    """Returns how many executions were not the first of their job."""
    return len(executions) - len({execution.job for execution in executions})


def _kept(evidence: Evidence) -> Found:
    """I1: what was acknowledged has ended, or can still be claimed."""
    for promise in evidence.enqueued:
        document = evidence.documents.get(promise.job)
        if document is None:
            yield promise.job, "its enqueue returned, and it is not stored"
        elif document["state"] in LIVE and not isinstance(document.get("available_at"), datetime):
            yield promise.job, f"it is {document['state']} and has no available_at: it can never be claimed"
        elif document["state"] in LIVE and evidence.drained:
            yield promise.job, f"it is still {document['state']} after the run"


def _no_needless_rerun(evidence: Evidence) -> Found:
    """I2: a job runs again only where its last run failed or was stopped, or something was done to its process."""
    for job, runs in by_job(evidence.executions).items():
        for first, second in pairwise(runs):
            if first.outcome in ("raised", "stopped"):
                continue
            if not _harmed(evidence, first, second.started):
                facts = f"run again by {second.pid} at {second.started:.3f}, though nothing had befallen {first.pid}"
                yield job, f"{facts}, which ran it from {first.started:.3f} to {_moment(first.ended)}"


def _one_run_per_claim(evidence: Evidence) -> Found:
    """I3: no two runs under one claim, and none beside another but where the lease of one was lost."""
    for job, runs in by_job(evidence.executions).items():
        for token, count in Counter(run.token for run in runs).items():
            if count > 1:
                yield job, f"{count} executions under the claim {token}"
        for first, second in pairwise(runs):
            overlap = first.ended is not None and first.ended > second.started
            if overlap and not _harmed(evidence, first, second.started):
                yield job, f"{second.pid} began at {second.started:.3f}, {first.pid} ended at {_moment(first.ended)}"


def _counted(evidence: Evidence) -> Found:
    """I4: a token per claim; a claim counts as the contract says, and so does what ends it; attempts have a limit."""
    yield from _claims_counted(evidence)
    claimed = {(change.job, _token(change.after)) for change in evidence.history if change.after is not None}
    for run in evidence.executions:
        if evidence.max_attempts and run.attempt > evidence.max_attempts:
            yield run.job, f"attempt {run.attempt} ran, {evidence.max_attempts} are allowed"
        if evidence.history and (run.job, run.token) not in claimed:
            yield run.job, f"{run.pid} ran it under {run.token}, a claim that the store never saw"


def _claims_counted(evidence: Evidence) -> Found:
    tokens: dict[str, set[str]] = defaultdict(set)
    for change in evidence.history:
        before, after = change.before, change.after
        if before is None or after is None:
            continue
        token = _token(after)
        if token != _token(before):
            if token in tokens[change.job]:
                yield change.job, f"claimed again under the token {token}"
            tokens[change.job].add(token)
            expected = (before["attempts"] + (before["lost"] == 0), before["lost"] + 1)
        elif before["state"] == "dequeued" and after["state"] == "enqueued":
            yield from _given_back(change.job, before, after)
            continue
        elif before["state"] == "dequeued" and after["state"] != "dequeued":
            expected = (before["attempts"], 0)
        else:
            continue
        if (after["attempts"], after["lost"]) != expected:
            counts = f"attempts and lost went from {_counts(before)} to {_counts(after)}"
            yield change.job, f"{before['state']} to {after['state']}: {counts}, not to {expected}"


def _given_back(job: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Found:
    """A release gives back what its claim took, a snooze the attempt."""
    released = (before["attempts"] - (before["lost"] == 1), before["lost"] - 1)
    snoozed = (before["attempts"] - 1, 0)
    if _counts(after) not in (released, snoozed):
        yield job, f"given back with attempts and lost {_counts(after)} after {_counts(before)}"


def _legal(evidence: Evidence) -> Found:
    """I5: only the edges of the state machine; what has ended stays as it is."""
    for change in evidence.history:
        before, after = change.before, change.after
        if before is None or after is None:
            continue
        was, now = before["state"], after["state"]
        if was in FINAL:
            yield change.job, f"it was {was}, and then written to: {now}"
        elif now != was and now not in _EDGES[was]:
            yield change.job, f"from {was} to {now}"
        elif was == "dequeued" and _token(after) != _token(before) and now != "dequeued":
            yield change.job, f"a claim left it {now}"
        if (now in LIVE) != ("available_at" in after):
            yield change.job, f"{now} {'without' if now in LIVE else 'with'} an available_at"


def _labels(evidence: Evidence) -> Found:
    """I6: at most one live job per task and label, at any moment."""
    holders: dict[tuple[str, str], str] = {}
    live: dict[str, tuple[str, str]] = {}
    for change in evidence.history:
        label = (change.after or {}).get("label")
        alive = change.after is not None and change.after["state"] in LIVE
        if alive and label is not None and change.after is not None:
            key = (change.after["name"], label)
            holder = holders.setdefault(key, change.job)
            live[change.job] = key
            if holder != change.job:
                yield change.job, f"live with the label {label!r} of {holder}, which is live"
        elif change.job in live and holders.get(live[change.job]) == change.job:
            del holders[live.pop(change.job)]
    held = Counter(
        (document["name"], document["label"])
        for document in evidence.documents.values()
        if document["state"] in LIVE and "label" in document
    )
    for (name, label), count in held.items():
        if count > 1:
            yield f"{name}/{label}", f"{count} live jobs are stored"


def _not_early(evidence: Evidence) -> Found:
    """I7: no job starts before its time by the server's clock."""
    runs = by_job(evidence.executions)
    for promise in evidence.enqueued:
        for run in runs.get(promise.job, [])[:1]:
            early = promise.due - (run.started_wall + evidence.server_ahead)
            if early > evidence.clock_tolerance:
                yield promise.job, f"started {early:.3f} s before its time by {run.pid}"


def _prompt(evidence: Evidence) -> Found:
    """I8: due jobs start soon where a worker is idle, and orphans soon after their lease has ended."""
    runs = by_job(evidence.executions)
    for promise in evidence.enqueued:
        first = runs.get(promise.job, [])[:1]
        if evidence.start_within is None or not promise.prompt or not first:
            continue
        late = first[0].started_wall + evidence.server_ahead - promise.due
        if late > evidence.start_within:
            yield promise.job, f"started {late:.3f} s after it was due, {evidence.start_within:g} s are allowed"
    if evidence.restart_within is None:
        return
    for job, executed in runs.items():
        for first_run, second in pairwise(executed):
            kills = [harm for harm in evidence.harms if harm.kind == "kill" and harm.pid == first_run.pid]
            late = min((second.started - harm.at for harm in kills), default=0.0) - evidence.lease
            if late > evidence.restart_within:
                yield job, f"{late:.3f} s from the end of its lease to its next start"


def _small(evidence: Evidence) -> Found:
    """I9: a document is at most 256 KiB more than its payload, and keeps 50 events."""
    payloads = {promise.job: promise.payload for promise in evidence.enqueued}
    for job, document in evidence.documents.items():
        size = len(bson.encode(document))
        if size > _LARGEST + payloads.get(job, 0):
            yield job, f"{size} bytes"
        if len(document.get("events", ())) > _MOST_EVENTS:
            yield job, f"{len(document['events'])} events"


def _clean(evidence: Evidence) -> Found:
    """I10: nothing is left behind, and memory grows by less than a tenth in an hour."""
    for leak in evidence.leaks:
        yield "-", leak
    samples: dict[int, list[Usage]] = defaultdict(list)
    for sample in evidence.usage:
        samples[sample.pid].append(sample)
    for pid, taken in samples.items():
        warm = [sample for sample in taken if sample.at >= taken[0].at + _WARM_AFTER]
        if not warm:
            continue
        first, last = warm[0], warm[-1]
        grown = (last.resident - first.resident) / first.resident
        if grown > _GROWTH * max((last.at - first.at) / _HOUR, 1.0):
            yield str(pid), f"its memory grew by {grown:.0%} in {last.at - first.at:.0f} s"


def _harmed(evidence: Evidence, run: Execution, before: float) -> bool:
    """Whether something was done to the process of `run` that can have cost it the lease before the moment `before`."""
    return any(
        harm.pid in (None, run.pid) and harm.at <= before and harm.until >= run.started for harm in evidence.harms
    )


def _token(document: Mapping[str, Any] | None) -> str:
    return str(((document or {}).get("claim") or {}).get("token"))


def _counts(document: Mapping[str, Any]) -> tuple[int, int]:
    return document["attempts"], document["lost"]


def _moment(moment: float | None) -> str:
    return "no end" if moment is None else f"{moment:.3f}"


CHECKS: Mapping[str, Callable[[Evidence], Found]] = {
    "I1": _kept,
    "I2": _no_needless_rerun,
    "I3": _one_run_per_claim,
    "I4": _counted,
    "I5": _legal,
    "I6": _labels,
    "I7": _not_early,
    "I8": _prompt,
    "I9": _small,
    "I10": _clean,
}
