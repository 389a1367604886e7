"""axeq's rules against the reference, in whatever order hypothesis thinks of; every document is compared after each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from axeq.documents.failure import failure
from axeq.documents.record import Document, Record
from axeq.rules import lifecycle, manage
from axeq.rules.due import Candidate, due_page
from axeq.rules.enqueue import Draft, insert
from axeq.rules.outcome import Cancelled, Completed, Failed, Limits, Outcome, Released, Snoozed, judge
from axeq.rules.settlement import settle, settlement
from axeq.words.backoff import Exponential
from axeq.words.errors import JobNotFound, LabelTaken, StoreUnavailable
from axeq.words.states import Cancellation, Cause

from .model_reference import FINAL, LEGAL, Expected, Reference
from .model_store import DOUBT, Fault, InMemory, OnMongomock, Time, World

__all__ = ["Machine"]

LEASE = 30
LIMITS = Limits(max_attempts=2, max_lost=1, backoff=Exponential(5, 2, 60, jitter=0))
VERSIONS = {"resize": 1, "mail": 1}
OUTCOMES: dict[str, Outcome] = {
    "complete": Completed(),
    "complete with result": Completed({"path": "b.jpg"}),
    "fail": Failed(failure("ValueError", "bad"), delay=5.0),
    "cancel": Cancelled(Cause.HANDLER, "not wanted"),
    "snooze": Snoozed(delay=60.0),
    "release": Released("shutdown"),
}
WORKERS = st.sampled_from("ABC")
ANY = st.integers(0, 30)
FAULTS = st.none() | st.builds(Fault, st.sampled_from([0, 0, 1, 2]), executed=st.booleans(), sent=st.just(True))


@dataclass(frozen=True, slots=True)
class Hold:
    """What a worker believes to hold, rightly or not."""

    worker: str
    record: Record


class Machine(RuleBasedStateMachine):
    """The rules of hypothesis; `backend` is where axeq's own run."""

    backend: ClassVar[type[InMemory | OnMongomock]] = InMemory
    tried: ClassVar[Counter[Any]] = Counter()
    """How often each edge was gone, and each misfortune met, in all histories together."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.backend)
        self.reference = Reference()
        self.holds: list[Hold] = []
        self.seen: list[Candidate] = []
        self.before: dict[Any, Document] = {}
        self.stored = 0

    @property
    def time(self) -> Time:
        return self.world.time

    @rule(milliseconds=st.sampled_from([1, 2 * DOUBT, 1000, 5000, LEASE * 1000 - 1, LEASE * 1000, 120_000]))
    def tick(self, milliseconds: int) -> None:
        self.time.now += milliseconds

    @precondition(lambda self: len(self.reference.jobs) < 6)
    @rule(
        name=st.sampled_from(sorted(VERSIONS)),
        label=st.sampled_from([None, "one", "two"]),
        delay=st.sampled_from([0.0, 0.0, 0.0005, 10.0]),
        priority=st.integers(-1, 1),
        fault=FAULTS,
    )
    def enqueue(self, name: str, label: str | None, delay: float, priority: int, fault: Fault | None) -> None:
        holder, began = self.reference.holder(name, label), self.time.now
        self.stored += 1
        draft = Draft(name, 1, "default", {}, id=f"job {self.stored}", label=label, delay=delay, priority=priority)
        try:
            document = self.world.run(insert(draft, self.time), fault).document  # type: ignore[arg-type]
        except LabelTaken as taken:
            assert holder is not None, "a label is taken that no live job has"
            assert taken.existing_id == holder  # noqa: PT017
            return
        except StoreUnavailable:
            assert holder is not None, "a free label is looked for, or an insert is not sent again"
            return
        assert holder is None, f"a label is given out twice: {label}"
        due = self.time.milliseconds(document["available_at"])
        assert due == (began - DOUBT if not delay else began + DOUBT + max(round(delay * 1000), 1))
        self.reference.jobs[draft.id] = Expected(name, due, label, priority)

    @rule()
    def look(self) -> None:
        """Reads the board, which is then as old as it gets."""
        page = due_page("default", VERSIONS, self.time.earliest(), limit=100)
        self.seen = self.world.run(page)
        due = self.reference.due(self.time.now - DOUBT)
        assert {candidate.id for candidate in self.seen} == set(due)
        order = [(candidate.priority, self.time.milliseconds(candidate.available_at)) for candidate in self.seen]
        assert order == [(self.reference.jobs[each].priority, self.reference.jobs[each].due) for each in due]
        assert all(candidate.lost == self.reference.jobs[candidate.id].lost for candidate in self.seen)

    @precondition(lambda self: any(job.live for job in self.reference.jobs.values()))
    @rule(early=st.sampled_from([0, 0, 0, 1]))
    def wait_for_the_next(self, early: int) -> None:
        """Lets time pass until a job falls due, or a millisecond less."""
        due = min(job.due for job in self.reference.jobs.values() if job.live)
        self.time.now = max(self.time.now, due + DOUBT - early)

    @rule(worker=WORKERS, outcome=st.sampled_from([None, *sorted(OUTCOMES)]), fault=FAULTS)
    def work(self, worker: str, outcome: str | None, fault: Fault | None) -> None:
        """Takes the first job that is due and settles it, or dies of it."""
        self.look()
        if self.seen:
            self.claim_one(worker, 0, None)
            mine = [hold for hold in self.holds if hold.record.id == self.seen[0].id and self._owns(hold)]
            if outcome is not None and mine:
                self._settle(mine, [OUTCOMES[outcome]], fault)

    @precondition(lambda self: self.seen)
    @rule(worker=WORKERS, which=ANY, fault=FAULTS)
    def claim_one(self, worker: str, which: int, fault: Fault | None) -> None:
        candidate = self.seen[which % len(self.seen)]
        job = self.reference.jobs.get(candidate.id)
        ready = job is not None and bool(job.lost) == bool(candidate.lost) and self._claimable(job)
        claim = lifecycle.claim_one(candidate, self.time, worker=worker, lease=LEASE, patience=10)  # type: ignore[arg-type]
        self._claim(worker, claim, {candidate.id} if ready else set(), fault)

    @precondition(lambda self: self.seen)
    @rule(worker=WORKERS, fault=FAULTS)
    def claim_many(self, worker: str, fault: Fault | None) -> None:
        ids = [candidate.id for candidate in self.seen if not candidate.lost]
        ready = {
            each for each in ids if (job := self.reference.jobs.get(each)) and not job.lost and self._claimable(job)
        }
        claim = lifecycle.claim_many(ids, self.time, worker=worker, lease=LEASE, patience=10)  # type: ignore[arg-type]
        self._claim(worker, claim, ready, fault)

    def _claimable(self, job: Expected) -> bool:
        return job.live and job.due <= self.time.now - DOUBT

    def _claim(self, worker: str, claim: Any, ready: set[Any], fault: Fault | None) -> None:
        began = self.time.now
        if fault is not None and fault.position == 0 and not fault.executed:
            ready = set()
        records: list[Record] = self.world.run(claim, fault)
        self.tried["unanswered claim"] += fault is not None and bool(records)
        self.tried["stale claim"] += not ready
        assert {record.id for record in records} == ready
        assert len(records) == len(ready)
        assert len({record.token for record in records}) <= 1
        for record in records:
            self._hold(worker, record, began)
        self.every_job_is_as_it_must_be()
        for hold in self.holds[len(self.holds) - len(records) :]:
            self._judge(hold)

    def _hold(self, worker: str, record: Record, began: int) -> None:
        assert record.available_at is not None
        until = self.time.milliseconds(record.available_at)
        assert began + DOUBT + LEASE * 1000 <= until <= self.time.now + DOUBT + LEASE * 1000
        job = self.reference.jobs[record.id]
        job.claimed(record.token, until)
        assert record.worker == worker
        self.holds.append(Hold(worker, record))

    def _judge(self, hold: Hold) -> None:
        job, record = self.reference.jobs[hold.record.id], hold.record
        verdict = judge(record, LIMITS, self.time.earliest())
        hopeless = job.cancel or job.lost > 2 or job.attempts > 2
        assert (verdict is not None) == hopeless
        if verdict is not None:
            self.tried[verdict.cause] += 1
            assert (verdict.cause is Cause.REQUESTED) == job.cancel
            self._settle([hold], [verdict], None)

    @rule(worker=WORKERS, fault=FAULTS)
    def extend(self, worker: str, fault: Fault | None) -> None:
        held = [hold for hold in self.holds if hold.worker == worker]
        if not held:
            return
        mine = [hold for hold in held if self._owns(hold)]
        tokens = [lifecycle.Held(hold.record.id, hold.record.token) for hold in held]
        try:
            holding = self.world.run(lifecycle.extend(tokens, self.time, lease=LEASE), fault)  # type: ignore[arg-type]
        except StoreUnavailable:
            if fault is not None and fault.position == 0 and not fault.executed:
                mine = []
        else:
            assert {(job.id, job.token) for job in holding.lost} == {
                (hold.record.id, hold.record.token) for hold in held if hold not in mine
            }
            asked = {hold.record.id for hold in mine if self.reference.jobs[hold.record.id].cancel}
            assert {job.id for job in holding.cancelled} == asked
        for hold in mine:
            job = self.reference.jobs[hold.record.id]
            job.due = max(job.due, self.time.now + DOUBT + LEASE * 1000)

    def _owns(self, hold: Hold) -> bool:
        job = self.reference.jobs.get(hold.record.id)
        return job is not None and job.state == "dequeued" and job.token == hold.record.token

    @precondition(lambda self: self.holds)
    @rule(which=ANY, outcome=st.sampled_from(sorted(OUTCOMES)), fault=FAULTS)
    def settle_one(self, which: int, outcome: str, fault: Fault | None) -> None:
        self._settle([self.holds[which % len(self.holds)]], [OUTCOMES[outcome]], fault)

    @precondition(lambda self: self.holds)
    @rule(worker=WORKERS, outcomes=st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=1, max_size=4), fault=FAULTS)
    def settle_batch(self, worker: str, outcomes: list[str], fault: Fault | None) -> None:
        """Settles what a worker holds, each job once: a pool never holds a job twice."""
        held = list({hold.record.id: hold for hold in self.holds if hold.worker == worker}.values())
        if held:
            chosen = [OUTCOMES[outcomes[position % len(outcomes)]] for position in range(len(held))]
            self._settle(held, chosen, fault)

    def _settle(self, held: list[Hold], outcomes: list[Outcome], fault: Fault | None) -> None:
        now = self.time.earliest()
        batch = [
            settlement(hold.record, outcome, LIMITS, self.time, started_at=now, ended_at=now)  # type: ignore[arg-type]
            for hold, outcome in zip(held, outcomes, strict=True)
        ]
        began = self.time.now
        settled = self.world.run(settle(batch, self.time), fault)  # type: ignore[arg-type]
        lost, cancelled = set(), set()
        for hold, outcome in zip(held, outcomes, strict=True):
            self.holds.remove(hold)
            if self._owns(hold):
                cancelled |= self._ended(hold.record.id, outcome, began)
            elif not self._looks_written(hold, outcome):
                lost.add(hold.record.id)
        self.tried["late outcome"] += len(lost)
        self.tried["outcome that a cancel took the place of"] += len(cancelled)
        assert set(settled.lost) == lost
        assert set(settled.cancelled) == cancelled

    def _ended(self, identity: Any, outcome: Outcome, began: int) -> set[Any]:
        """Applies an outcome to the reference and returns the job's id where a cancel took its place."""
        job = self.reference.jobs[identity]
        if isinstance(outcome, Completed):
            job.ended("completed")
            return set()
        job.logged()
        if isinstance(outcome, Cancelled) or job.cancel:
            job.ended("cancelled")
            return set() if isinstance(outcome, Cancelled) else {identity}
        if isinstance(outcome, Released):
            job.attempts -= job.charged
            job.lost -= 1
            job.back("enqueued", began - DOUBT)
            return set()
        job.lost = 0
        job.back("failed" if isinstance(outcome, Failed) else "enqueued", began + DOUBT + round(outcome.delay * 1000))
        if isinstance(outcome, Snoozed):
            job.attempts -= 1
        return set()

    def _looks_written(self, hold: Hold, outcome: Outcome) -> bool:
        """Whether the job has come under this claim to where the outcome would have taken it, by hand or by itself."""
        targets = {Completed: "completed", Failed: "failed", Cancelled: "cancelled"}
        job = self.reference.jobs.get(hold.record.id)
        target = targets.get(type(outcome), "enqueued")
        return job is not None and job.token == hold.record.token and job.state == target

    @rule(worker=WORKERS)
    def crash(self, worker: str) -> None:
        self.holds = [hold for hold in self.holds if hold.worker != worker]

    @precondition(lambda self: self.reference.jobs)
    @rule(which=ANY, fault=FAULTS)
    def cancel(self, which: int, fault: Fault | None) -> None:
        identity, job = self._pick(which)
        lapsed = job.state == "dequeued" and job.due <= self.time.now - DOUBT
        achieved = {True: Cancellation.CANCELLED, False: Cancellation.REQUESTED}[job.state != "dequeued" or lapsed]
        try:
            result = self.world.run(manage.cancel(identity, self.time, reason="changed"), fault)  # type: ignore[arg-type]
        except StoreUnavailable:
            # Read, end it, else ask its worker: what was lost is the reply to one of these.
            writes = 1 if achieved is Cancellation.CANCELLED else 2
            assert fault is not None
            if job.state in FINAL or fault.position < writes or not fault.executed:
                return
        else:
            assert result == (Cancellation.TOO_LATE if job.state in FINAL else achieved)
        if job.state in FINAL:
            return
        if achieved is Cancellation.CANCELLED:
            job.ended("cancelled")
            job.logged()
        else:
            job.cancel = True

    @precondition(lambda self: self.reference.jobs)
    @rule(which=ANY, fault=FAULTS)
    def retry(self, which: int, fault: Fault | None) -> None:
        failed = [identity for identity, job in self.reference.jobs.items() if job.state == "failed"]
        identity, job = self._pick(which)
        if failed and which % 2:  # few are failed at a time, and what is tried often is claimed before
            identity = failed[which % len(failed)]
            job = self.reference.jobs[identity]
        holder = self.reference.holder(job.name, job.label)
        possible = job.state in ("failed", "completed", "cancelled")
        free = holder in (None, identity)
        try:
            self.world.run(manage.retry(identity, self.time), fault)  # type: ignore[arg-type]
        except StoreUnavailable:
            assert fault is not None
            if fault.position != 1 or not fault.executed:
                return
        except JobNotFound:
            assert not possible
        except LabelTaken:
            assert possible
            assert not free
        else:
            assert possible
            assert free
        if possible and free:
            job.attempts = 0
            job.ended("enqueued")
            job.back("enqueued", self.time.now - DOUBT)
            job.logged()

    @precondition(lambda self: self.reference.jobs)
    @rule(which=ANY)
    def remove(self, which: int) -> None:
        identity, _ = self._pick(which)
        assert self.world.run(manage.remove(identity)) is True
        assert self.world.run(manage.remove(identity)) is False
        del self.reference.jobs[identity]

    def _pick(self, which: int) -> tuple[Any, Expected]:
        return list(self.reference.jobs.items())[which % len(self.reference.jobs)]

    @invariant()
    def every_job_is_as_it_must_be(self) -> None:
        documents = self.world.documents()
        assert documents.keys() == self.reference.jobs.keys()
        for identity, job in self.reference.jobs.items():
            self._compare(documents[identity], job)
            self._legal(self.before.get(identity), documents[identity])
        held = [(job.name, job.label) for job in self.reference.jobs.values() if job.live and job.label]
        assert len(held) == len(set(held)), "two live jobs of a task have one label"
        self.before = documents

    def _compare(self, document: Document, job: Expected) -> None:
        record = Record(document)
        counts = (record.state.value, record.attempts, record.lost, record.token, record.cancel_requested)
        assert counts == (job.state, job.attempts, job.lost, job.token, job.cancel)
        assert record.available_at == (self.time.moment(job.due) if job.live else None)
        assert (record.finished_at is None) is job.live
        assert (record.expire_at is None) is job.live
        assert (record.cause is not None) is (job.state == "cancelled")
        assert len(record.events) == job.events <= 50
        assert 0 <= record.attempts <= LIMITS.max_attempts + 1
        assert all(isinstance(entry["at"], datetime) for entry in record.events)

    def _legal(self, before: Document | None, after: Document) -> None:
        if before is None:
            return
        states = (before["state"], after["state"])
        self.tried[states] += 1
        assert states[0] == states[1] or states in LEGAL, f"{states[0]} never leads to {states[1]}"
        assert before["state"] not in FINAL or states[0] != states[1] or before == after, "an ended job is changed"
