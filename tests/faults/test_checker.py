"""The checker reports a breach of each invariant, and nothing where all of them hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.checker import CHECKS, Enqueued, Evidence, Harm, Usage, breaches, reruns
from tests.faults.history import Change, changed
from tests.faults.ledger import Execution, Ledger, executions

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
DUE = NOON.timestamp()
RUN = Execution("job", "t1", 1, pid=10, started=100.0, started_wall=DUE, ended=101.0, outcome="done")


def document(state: str, *, token: str | None = None, attempts: int = 0, lost: int = 0, **fields: Any) -> Any:
    live = {"available_at": NOON} if state in ("enqueued", "dequeued", "failed") else {}
    claim = {"claim": {"token": token}} if token else {}
    return {"name": "work", "state": state, "attempts": attempts, "lost": lost, **live, **claim, **fields}


WAITING = document("enqueued")
CLAIMED = document("dequeued", token="t1", attempts=1, lost=1)
COMPLETED = document("completed", token="t1", attempts=1)
CLEAN = Evidence(
    documents={"job": COMPLETED},
    executions=[RUN],
    enqueued=[Enqueued("job", due=DUE)],
    history=[Change("job", None, WAITING), Change("job", WAITING, CLAIMED), Change("job", CLAIMED, COMPLETED)],
    lease=3.0,
    max_attempts=3,
    start_within=2.0,
    restart_within=2.0,
)


def again(**changes: Any) -> list[Execution]:
    return [RUN, replace(RUN, **{"token": "t2", "pid": 11, "started": 110.0, "ended": 111.0, **changes})]


def labelled(job: str, state: str) -> Change:
    return Change(job, None, document(state, label="only"))


BREACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "an acknowledged job is not stored": ("I1", {"documents": {}}),
    "a live job cannot be claimed": ("I1", {"documents": {"job": {**WAITING, "available_at": None}}}),
    "a job is left over": ("I1", {"documents": {"job": WAITING}}),
    "a job runs twice for nothing": ("I2", {"executions": again(), "history": ()}),
    "two runs under one claim": ("I3", {"executions": again(token="t1")}),
    "two runs at a time": ("I3", {"executions": again(started=100.5), "history": ()}),
    "a run without a claim": ("I4", {"executions": [replace(RUN, token="t9")]}),
    "an attempt beyond the limit": ("I4", {"executions": [replace(RUN, attempt=4)]}),
    "a claim that is not counted": ("I4", {"history": [Change("job", WAITING, {**CLAIMED, "attempts": 0})]}),
    "a lost lease that is charged": (
        "I4",
        {"history": [Change("job", CLAIMED, document("dequeued", token="t2", attempts=2, lost=2))]},
    ),
    "a release that keeps the attempt": (
        "I4",
        {"history": [Change("job", CLAIMED, document("enqueued", token="t1", attempts=1))]},
    ),
    "a token used twice": ("I4", {"history": [Change("job", WAITING, CLAIMED), Change("job", WAITING, CLAIMED)]}),
    "an ended job is written to": ("I5", {"history": [Change("job", COMPLETED, COMPLETED)]}),
    "an edge that is none": ("I5", {"history": [Change("job", WAITING, COMPLETED)]}),
    "an ended job that is due": ("I5", {"history": [Change("job", CLAIMED, {**COMPLETED, "available_at": NOON})]}),
    "a label is held twice": ("I6", {"history": [labelled("a", "enqueued"), labelled("b", "failed")]}),
    "a label is stored twice": (
        "I6",
        {"documents": {"job": COMPLETED, **{each: document("enqueued", label="only") for each in "ab"}}},
    ),
    "a start before its time": ("I7", {"enqueued": [Enqueued("job", due=DUE + 1)]}),
    "a start long after its time": ("I8", {"enqueued": [Enqueued("job", due=DUE - 3)]}),
    "an orphan that waits": (
        "I8",
        {"executions": again(started=130.0, ended=131.0), "harms": [Harm("kill", 10, 100.5, float("inf"))]},
    ),
    "a document that grows": ("I9", {"documents": {"job": {**COMPLETED, "error": "x" * 300_000}}}),
    "too many events": ("I9", {"documents": {"job": {**COMPLETED, "events": [{}] * 51}}}),
    "a thread is left": ("I10", {"leaks": ["thread axeq-leases"]}),
    "memory that grows": ("I10", {"usage": [Usage(10, 0.0, 900), Usage(10, 40.0, 1000), Usage(10, 90.0, 1200)]}),
}


@pytest.mark.parametrize("case", BREACHES)
def test_the_checker_reports(case: str) -> None:
    invariant, facts = BREACHES[case]

    found = breaches(replace(CLEAN, **facts))

    assert invariant in {breach.invariant for breach in found}, found
    assert all(str(breach).startswith(f"{breach.invariant} {breach.job}: ") for breach in found)


def test_every_invariant_is_shown_to_be_reported() -> None:
    assert {invariant for invariant, _ in BREACHES.values()} == CHECKS.keys()


def test_a_run_in_which_all_holds_has_no_breach() -> None:
    assert breaches(CLEAN) == []


def test_a_second_run_after_a_kill_is_no_breach_and_is_counted() -> None:
    second = document("dequeued", token="t2", attempts=1, lost=2)
    evidence = replace(
        CLEAN,
        executions=again(started=105.0, ended=106.0),
        harms=[Harm("kill", 10, 101.5, float("inf"))],
        history=[Change("job", WAITING, CLAIMED), Change("job", CLAIMED, second)],
    )

    assert breaches(evidence) == []
    assert reruns(evidence.executions) == 1


def test_a_kill_of_another_process_excuses_nothing() -> None:
    evidence = replace(CLEAN, executions=again(), history=(), harms=[Harm("kill", 99, 101.5, float("inf"))])

    assert [breach.invariant for breach in breaches(evidence)] == ["I2"]


def test_a_label_may_go_from_one_job_to_the_next() -> None:
    ended = Change("a", document("dequeued", label="only"), document("completed", label="only"))

    history = [labelled("a", "dequeued"), ended, labelled("b", "enqueued")]

    assert breaches(replace(CLEAN, history=history, executions=())) == []


def test_the_ledger_keeps_what_a_killed_process_wrote(tmp_path: Path) -> None:
    record: Any = SimpleNamespace(id="job", token="t1", attempts=1)
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    first.start(record)  # and was killed
    second.start(SimpleNamespace(id="job", token="t2", attempts=1))
    second.end(SimpleNamespace(id="job", token="t2", attempts=1), "raised")
    second.close()

    runs = executions(tmp_path)
    first.close()

    assert [(run.token, run.outcome) for run in runs] == [("t1", None), ("t2", "raised")]


def test_a_change_event_is_applied_along_its_paths() -> None:
    before = {"claim": {"token": "t1", "worker": "a"}, "events": [1], "available_at": NOON}

    after = changed(
        before, {"updatedFields": {"claim.token": "t2", "events.1": 2, "lost": 1}, "removedFields": ["available_at"]}
    )

    assert after == {"claim": {"token": "t2", "worker": "a"}, "events": [1, 2], "lost": 1}
    assert before["claim"]["token"] == "t1"
