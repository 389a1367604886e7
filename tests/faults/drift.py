"""What became worse in the course of a soak: how long jobs wait, and what a process keeps. The bounds are those of a
machine on which others work, too: what passes them goes on growing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.faults.checker import Evidence, Usage
from tests.faults.ledger import Execution, by_job

__all__ = ["Drift", "drift"]

_SLOWER = 2.0
_PAUSE = {0.5: 4.0, 0.99: 8.0}
"""Seconds by which a quantile may vary with the faults that happen to strike: a lease, and a restart at the tail."""
_ENOUGH = 200
"""Jobs in a third: of fewer, the one in a hundred that waited longest is a single job."""
_GROWTH = 0.10
_SLACK = 8 * 1024 * 1024
_MORE_FILES = 16


class Drift:
    """The first third of a run beside its last, of `waits` (seconds, in the order of the due times) and of the `usage`
    of one process.
    """

    def __init__(self, waits: Sequence[float], usage: Sequence[Usage]) -> None:
        third = max(len(waits) // 3, 1)
        self.first, self.last = sorted(waits[:third]), sorted(waits[-third:])
        # In the first third of its life a process still reads its code and fills its pools.
        self.usage = usage[len(usage) // 3 :]

    def waits(self, share: float) -> tuple[float, float]:
        """Returns a quantile of the waits, in the first third and in the last."""
        return _quantile(self.first, share), _quantile(self.last, share)

    @property
    def memory(self) -> float:
        """The share by which the process has grown."""
        return self.usage[-1].resident / self.usage[0].resident - 1 if self.usage else 0.0

    @property
    def files(self) -> tuple[int, int]:
        """How many files it had open, when it was warm and at the end."""
        return (self.usage[0].files, self.usage[-1].files) if self.usage else (0, 0)

    def faults(self) -> Iterator[str]:
        """Tells what has become worse than it may."""
        judged = _PAUSE if len(self.first) >= _ENOUGH else {}
        for share, pause in judged.items():
            first, last = self.waits(share)
            if last > _SLOWER * first + pause:
                yield f"{share:.0%} of jobs started within {first:.2f} s at first, and within {last:.2f} s at last"
        if self.usage and self.usage[-1].resident > (1 + _GROWTH) * self.usage[0].resident + _SLACK:
            yield f"the memory of a process grew by {self.memory:.0%}"
        warm, late = self.files
        if late > warm + _MORE_FILES:
            yield f"a process had {warm} files open, and {late} at last"


def drift(evidence: Evidence, veteran: int) -> Drift:
    """Returns the drift in a run; `veteran` is a process that lived all through it.

    Jobs of a lesser priority are left out: they wait for as long as there are others, as they should. So is the time
    in which there was no server to be reached.
    """
    urgent = {job for job, document in evidence.documents.items() if document.get("priority", 0) <= 0}
    first = {job: runs[0] for job, runs in by_job(evidence.executions).items() if job in urgent}
    promises = sorted((promise for promise in evidence.enqueued if promise.job in first), key=lambda each: each.due)
    waits = [_waited(evidence, first[each.job], due=each.due) for each in promises]
    return Drift(waits, [sample for sample in evidence.usage if sample.pid == veteran])


def _waited(evidence: Evidence, run: Execution, *, due: float) -> float:
    wait = run.started_wall + evidence.server_ahead - due
    away = [(harm.at, harm.until) for harm in evidence.harms if harm.pid is None]
    return wait - sum(max(min(until, run.started) - max(at, run.started - wait), 0.0) for at, until in away)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0
