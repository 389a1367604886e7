"""The figures of a soak, from its evidence, and how they are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.faults.checker import Breach, Evidence
from tests.faults.ledger import Execution, by_job

__all__ = ["BEGIN", "END", "Figures", "figures", "render", "write"]

BEGIN = "<!-- soak: begin -->"
END = "<!-- soak: end -->"
_HEADING = "# Reliability\n\nWhat a soak with seeded faults has shown. `make chaos SECONDS=300 SEED=1` repeats it.\n"
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Figures:
    """What a soak came to. Times in seconds, memory as the share by which it grew."""

    seed: int
    seconds: float
    enqueued: int
    completed: int
    cancelled: int
    refused: Mapping[str, int]
    harms: Mapping[str, int]
    faults: Mapping[str, int]
    lost: int
    reruns: int
    excused: int
    latency: tuple[float, float]
    latency_late: tuple[float, float]
    memory: float
    breaches: Sequence[Breach]

    @property
    def rate(self) -> float:
        return self.completed / self.seconds


def figures(
    evidence: Evidence,
    *,
    found: Sequence[Breach],
    seed: int,
    seconds: float,
    faults: Mapping[str, int],
    refused: Mapping[str, int],
    veteran: int,
) -> Figures:
    """Returns the figures behind the evidence; `found` are its breaches, `veteran` the process never killed."""
    states = Counter(str(document["state"]) for document in evidence.documents.values())
    again = _again(evidence.executions)
    needless = {breach.job for breach in found if breach.invariant == "I2"}
    late = _latencies(evidence)
    third = max(len(late) // 3, 1)
    return Figures(
        seed=seed,
        seconds=seconds,
        enqueued=len(evidence.enqueued),
        completed=states["completed"],
        cancelled=states["cancelled"],
        refused=dict(refused),
        harms=Counter(harm.kind for harm in evidence.harms),
        faults={kind: count for kind, count in sorted(faults.items()) if count},
        lost=len({breach.job for breach in found if breach.invariant == "I1"}),
        reruns=len(again),
        excused=len([job for job in again if job not in needless]),
        latency=_quantiles(late[:third]),
        latency_late=_quantiles(late[-third:]),
        memory=_growth(evidence, veteran),
        breaches=found,
    )


def render(result: Figures) -> str:
    """Returns the figures as Markdown."""
    rows = [
        ("seed, seconds", f"{result.seed}, {result.seconds:.0f}"),
        ("jobs acknowledged, completed, cancelled", f"{result.enqueued}, {result.completed}, {result.cancelled}"),
        ("completed a second", f"{result.rate:.0f}"),
        ("enqueues refused with an error", _counted(result.refused)),
        ("processes harmed", _counted(result.harms)),
        ("faults injected", _counted(result.faults)),
        ("acknowledged jobs lost", str(result.lost)),
        ("runs repeated; of those, after harm to their process", f"{result.reruns}; {result.excused}"),
        ("due to start, p50 and p99, first third", _seconds(result.latency)),
        ("due to start, p50 and p99, last third", _seconds(result.latency_late)),
        ("memory of the process that was never killed", f"{result.memory:+.1%}"),
        ("breaches of an invariant", str(len(result.breaches))),
    ]
    table = ["| what | figure |", "| --- | --- |", *(f"| {what} | {figure} |" for what, figure in rows)]
    return "\n".join([*table, *(f"\n- {breach}" for breach in result.breaches[:_LISTED])])


def write(path: Path, text: str) -> None:
    """Puts `text` between the two markers of a file, which is made where it is not there."""
    before = path.read_text() if path.exists() else _HEADING
    if BEGIN not in before:
        before = f"{before.rstrip()}\n\n{BEGIN}\n{END}\n"
    head, _, rest = before.partition(BEGIN)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


def _again(executions: Sequence[Execution]) -> list[str]:
    """Returns the jobs of runs that followed one that had not failed or been stopped."""
    return [
        job
        for job, runs in by_job(executions).items()
        for first, _ in pairwise(runs)
        if first.outcome not in ("raised", "stopped")
    ]


def _latencies(evidence: Evidence) -> list[float]:
    """Returns how long each job waited for its first start once it was due, in the order of the due times."""
    first = {job: runs[0] for job, runs in by_job(evidence.executions).items()}
    promises = sorted((promise for promise in evidence.enqueued if promise.job in first), key=lambda each: each.due)
    return [first[each.job].started_wall + evidence.server_ahead - each.due for each in promises]


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values) or [0.0]
    return ordered[len(ordered) // 2], ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]


def _growth(evidence: Evidence, pid: int) -> float:
    """Returns the growth from the second third of the run on: before, caches fill and code is read."""
    samples = [sample.resident for sample in evidence.usage if sample.pid == pid]
    if len(samples) < 3:
        return 0.0
    return samples[-1] / samples[len(samples) // 3] - 1


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _seconds(pair: tuple[float, float]) -> str:
    return f"{pair[0] * 1000:.0f} ms, {pair[1] * 1000:.0f} ms"
