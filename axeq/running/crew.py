"""The jobs in a pool's hands, from their claim until they are settled or lost."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime
from typing import Any

from axeq.attempts.desk import Desk
from axeq.attempts.executor import Attempt, Executor, Stop
from axeq.attempts.hooks import Hooks, Notices
from axeq.attempts.leases import LAPSED, Leases
from axeq.attempts.settler import Settler
from axeq.attempts.together import Member, Together, execute_together
from axeq.documents.record import Document, Record
from axeq.rules.lifecycle import Held, Holding
from axeq.rules.outcome import Flawed, Outcome, Released, fault, judge
from axeq.rules.settlement import Settled, Settlement, applied, settlement, settlements
from axeq.running.lane import Lane
from axeq.wire.store import Store
from axeq.words.errors import LeaseLost
from axeq.words.states import FINAL

__all__ = ["Crew"]

_LOGGER = logging.getLogger("axeq.pool")
_STOP_SECONDS = 5.0
_PUT_BACK = ("fail", "snooze")
"""Outcomes after which a job falls due again; one that is released is for others to come to."""


class Crew:
    """Runs claimed jobs in the lanes' workers and hands their outcomes to the settler.

    `lease` is in seconds. `wake` is called when a worker may want more jobs, `freed` when a job may be claimed
    here again that could not, `put_back` with the queue and the due time of a job that is to be tried again, `decided`
    with each outcome before it is written. `counts` adds up claims, outcomes by verb, lost leases and abandoned
    handlers. `hooks` are told of each job.
    """

    def __init__(
        self,
        store: Store,
        lanes: Mapping[str, Lane],
        leases: Leases,
        *,
        lease: float,
        counts: Counter[str],
        hooks: Hooks,
        wake: Callable[[], None],
        freed: Callable[[], None],
        put_back: Callable[[str, datetime], None],
        decided: Callable[[Record, Outcome], None] | None = None,
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._leases = leases
        self._lease = lease
        self._counts = counts
        self._hooks = hooks
        self._wake = wake
        self._freed = freed
        self._put_back = put_back
        self._decided = decided
        self._desk = Desk(store, leases, lease=lease, lost=self._lost, moved=self._moved)
        self._executor = Executor(store, hooks, self._desk, self._desk.heard)
        self._notices = Notices(store, hooks, self._executor.threads)
        self._settler = Settler(store, done=self._settled)
        self._attempts: dict[Any, Attempt] = {}
        self._tasks: dict[asyncio.Task[None], Attempt] = {}
        self._context = copy_context()
        self._closing = False

    def share(self, resources: Any) -> None:
        """Gives every handler from now on the pool's `resources`."""
        self._executor.resources = resources

    @property
    def ids(self) -> Collection[Any]:
        """The jobs that must not be claimed again here: held ones, and those whose abandoned handler still runs."""
        return self._attempts.keys()

    @property
    def busy(self) -> bool:
        """Whether a job is under way whose handler has not been abandoned."""
        return any(not attempt.abandoned for attempt in self._attempts.values())

    @property
    def watches_suspect(self) -> bool:
        """Whether a job runs that had lost a lease at least twice: another such job must not run beside it."""
        return any(attempt.record.lost > 2 for attempt in self._attempts.values())

    def take_on(self, records: Iterable[Record], *, since: float) -> None:
        """Takes on jobs whose leases began at `since` (monotonic), and starts those that a worker is free for."""
        records = [record for record in records if self._is_ours(record)]
        self._leases.hold((Held(record.id, record.token) for record in records), since=since)
        now = self._store.clock.earliest()
        for record in records:
            lane = self._lanes[record.name]
            attempt = self._attempts[record.id] = Attempt(record, lane.task)
            verdict = self._verdict(attempt, now)
            if verdict is None:
                lane.add(attempt)
            else:
                self._settle(attempt, verdict)
        for name in {record.name for record in records}:
            self._pump(self._lanes[name])

    def take_on_together(self, records: Iterable[Record], arrivals: Mapping[Any, datetime], *, since: float) -> None:
        """Takes on members of a group, whose leases began at `since` (monotonic), for one call of the handler.

        `arrivals` says when each came. One that is not to run ends by itself, and the others are called without it.
        """
        members: list[Member] = []
        records = [record for record in records if self._is_ours(record)]
        self._leases.hold((Held(record.id, record.token) for record in records), since=since)
        now = self._store.clock.earliest()
        for record in records:
            task = self._lanes[record.name].task
            member = self._attempts[record.id] = Member(record, task, arrivals[record.id])
            verdict = self._verdict(member, now)
            if verdict is None:
                members.append(member)
            else:
                self._settle(member, verdict)
        if members:
            lane = self._lanes[members[0].record.name]
            lane.ready.append(Together(members))
            self._pump(lane)

    def _verdict(self, attempt: Attempt, now: datetime) -> Outcome | None:
        """Counts and tells a claim, and returns how its job ends without running, None where it runs."""
        self._counts["dequeue"] += 1
        if self._hooks.claimed:
            self._hooks.tell("claimed", attempt.record)
        verdict: Outcome | None
        try:
            verdict = judge(attempt.record, attempt.task.limits, now)
        except Exception as error:  # noqa: BLE001 - the other jobs of the claim must not suffer for one
            verdict = self._mishap(attempt, error)
        return verdict

    def _is_ours(self, record: Record) -> bool:
        if record.name in self._lanes:
            return True
        _LOGGER.error("job %s was renamed while it was claimed: its lease lapses", record.id)
        return False

    def heard(self, holding: Holding) -> None:
        """Acts on what the lease thread learned."""
        for held in holding.lost:
            self.lose(held, "another worker has it, or it is gone")
        for held, reason in holding.cancelled.items():
            self.cancel(held.id, reason)

    def cancel(self, identity: Any, reason: str) -> None:
        """Tells the handler of a running job to stop, because somebody cancelled the job."""
        attempt = self._attempts.get(identity)
        if attempt is not None and attempt.ended_at is None:
            attempt.request_stop(Stop.CANCEL, reason)

    def lose(self, held: Held, reason: str) -> None:
        """Stops work on a job whose lease is lost; nothing of it is written."""
        attempt = self._attempts.get(held.id)
        if attempt is None or attempt.record.token != held.token or attempt.stop is Stop.LOST:
            return
        if attempt.ended_at is not None or attempt.abandoned:
            return  # its outcome is on the way: the fence decides
        self._leases.drop([held.id])
        self._tell_lost(attempt, reason)
        lane, whole = self._lanes[attempt.record.name], attempt.whole
        if whole in lane.ready:
            if not whole.drop(attempt):
                lane.ready.remove(whole)
            del self._attempts[held.id]
            return
        attempt.request_stop(Stop.LOST, reason)
        if whole.stop is not None:
            self._abandon_later(whole)

    def watch(self) -> None:
        """Stops work on jobs whose leases could not be confirmed in time, and gives back jobs that no worker here will
        come to soon, the last claimed first. Raises `RuntimeError` where the lease thread has failed.
        """
        if self._leases.failure is not None:
            raise RuntimeError("the lease thread has failed") from self._leases.failure
        for held in self._leases.lapsed():
            self.lose(held, LAPSED)
        for lane in self._lanes.values():
            for _ in range(lane.surplus):
                self._give_back(lane.ready.pop(), "claimed ahead, and jobs became slower")

    async def close(self, *, drain: float, hurry: asyncio.Event) -> None:
        """Gives back what has not started, lets handlers finish for `drain` seconds or until `hurry` is set,
        then stops and gives back the rest. A handler that will not stop is abandoned.
        """
        self._closing = True
        for lane in self._lanes.values():
            while lane.ready:
                self._give_back(lane.ready.popleft(), "shutdown")
        await self._finished(drain, hurry)
        for attempt in list(self._attempts.values()):
            if attempt.ended_at is None:
                attempt.request_stop(Stop.SHUTDOWN, "shutdown")
        await self._finished(_STOP_SECONDS, None)
        for attempt in list(self._attempts.values()):
            if attempt.ended_at is None and not attempt.abandoned:
                self._abandon(attempt.whole)
        await self._desk.close()
        await self._settler.drain()
        await self._hooks.close()
        await self._executor.close()

    def _give_back(self, attempt: Attempt, reason: str) -> None:
        if isinstance(attempt, Together):
            self._settle_together(attempt, dict.fromkeys(attempt.ids, Released(reason)))
        else:
            self._settle(attempt, Released(reason))

    async def _finished(self, timeout: float, hurry: asyncio.Event | None) -> None:
        """Waits until every handler has stopped, at most `timeout` seconds or until `hurry` is set."""
        running = {task for task, attempt in self._tasks.items() if not attempt.abandoned}
        if not running:
            return
        all_done = asyncio.gather(*running, return_exceptions=True)
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(asyncio.shield(all_done))]
        if hurry is not None:
            waits.append(asyncio.ensure_future(hurry.wait()))
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _pump(self, lane: Lane) -> None:
        """Starts what is ready in a lane; where a place is what it waits for, in others as well, in turn."""
        if lane.places is not None:
            for other in lane.places.in_turn() if not self._closing else ():
                self._start(other)
            return
        while not self._closing and self._start(lane):
            pass

    def _start(self, lane: Lane) -> bool:
        attempt = lane.start()
        if attempt is None:
            return False
        # A context of its own: what a handler sets must not reach the next job.
        task = asyncio.get_running_loop().create_task(self._work(lane, attempt), context=self._context.copy())
        self._tasks[task] = attempt
        task.add_done_callback(self._tasks.pop)
        return True

    async def _work(self, lane: Lane, attempt: Attempt) -> None:
        outcome: Any
        try:
            left, stop = attempt.first_end(self._store.clock)
            if not left:
                attempt.request_stop(stop)  # it was claimed in time, and no worker came to it in time
            attempt.timers.append(asyncio.get_running_loop().call_later(left, self._overran, attempt, stop))
            if isinstance(attempt, Together):
                outcome = await execute_together(self._executor, attempt)
            else:
                outcome = await self._executor.execute(attempt)
        except Exception as error:  # noqa: BLE001 - a worker that died unheard would hold its job for ever
            outcome = self._mishap(attempt, error)
        for timer in attempt.timers:
            timer.cancel()
        if attempt.abandoned:
            for entry in attempt.completed or ():
                self._account(self._attempts[entry.id], entry, Settled())
            for identity in attempt.ids:
                del self._attempts[identity]
            _LOGGER.warning("the abandoned handler of job %s has stopped at last", attempt.record.id)
            self._freed()
            return
        lane.finish(attempt)
        if attempt.completed is not None:
            for _ in attempt.completed:
                lane.settling()
            self._settled(attempt.completed, Settled())
        if isinstance(attempt, Together):
            self._settle_together(attempt, outcome)
        elif outcome is not None:
            self._settle(attempt, outcome)
        elif attempt.completed is None:
            del self._attempts[attempt.record.id]
        self._pump(lane)
        if lane.wanted or (lane.places is not None and lane.places.room):
            self._wake()

    def _mishap(self, attempt: Attempt, error: Exception) -> Any:
        """Returns what becomes of a job that failed outside of its handler; by id of jobs that were called together."""
        if isinstance(attempt, Together):
            left = (member for member in attempt.members if member.stop is not Stop.LOST)
            return {member.record.id: self._mishap(member, error) for member in left}
        record = attempt.record
        _LOGGER.error("job %s (%s) could not be run: %s, see its error", record.id, record.name, type(error).__name__)
        self._hooks.tell("error", error, record)
        return self._executor.conclude(attempt, fault(error, record, attempt.task.limits))

    def _lost(self, attempt: Attempt, reason: str) -> None:
        """Takes note of a lease that the attempt itself has found lost."""
        for part in attempt.called:
            self._tell_lost(part, reason)
        if attempt.running:
            self._abandon_later(attempt)

    def _moved(self, attempt: Attempt, seconds: float) -> None:
        """Moves the end of a running attempt to so many seconds from now."""
        if attempt.stop is not None or not attempt.running:
            return
        attempt.timeout = seconds
        left, stop = attempt.first_end(self._store.clock)
        attempt.timers[0].cancel()
        attempt.timers[0] = asyncio.get_running_loop().call_later(left, self._overran, attempt, stop)

    def _overran(self, attempt: Attempt, stop: Stop) -> None:
        attempt.request_stop(stop)
        self._abandon_later(attempt)

    def _abandon_later(self, attempt: Attempt) -> None:
        attempt.timers.append(asyncio.get_running_loop().call_later(self._lease, self._abandon, attempt))

    def _abandon(self, attempt: Attempt) -> None:
        """Gives up on a handler that will not stop: its lease lapses and its worker is replaced.

        More than one thing may ask for it, such as a timeout and a lost lease, or each job of a group: once is enough.
        """
        if attempt.abandoned:
            return
        attempt.abandon()
        self._counts["abandon"] += 1
        self._leases.drop(attempt.ids)
        lane = self._lanes[attempt.record.name]
        lane.finish(attempt)
        _LOGGER.error(
            "the handler of job %s (%s) does not stop: abandoned, its lease lapses",
            attempt.record.id,
            attempt.record.name,
        )
        self._pump(lane)
        self._wake()

    def _settle(self, attempt: Attempt, outcome: Outcome) -> None:
        attempt.ended_at = attempt.ended_at or self._store.clock.earliest()
        if self._decided is not None:
            self._decided(attempt.record, outcome)
        try:
            entry = self._entry(attempt, outcome)
        except Exception as error:  # noqa: BLE001 - to run it again would end in the same way
            kind = type(error).__name__
            _LOGGER.error("the outcome of job %s cannot be written (%s): cancelled", attempt.record.id, kind)
            entry = self._entry(attempt, Flawed(f"its outcome cannot be written: {kind}"))
        self._lanes[attempt.record.name].settling()
        self._settler.add(entry)

    def _settle_together(self, together: Together, outcomes: Mapping[Any, Outcome]) -> None:
        """Settles the jobs of a call, each by its own outcome; those without one are lost, or have completed."""
        now = self._store.clock.earliest()
        called: list[tuple[Record, Outcome]] = []
        uncalled: list[tuple[Record, Outcome]] = []
        for member in together.members:
            outcome = outcomes.get(member.record.id)
            if outcome is None:
                self._attempts.pop(member.record.id, None)
                continue
            member.ended_at = member.ended_at or now
            if isinstance(outcome, Released):
                outcome = replace(outcome, at=member.arrived_at)
            (uncalled if member.started_at is None else called).append((member.record, outcome))
            if self._decided is not None:
                self._decided(member.record, outcome)
        try:
            entries = self._entries(together, called) + settlements(uncalled, together.task.limits, self._store.clock)
        except Exception:  # noqa: BLE001 - that of each by itself is dealt with
            for record, outcome in called + uncalled:
                self._settle(self._attempts[record.id], outcome)
            return
        lane = self._lanes[together.task.name]
        for entry in entries:
            lane.settling()
            self._settler.add(entry)

    def _entries(self, together: Together, outcomes: Iterable[tuple[Record, Outcome]]) -> list[Settlement]:
        return settlements(
            outcomes,
            together.task.limits,
            self._store.clock,
            started_at=together.started_at,
            ended_at=together.ended_at,
            said=together.context._said if together.context is not None else None,
        )

    def _entry(self, attempt: Attempt, outcome: Outcome) -> Settlement:
        return settlement(
            attempt.record,
            outcome,
            attempt.task.limits,
            self._store.clock,
            started_at=attempt.started_at,
            ended_at=attempt.ended_at if attempt.started_at is not None else None,
            said=attempt.context._said if attempt.context is not None else None,
        )

    def _settled(self, batch: Sequence[Settlement], settled: Settled | None) -> None:
        self._leases.drop(entry.id for entry in batch)
        for entry in batch:
            attempt = self._attempts.pop(entry.id, None)
            if attempt is None:
                continue
            self._lanes[attempt.record.name].settled()
            if settled is not None:
                self._account(attempt, entry, settled)
        self._wake()

    def _account(self, attempt: Attempt, entry: Settlement, settled: Settled) -> None:
        """Counts and tells what became of one outcome that the store has answered."""
        if entry.id in settled.lost:
            self._tell_lost(attempt, f"too late to {entry.verb} it: another worker has it, or it is gone")
        elif entry.id in settled.refused:
            reason = settled.refused[entry.id]
            _LOGGER.error("cannot %s job %s, its lease lapses: %s", entry.verb, entry.id, reason)
        else:
            self._counts["cancel" if entry.id in settled.cancelled else entry.verb] += 1
            if entry.verb in _PUT_BACK and entry.id not in settled.cancelled:
                self._put_back(attempt.record.queue, entry.update["$set"]["available_at"])
            if self._hooks.done or attempt.task.notify is not None:
                self._tell_done(attempt, settled.cancelled.get(entry.id, entry.update))

    def _tell_done(self, attempt: Attempt, update: Document) -> None:
        record = Record(applied(attempt.record.document, update))
        if self._hooks.done:
            self._hooks.tell("done", record)
        if attempt.task.notify is not None and record.document["state"] in FINAL:
            self._notices.send(attempt.task, record)

    def _tell_lost(self, attempt: Attempt, reason: str) -> None:
        """Counts and tells the loss of a lease, which may be found more than once."""
        if attempt.lost_told:
            return
        attempt.lost_told, record = True, attempt.record
        self._counts["lost"] += 1
        _LOGGER.warning("%s", LeaseLost(record.id, reason))
        if self._hooks.lost:
            self._hooks.tell("lost", record)
