"""The producer's face in sync code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Unpack, overload

from axeq.documents.model import M, Payload, R, bind
from axeq.documents.record import identity
from axeq.faces.callback import Build, Callback, SessionOf, When
from axeq.faces.face import Face
from axeq.faces.handle import Job, identities
from axeq.faces.options import (
    BatchOptions,
    CallbackOptions,
    EnqueueOptions,
    StateOrName,
    counted_to,
    page,
    payload_values,
    task_name,
    wanted,
)
from axeq.rules import batch, indexes
from axeq.rules.enqueue import Draft
from axeq.words.duration import Duration, limit
from axeq.words.errors import AxeqError
from axeq.words.late import Late
from axeq.words.states import Cancellation, State

if TYPE_CHECKING:
    from axeq.faces.consumer import Consumer
    from axeq.faces.lease import Lease
    from axeq.faces.taker import PullOptions
    from axeq.rules import manage, waiting
else:
    manage, waiting = Late("axeq.rules.manage"), Late("axeq.rules.waiting")

__all__ = ["Queue"]


class Queue(Face):
    """Where sync code puts jobs and looks after them.

    `name` is the queue's, default "default". `max_payload` is in bytes of BSON, default 256 KiB, at most 8 MiB.
    """

    @overload
    def enqueue(
        self,
        payload: Payload[M, R],
        **options: Unpack[EnqueueOptions],
    ) -> Job[M, R]: ...
    @overload
    def enqueue(
        self,
        payload: M,
        *,
        name: str,
        **options: Unpack[EnqueueOptions],
    ) -> Job[M, Any]: ...
    def enqueue(self, payload: Any, *, name: str | None = None, **options: Unpack[EnqueueOptions]) -> Job[Any, Any]:
        """Stores a job and returns its handle; once this has returned, the job is never lost.

        `payload` is a `Model`, or any pydantic model with a `name`. `delay` (`timedelta` or seconds) or
        `run_at` (aware datetime) says when it is due, default at once; `deadline` when it must have completed:
        it then ends cancelled (cause expired), even where it runs. `priority` is a `Priority` or any number from
        -32768 to 32767, lower sooner, default 0. `max_attempts` (0 for ever), `timeout` of one attempt and
        `retention`, how long the job is kept after it has ended, are by default the task's; durations are
        `timedelta` or seconds. `group` names the group that it is handled with, for a task that takes groups.
        `id` (default a new ObjectId) makes the enqueue idempotent: an existing job of that id is returned as it is.
        `session` joins the caller's transaction.

        `label` is unique among the live jobs of the task. `on_conflict` says what becomes of an enqueue that finds
        its label taken: "raise" (default), "ignore", which returns the job that has it, or "replace", which makes
        that job what this one would be, unless it runs. `isolation` (`timedelta` or seconds) keeps others that ask
        for isolation from enqueuing a job of the same task and label, or without a label of the task, for so long
        from now, whatever becomes of this one. `unique` (True, or a duration that isolates as well) makes the label
        from the payload. `created` of the handle tells whether this enqueue stored the job.

        Raises `PayloadInvalid`, `PayloadTooLarge`, `LabelTaken`, `Isolated`, `EnqueueUnknown`, `StoreError`, and
        `ConfigurationError` for an option that cannot work; nothing is sent then.
        """
        draft, binding, session = self._drafted(payload, name, options)
        if draft.label is not None or draft.isolation is not None:
            self._secure([draft], session)
        able = draft.isolation is not None and session is None and self.store.capabilities().transactions
        rule = self._placing(draft, joined=session is not None, transactions=able)
        stored = self.store.run(rule, session=session)
        if session is None:
            self._announce([stored])
        return Job(stored.document, self.store, binding, created=stored.created)

    @overload
    def enqueue_many(
        self,
        payloads: Iterable[Payload[M, R]],
        *,
        label: Callable[[M], str | None] | None = None,
        **options: Unpack[BatchOptions],
    ) -> list[Job[M, R]]: ...
    @overload
    def enqueue_many(
        self,
        payloads: Iterable[M],
        *,
        name: str,
        label: Callable[[M], str | None] | None = None,
        **options: Unpack[BatchOptions],
    ) -> list[Job[M, Any]]: ...
    def enqueue_many(
        self,
        payloads: Iterable[Any],
        *,
        name: str | None = None,
        label: Callable[[Any], str | None] | None = None,
        **options: Unpack[BatchOptions],
    ) -> list[Job[Any, Any]]:
        """Stores many jobs in one command and returns their handles, in order; otherwise as `enqueue`.

        All payloads are checked before anything is sent. Once this has returned, none of the jobs is lost. `label`
        makes of each payload its label, or None for none; `unique=True` makes labels as in `enqueue`. With labels all
        jobs are stored or, where one is taken, none, which takes a server with transactions (`ServerUnsuitable`);
        with `on_conflict="ignore"` those that have the labels come back in the place of those that cannot be stored.
        """
        drafts, bindings, session = self._all_drafted(payloads, name, options, label)
        if not drafts:
            return []
        joined, labels = session is not None, any(draft.label is not None for draft in drafts)
        if not (joined or labels):
            documents = self.store.run(batch.insert_many(drafts, self.store.clock))
            self.store.announce(documents)
            return [
                Job(each, self.store, binding, created=True) for each, binding in zip(documents, bindings, strict=True)
            ]
        self._secure(drafts, session)
        rule = self._placing_many(drafts, joined=joined, transactions=joined or self.store.capabilities().transactions)
        stored = self.store.run(rule, session=session)
        if not joined:
            self._announce(stored)
        return [
            Job(each.document, self.store, binding, created=each.created)
            for each, binding in zip(stored, bindings, strict=True)
        ]

    def callback(
        self,
        build: Build,
        *,
        delay: Duration = 0,
        when: When | None = None,
        name: str | None = None,
        session: SessionOf | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Callback:
        """Returns a web callback: once a request has been handled, and before its response is sent, it enqueues
        what `build` makes of the request: a payload, a list of them, or None for nothing.

        In Flask `app.after_request(queue.callback(build))`, or `queue.callback(build).route` above a view; in
        FastAPI `dependencies=[Depends(queue.callback(build))]`, after the transaction's where there is one.
        Where the handler raised or the status is 400 or more, nothing is enqueued; FastAPI shows a dependency
        only exceptions and the status of its `response` parameter, not that of a response that the handler
        made itself. An enqueue that fails fails the request.

        `delay` is as for `enqueue`. `when` decides from the request whether anything is enqueued. `name` is for
        models that have none. `session` finds the session of the request's transaction; by default it is
        `flask.g.session` or `request.state.session`, where that is a MongoDB session with an open transaction.
        What the handler knows, it hands to `build` on `flask.g` or `request.state`. Other `options` are those of
        `enqueue_many` that are the same for every request; `label` is a function of the payload. Raises
        `ConfigurationError`.
        """
        return Callback(self, build, delay=delay, when=when, name=name, session=session, **options)

    def get(self, id: Any, *, model: type[M] | None = None) -> Job[M, Any]:
        """Returns a job; `model` says how its payload and result are read. Raises `JobNotFound`."""
        return Job(self.store.run(manage.get(identity(id))).document, self.store, bind(model) if model else None)

    def exists(self, id: Any) -> bool:
        """Returns whether there is a job of that id, live or ended."""
        return self.store.run(manage.exists(identity(id)))

    def find(
        self,
        *,
        state: StateOrName | None = None,
        name: str | None = None,
        label: str | None = None,
        data: Mapping[str, Any] | None = None,
        limit: int = 100,
        skip: int = 0,
    ) -> list[Job[Any, Any]]:
        """Returns jobs of this queue, the newest first: at most `limit` (default 100) after the first `skip`.

        `data` keeps those whose payload has the given values, by field name, dotted for inner ones, as in
        `{"user_id": 7}`; it reads each job that the rest leaves, unless you have an index on the field. In a store
        with a codec it is refused. Raises `ConfigurationError`, and `PayloadInvalid` for a value that no payload
        can hold.
        """
        values = payload_values(data, self.store.codec)
        rule = manage.find(self.name, **wanted(state, name, label), data=values, **page(limit, skip))
        found = self.store.run(rule)
        return [Job(record.document, self.store, None) for record in found]

    def dead(self, *, name: str | None = None, limit: int = 20, skip: int = 0) -> list[Job[Any, Any]]:
        """Returns the jobs of this queue that were given up: those that ended cancelled though nobody had asked for it,
        the last first, at most `limit` (default 20) after the first `skip`. `name` keeps those of one task.
        """
        found = self.store.run(manage.dead(self.name, name=task_name(name), **page(limit, skip)))
        return [Job(record.document, self.store, None) for record in found]

    def wait(self, id: Any, *, timeout: Duration | None = None) -> Job[Any, Any]:
        """Waits until a job has completed and returns it; errors and `timeout` as for `Job.wait`."""
        record = self.store.run(
            waiting.wait(identity(id), self.store.clock, timeout=limit(timeout, "timeout"), codec=self.store.codec)
        )
        return Job(record.document, self.store, None)

    @overload
    def wait_many(self, jobs: Iterable[Job[M, R]], *, timeout: Duration | None = None) -> list[Job[M, R]]: ...
    @overload
    def wait_many(self, jobs: Iterable[Any], *, timeout: Duration | None = None) -> list[Job[Any, Any]]: ...
    def wait_many(self, jobs: Iterable[Any], *, timeout: Duration | None = None) -> list[Job[Any, Any]]:
        """Waits until all jobs, given as handles or ids, have ended, and returns them in order, whatever their end.

        `timeout` as for `Job.wait`. Raises `WaitTimeout`, `JobNotFound`, or `JobGone` where one was removed
        meanwhile.
        """
        ids, bindings = identities(jobs)
        found = self.store.run(waiting.wait_many(ids, self.store.clock, timeout=limit(timeout, "timeout")))
        return [Job(record.document, self.store, bindings.get(record.id)) for record in found]

    @overload
    def take(self, model: type[Payload[M, R]], count: int = 1, **options: Unpack[PullOptions]) -> list[Lease[M, R]]: ...
    @overload
    def take(
        self, model: type[M], count: int = 1, *, name: str, **options: Unpack[PullOptions]
    ) -> list[Lease[M, Any]]: ...
    def take(
        self, model: Any, count: int = 1, *, name: str | None = None, **options: Unpack[PullOptions]
    ) -> list[Lease[Any, Any]]:
        """Claims up to `count` (default 1) jobs of a model's task that are due now, without a pool, and returns their
        leases: none where nothing is due, or the queue or task is paused.

        Options as for `consume`. A job that has lost a lease comes alone, whatever `count` is. What ends unrun, as in a
        pool, is not among them. Raises `ConfigurationError`, `StoreError`.
        """
        from axeq.faces.taker import Taker, take  # only who pulls jobs pays for the import

        return take(Taker(self.store, self.name, bind(model, name=name), options), count)

    @overload
    def consume(
        self,
        model: type[Payload[M, R]],
        *,
        batch: int = 10,
        wait: Duration | None = None,
        **options: Unpack[PullOptions],
    ) -> Consumer[M, R]: ...
    @overload
    def consume(
        self,
        model: type[M],
        *,
        name: str,
        batch: int = 10,
        wait: Duration | None = None,
        **options: Unpack[PullOptions],
    ) -> Consumer[M, Any]: ...
    def consume(
        self,
        model: Any,
        *,
        name: str | None = None,
        batch: int = 10,
        wait: Duration | None = None,
        **options: Unpack[PullOptions],
    ) -> Consumer[Any, Any]:
        """Returns what a loop takes jobs of a model's task from, one lease after the other, without a pool.

        `batch` (default 10) are claimed at once. `wait` (`timedelta` or seconds) ends the loop once nothing has been
        due for so long, default never; while nothing is due it looks every 100 ms to 1 s, and at once after an enqueue
        of this store. `lease` (default 60 s) is how long a job stays with its holder without a heartbeat; `worker`
        names the holder, default host, process and a random part. `max_attempts`, `max_lost`, `backoff`, `min_delay`,
        `max_delay`, `delay_factor`, `retry_on`, `no_retry_on`, `is_failure`, `retention`, `cancelled_retention` and
        `max_result` are those of `Task`.

        A lease is the loop's until the next one is asked for. When the loop is left, by `break`, an exception or a
        cancellation, what was claimed and not handled is given back: at once within `with queue.consume(...) as
        leases`. Its `stop()` ends the loop before the next lease. Raises `ConfigurationError`, and `StoreError` where
        the server cannot be used at the start.
        """
        from axeq.faces.consumer import Consumer  # only who pulls jobs pays for the import
        from axeq.faces.taker import Taker

        taker = Taker(self.store, self.name, bind(model, name=name), options)
        return Consumer(taker, batch=batch, wait=wait)

    def cancel(self, id: Any, *, reason: str = "") -> Cancellation:
        """Cancels a job, at once where it waits, else by asking its worker, and tells what that achieved. `reason` is
        kept in its events. Raises `JobNotFound`.
        """
        return self.store.run(manage.cancel(identity(id), self.store.clock, reason=reason))

    def retry(self, id: Any) -> Job[Any, Any]:
        """Enqueues a failed or ended job once more, due now. Raises `JobNotFound`, `LabelTaken`."""
        record = self.store.run(manage.retry(identity(id), self.store.clock))
        return Job(record.document, self.store, None)

    def retry_many(self, jobs: Iterable[Any]) -> dict[Any, AxeqError]:
        """Enqueues failed or ended jobs, given as handles or ids, once more, due now.

        Returns why others could not be, by id: `JobNotFound`, also where it waits or runs already, or `LabelTaken`.
        """
        return self.store.run(manage.retry_many(identities(jobs)[0], self.store.clock))

    def remove(self, id: Any) -> bool:
        """Deletes a job, in flight or not, and returns whether it was there."""
        return self.store.run(manage.remove(identity(id)))

    def remove_many(self, jobs: Iterable[Any]) -> int:
        """Deletes jobs, given as handles or ids, in flight or not, and returns how many were there."""
        return self.store.run(manage.remove_many(identities(jobs)[0]))

    def clear_dead(self, *, name: str | None = None) -> int:
        """Deletes what `dead` lists, of all tasks or of one, and returns how many jobs there were."""
        return self.store.run(manage.clear_dead(self.name, self.store.clock, name=task_name(name)))

    def stats(self, *, cap: int = 10_000) -> dict[State, int]:
        """Returns how many jobs of this queue are in each state, counting no further than `cap` (default
        10,000).
        """
        return self.store.run(manage.stats(self.name, cap=counted_to(cap)))

    def stats_by_task(self, *, cap: int = 10_000) -> dict[str, dict[State, int]]:
        """Returns how many jobs of each task of this queue are in each state, looking at no more than `cap` (default
        10,000) of a state.
        """
        return self.store.run(manage.stats_by_task(self.name, cap=counted_to(cap)))

    def pause(self, name: str | None = None) -> None:
        """Has pools claim no more jobs of this queue, or of its task `name`; running ones go on."""
        self.store.run(manage.pause(self.name, task_name(name)))

    def resume(self, name: str | None = None) -> None:
        """Takes a pause of this queue, or of its task `name`, back."""
        self.store.run(manage.resume(self.name, task_name(name)))

    def ensure_indexes(self) -> list[str]:
        """Creates the indexes that are missing and returns the names of all. Raises `AccessDenied`."""
        return self.store.run(indexes.ensure())

    def _secure(self, drafts: list[Draft], session: Any) -> None:
        for index, rule in self._unsecured(drafts, session):
            self.store.run(rule)
            self._note_secured(index)
