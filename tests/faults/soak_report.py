"""The figures of a soak, from its evidence, and how they are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.faults.checker import Breach, Evidence
from tests.faults.drift import Drift, drift
from tests.faults.ledger import Execution, by_job

__all__ = ["PART", "Course", "Figures", "figures", "render"]

PART = "soak"
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Course:
    """How a soak was run: on which server, with which seed, how long it took, how many processes of how many workers
    ran at a time, which faults its proxy injected, which enqueues were refused, and the process never killed.
    """

    server: str
    seed: int
    seconds: float
    processes: int
    workers: int
    faults: Mapping[str, int]
    refused: Mapping[str, int]
    veteran: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What a soak came to."""

    course: Course
    enqueued: int
    completed: int
    cancelled: int
    harms: Mapping[str, int]
    lost: int
    repeated: int
    allowed: int
    drift: Drift
    breaches: Sequence[Breach]


def figures(evidence: Evidence, course: Course, *, found: Sequence[Breach]) -> Figures:
    """Returns the figures behind the evidence; `found` are its breaches, to which come those of the soak itself."""
    states = Counter(str(document["state"]) for document in evidence.documents.values())
    repeated, allowed = len(_again(evidence.executions)), _allowed(evidence, course)
    course_of_time = drift(evidence, course.veteran)
    breaches = [*found, *(Breach("F60", "-", fault) for fault in course_of_time.faults())]
    if repeated > allowed:
        breaches.append(Breach("F60", "-", f"{repeated} runs were repeated, {allowed} can have been under way"))
    return Figures(
        course=course,
        enqueued=len(evidence.enqueued),
        completed=states["completed"],
        cancelled=states["cancelled"],
        harms=Counter(harm.kind for harm in evidence.harms),
        lost=len({breach.job for breach in found if breach.invariant == "I1"}),
        repeated=repeated,
        allowed=allowed,
        drift=course_of_time,
        breaches=breaches,
    )


def render(result: Figures) -> str:
    """Returns the figures as Markdown."""
    course, drifted = result.course, result.drift
    rows = [
        ("server; processes, workers in each", f"{course.server}; {course.processes}, {course.workers}"),
        ("seed; seconds, the drain included", f"{course.seed}; {course.seconds:.0f}"),
        ("jobs acknowledged, completed, cancelled", f"{result.enqueued}, {result.completed}, {result.cancelled}"),
        ("acknowledged and completed a second", _rates(result)),
        ("enqueues refused with an error, of which nothing is promised", _counted(course.refused)),
        ("harm done to processes and to the server", _counted(result.harms)),
        ("faults of the network and of replies", _counted(course.faults)),
        ("acknowledged jobs lost", str(result.lost)),
        ("runs repeated, and how many may be", f"{result.repeated}, {result.allowed}"),
        ("from due to start, half of the urgent jobs: at first, at last", _seconds(drifted.waits(0.5))),
        ("from due to start, 99 of 100 urgent jobs: at first, at last", _seconds(drifted.waits(0.99))),
        ("memory of the process that was never killed", f"{drifted.memory:+.1%}"),
        ("its open files, when warm and at last", "{}, {}".format(*drifted.files)),
        ("breaches", str(len(result.breaches))),
    ]
    table = ["| what | figure |", "| --- | --- |", *(f"| {what} | {figure} |" for what, figure in rows)]
    return "\n".join([*table, *(f"\n- {breach}" for breach in result.breaches[:_LISTED])])


def _again(executions: Sequence[Execution]) -> list[str]:
    """Returns the jobs of runs that followed one that had not failed or been stopped."""
    return [
        job
        for job, runs in by_job(executions).items()
        for first, _ in pairwise(runs)
        if first.outcome not in ("raised", "stopped")
    ]


def _allowed(evidence: Evidence, course: Course) -> int:
    """Returns how many runs can have been under way where harm was done: each worker's one."""
    return sum(course.workers * (course.processes if harm.pid is None else 1) for harm in evidence.harms)


def _rates(result: Figures) -> str:
    return f"{result.enqueued / result.course.seconds:.0f}, {result.completed / result.course.seconds:.0f}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count) or "none"


def _seconds(pair: tuple[float, float]) -> str:
    return f"{pair[0] * 1000:.0f} ms, {pair[1] * 1000:.0f} ms"
