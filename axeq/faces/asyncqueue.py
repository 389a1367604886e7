"""The producer's face in async code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Unpack, overload

from axeq.documents.model import M, Payload, R, bind
from axeq.documents.record import identity
from axeq.faces.callback import AsyncBuild, AsyncCallback, AsyncWhen, SessionOf
from axeq.faces.face import Face
from axeq.faces.handle import AsyncJob, identities
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
    from axeq.faces.consumer import AsyncConsumer
    from axeq.faces.lease import AsyncLease
    from axeq.faces.taker import PullOptions
    from axeq.rules import manage, waiting
else:
    manage, waiting = Late("axeq.rules.manage"), Late("axeq.rules.waiting")

__all__ = ["AsyncQueue"]


class AsyncQueue(Face):
    """Where async code puts jobs and looks after them; otherwise as `Queue`."""

    @overload
    async def enqueue(
        self,
        payload: Payload[M, R],
        **options: Unpack[EnqueueOptions],
    ) -> AsyncJob[M, R]: ...
    @overload
    async def enqueue(
        self,
        payload: M,
        *,
        name: str,
        **options: Unpack[EnqueueOptions],
    ) -> AsyncJob[M, Any]: ...
    async def enqueue(
        self, payload: Any, *, name: str | None = None, **options: Unpack[EnqueueOptions]
    ) -> AsyncJob[Any, Any]:
        """Stores a job and returns its handle; options and errors as for `Queue.enqueue`.

        `session` is a pymongo `AsyncClientSession`, or Motor's.
        """
        draft, binding, session = self._drafted(payload, name, options)
        if draft.label is not None or draft.isolation is not None:
            await self._secure([draft], session)
        able = draft.isolation is not None and session is None and (await self.store.acapabilities()).transactions
        rule = self._placing(draft, joined=session is not None, transactions=able)
        stored = await self.store.arun(rule, session=session)
        if session is None:
            self._announce([stored])
        return AsyncJob(stored.document, self.store, binding, created=stored.created)

    @overload
    async def enqueue_many(
        self,
        payloads: Iterable[Payload[M, R]],
        *,
        label: Callable[[M], str | None] | None = None,
        **options: Unpack[BatchOptions],
    ) -> list[AsyncJob[M, R]]: ...
    @overload
    async def enqueue_many(
        self,
        payloads: Iterable[M],
        *,
        name: str,
        label: Callable[[M], str | None] | None = None,
        **options: Unpack[BatchOptions],
    ) -> list[AsyncJob[M, Any]]: ...
    async def enqueue_many(
        self,
        payloads: Iterable[Any],
        *,
        name: str | None = None,
        label: Callable[[Any], str | None] | None = None,
        **options: Unpack[BatchOptions],
    ) -> list[AsyncJob[Any, Any]]:
        """Stores many jobs in one command and returns their handles, in order; otherwise as
        `Queue.enqueue_many`.
        """
        drafts, bindings, session = self._all_drafted(payloads, name, options, label)
        if not drafts:
            return []
        joined, labels = session is not None, any(draft.label is not None for draft in drafts)
        if not (joined or labels):
            documents = await self.store.arun(batch.insert_many(drafts, self.store.clock))
            self.store.announce(documents)
            return [
                AsyncJob(each, self.store, binding, created=True)
                for each, binding in zip(documents, bindings, strict=True)
            ]
        await self._secure(drafts, session)
        able = joined or (await self.store.acapabilities()).transactions
        stored = await self.store.arun(self._placing_many(drafts, joined=joined, transactions=able), session=session)
        if not joined:
            self._announce(stored)
        return [
            AsyncJob(each.document, self.store, binding, created=each.created)
            for each, binding in zip(stored, bindings, strict=True)
        ]

    def callback(
        self,
        build: AsyncBuild,
        *,
        delay: Duration = 0,
        when: AsyncWhen | None = None,
        name: str | None = None,
        session: SessionOf | None = None,
        **options: Unpack[CallbackOptions],
    ) -> AsyncCallback:
        """Returns a web callback; otherwise as `Queue.callback`, and its functions may be async.

        In FastAPI `dependencies=[Depends(queue.callback(build))]`, after the transaction's where there is one;
        in Starlette `Route(path, queue.callback(build).route(endpoint))`; in both
        `app.add_middleware(queue.callback(build).middleware)`. The session is `request.state.session`.
        """
        return AsyncCallback(self, build, delay=delay, when=when, name=name, session=session, **options)

    async def get(self, id: Any, *, model: type[M] | None = None) -> AsyncJob[M, Any]:
        """Returns a job; `model` says how its payload and result are read. Raises `JobNotFound`."""
        return AsyncJob(
            (await self.store.arun(manage.get(identity(id)))).document, self.store, bind(model) if model else None
        )

    async def exists(self, id: Any) -> bool:
        """Returns whether there is a job of that id, live or ended."""
        return await self.store.arun(manage.exists(identity(id)))

    async def find(
        self,
        *,
        state: StateOrName | None = None,
        name: str | None = None,
        label: str | None = None,
        data: Mapping[str, Any] | None = None,
        limit: int = 100,
        skip: int = 0,
    ) -> list[AsyncJob[Any, Any]]:
        """Returns jobs of this queue, the newest first: at most `limit` (default 100) after the first `skip`.

        `data` keeps those whose payload has the given values, by field name, dotted for inner ones, as in
        `{"user_id": 7}`; it reads each job that the rest leaves, unless you have an index on the field. In a store
        with a codec it is refused. Raises `ConfigurationError`, and `PayloadInvalid` for a value that no payload
        can hold.
        """
        values = payload_values(data, self.store.codec)
        rule = manage.find(self.name, **wanted(state, name, label), data=values, **page(limit, skip))
        found = await self.store.arun(rule)
        return [AsyncJob(record.document, self.store, None) for record in found]

    async def dead(self, *, name: str | None = None, limit: int = 20, skip: int = 0) -> list[AsyncJob[Any, Any]]:
        """Returns the jobs of this queue that were given up: those that ended cancelled though nobody had asked for it,
        the last first, at most `limit` (default 20) after the first `skip`. `name` keeps those of one task.
        """
        found = await self.store.arun(manage.dead(self.name, name=task_name(name), **page(limit, skip)))
        return [AsyncJob(record.document, self.store, None) for record in found]

    async def wait(self, id: Any, *, timeout: Duration | None = None) -> AsyncJob[Any, Any]:
        """Waits until a job has completed and returns it; errors and `timeout` as for `AsyncJob.wait`."""
        record = await self.store.arun(
            waiting.wait(identity(id), self.store.clock, timeout=limit(timeout, "timeout"), codec=self.store.codec)
        )
        return AsyncJob(record.document, self.store, None)

    @overload
    async def wait_many(
        self, jobs: Iterable[AsyncJob[M, R]], *, timeout: Duration | None = None
    ) -> list[AsyncJob[M, R]]: ...
    @overload
    async def wait_many(self, jobs: Iterable[Any], *, timeout: Duration | None = None) -> list[AsyncJob[Any, Any]]: ...
    async def wait_many(self, jobs: Iterable[Any], *, timeout: Duration | None = None) -> list[AsyncJob[Any, Any]]:
        """Waits until all jobs, given as handles or ids, have ended, and returns them in order, whatever their end.

        `timeout` as for `AsyncJob.wait`. Raises `WaitTimeout`, `JobNotFound`, or `JobGone` where one was removed
        meanwhile.
        """
        ids, bindings = identities(jobs)
        found = await self.store.arun(waiting.wait_many(ids, self.store.clock, timeout=limit(timeout, "timeout")))
        return [AsyncJob(record.document, self.store, bindings.get(record.id)) for record in found]

    @overload
    async def take(
        self, model: type[Payload[M, R]], count: int = 1, **options: Unpack[PullOptions]
    ) -> list[AsyncLease[M, R]]: ...
    @overload
    async def take(
        self, model: type[M], count: int = 1, *, name: str, **options: Unpack[PullOptions]
    ) -> list[AsyncLease[M, Any]]: ...
    async def take(
        self, model: Any, count: int = 1, *, name: str | None = None, **options: Unpack[PullOptions]
    ) -> list[AsyncLease[Any, Any]]:
        """Claims up to `count` (default 1) jobs of a model's task that are due now, without a pool, and returns their
        leases: none where nothing is due, or the queue or task is paused.

        Options as for `consume`. A job that has lost a lease comes alone, whatever `count` is. What ends unrun, as in a
        pool, is not among them. Raises `ConfigurationError`, `StoreError`.
        """
        from axeq.faces.taker import Taker, atake  # only who pulls jobs pays for the import

        return await atake(Taker(self.store, self.name, bind(model, name=name), options), count)

    @overload
    def consume(
        self,
        model: type[Payload[M, R]],
        *,
        batch: int = 10,
        wait: Duration | None = None,
        **options: Unpack[PullOptions],
    ) -> AsyncConsumer[M, R]: ...
    @overload
    def consume(
        self,
        model: type[M],
        *,
        name: str,
        batch: int = 10,
        wait: Duration | None = None,
        **options: Unpack[PullOptions],
    ) -> AsyncConsumer[M, Any]: ...
    def consume(
        self,
        model: Any,
        *,
        name: str | None = None,
        batch: int = 10,
        wait: Duration | None = None,
        **options: Unpack[PullOptions],
    ) -> AsyncConsumer[Any, Any]:
        """Returns what an async loop takes jobs of a model's task from; otherwise as `Queue.consume`.

        What was claimed and not handled is given back before an `async with queue.consume(...) as leases` is left; else
        soon after the loop is, by a thread.
        """
        from axeq.faces.consumer import AsyncConsumer  # only who pulls jobs pays for the import
        from axeq.faces.taker import Taker

        taker = Taker(self.store, self.name, bind(model, name=name), options)
        return AsyncConsumer(taker, batch=batch, wait=wait)

    async def cancel(self, id: Any, *, reason: str = "") -> Cancellation:
        """Cancels a job, at once where it waits, else by asking its worker, and tells what that achieved. `reason` is
        kept in its events. Raises `JobNotFound`.
        """
        return await self.store.arun(manage.cancel(identity(id), self.store.clock, reason=reason))

    async def retry(self, id: Any) -> AsyncJob[Any, Any]:
        """Enqueues a failed or ended job once more, due now. Raises `JobNotFound`, `LabelTaken`."""
        record = await self.store.arun(manage.retry(identity(id), self.store.clock))
        return AsyncJob(record.document, self.store, None)

    async def retry_many(self, jobs: Iterable[Any]) -> dict[Any, AxeqError]:
        """Enqueues failed or ended jobs, given as handles or ids, once more, due now.

        Returns why others could not be, by id: `JobNotFound`, also where it waits or runs already, or `LabelTaken`.
        """
        return await self.store.arun(manage.retry_many(identities(jobs)[0], self.store.clock))

    async def remove(self, id: Any) -> bool:
        """Deletes a job, in flight or not, and returns whether it was there."""
        return await self.store.arun(manage.remove(identity(id)))

    async def remove_many(self, jobs: Iterable[Any]) -> int:
        """Deletes jobs, given as handles or ids, in flight or not, and returns how many were there."""
        return await self.store.arun(manage.remove_many(identities(jobs)[0]))

    async def clear_dead(self, *, name: str | None = None) -> int:
        """Deletes what `dead` lists, of all tasks or of one, and returns how many jobs there were."""
        return await self.store.arun(manage.clear_dead(self.name, self.store.clock, name=task_name(name)))

    async def stats(self, *, cap: int = 10_000) -> dict[State, int]:
        """Returns how many jobs of this queue are in each state, counting no further than `cap` (default
        10,000).
        """
        return await self.store.arun(manage.stats(self.name, cap=counted_to(cap)))

    async def stats_by_task(self, *, cap: int = 10_000) -> dict[str, dict[State, int]]:
        """Returns how many jobs of each task of this queue are in each state, looking at no more than `cap` (default
        10,000) of a state.
        """
        return await self.store.arun(manage.stats_by_task(self.name, cap=counted_to(cap)))

    async def pause(self, name: str | None = None) -> None:
        """Has pools claim no more jobs of this queue, or of its task `name`; running ones go on."""
        await self.store.arun(manage.pause(self.name, task_name(name)))

    async def resume(self, name: str | None = None) -> None:
        """Takes a pause of this queue, or of its task `name`, back."""
        await self.store.arun(manage.resume(self.name, task_name(name)))

    async def ensure_indexes(self) -> list[str]:
        """Creates the indexes that are missing and returns the names of all. Raises `AccessDenied`."""
        return await self.store.arun(indexes.ensure())

    async def _secure(self, drafts: list[Draft], session: Any) -> None:
        for index, rule in self._unsecured(drafts, session):
            await self.store.arun(rule)
            self._note_secured(index)
