"""The producer's face, sync and async: the same verbs over the same rules."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, Unpack, overload

from axeq import enqueue as rules
from axeq import indexes, manage
from axeq.callback import AsyncBuild, AsyncCallback, AsyncWhen, Build, Callback, SessionOf, When
from axeq.duration import Duration, aware, seconds
from axeq.enqueue import Draft
from axeq.errors import ConfigurationError
from axeq.handle import AsyncJob, Job
from axeq.manage import Cancellation
from axeq.model import Binding, M, Payload, R, bind, name_of
from axeq.record import identity
from axeq.states import State
from axeq.store import Store

__all__ = ["AsyncQueue", "BatchOptions", "EnqueueOptions", "Queue"]

_LARGEST_PAYLOAD = 8 * 1024 * 1024
_PRIORITIES = range(-(2**15), 2**15)
_LONGEST_NAME = 512
_FARTHEST = timedelta(days=3650)


class BatchOptions(TypedDict, total=False):
    """What `enqueue_many` takes for all of its jobs; the meanings are those of `Queue.enqueue`."""

    delay: Duration
    run_at: datetime | None
    deadline: datetime | None
    priority: int
    retention: Duration | None
    session: Any


class EnqueueOptions(BatchOptions, total=False):
    """What `enqueue` takes; the meanings are those of `Queue.enqueue`."""

    label: str | None
    id: Any


class _Face:
    """What both faces know: the store, the queue's name, and how a payload becomes a draft."""

    def __init__(self, store: Store, name: str = "default", *, max_payload: int = 256 * 1024) -> None:
        if not isinstance(store, Store):
            raise ConfigurationError(f"a queue takes an axeq.Store, not {type(store).__name__}: Queue(Store(...))")
        if not (isinstance(max_payload, int) and 0 < max_payload <= _LARGEST_PAYLOAD):
            raise ConfigurationError(f"max_payload must be 1 to {_LARGEST_PAYLOAD:,} bytes, not {max_payload!r}")
        self.store = store
        self.name = name_of(name)
        self.max_payload = max_payload
        self._labels_ready = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} on {self.store!r}>"

    def _draft(self, binding: Binding[Any, Any], payload: Any, options: Mapping[str, Any]) -> Draft:
        """Returns the draft of a payload; `options` are checked ones."""
        return Draft(
            name=binding.name,
            version=binding.version,
            queue=self.name,
            data=binding.encode(payload, self.max_payload, self.store.codec),
            **options,
        )

    def _drafts(
        self, payloads: Iterable[Any], name: str | None, options: Mapping[str, Any]
    ) -> tuple[list[Draft], list[Binding[Any, Any]]]:
        checked = _checked("enqueue_many", options, _BATCH_OPTIONS)
        payloads = list(payloads)
        bindings = [bind(type(payload), name=name) for payload in payloads]
        drafts = [self._draft(binding, payload, checked) for binding, payload in zip(bindings, payloads, strict=True)]
        return drafts, bindings


class Queue(_Face):
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
        `run_at` (aware datetime) says when it is due, default at once; `deadline` until when it may start.
        `label` is unique among the live jobs of the task. `priority` is -32768 to 32767, lower sooner, default
        0. `retention` is how long the job is kept after it has ended, default the task's. `id` (default a new
        ObjectId) makes the enqueue idempotent: an existing job of that id is returned as it is. `session` joins
        the caller's transaction. Raises `PayloadInvalid`, `PayloadTooLarge`, `LabelTaken`, `EnqueueUnknown`,
        `StoreError`, and `ConfigurationError` for an option that cannot work; nothing is sent then.
        """
        session = options.pop("session", None)
        binding = bind(type(payload), name=name)
        draft = self._draft(binding, payload, _checked("enqueue", options))
        if draft.label is not None:
            self._ready_labels()
        clock = self.store.clock
        if session is None:
            document = self.store.run(rules.insert(draft, clock))
            self.store.announce([document])
        else:
            (document,) = self.store.run(rules.insert_joined([draft], clock), session=session)
        return Job(document, self.store, binding)

    @overload
    def enqueue_many(
        self,
        payloads: Iterable[Payload[M, R]],
        **options: Unpack[BatchOptions],
    ) -> list[Job[M, R]]: ...
    @overload
    def enqueue_many(
        self,
        payloads: Iterable[M],
        *,
        name: str,
        **options: Unpack[BatchOptions],
    ) -> list[Job[M, Any]]: ...
    def enqueue_many(
        self, payloads: Iterable[Any], *, name: str | None = None, **options: Unpack[BatchOptions]
    ) -> list[Job[Any, Any]]:
        """Stores many jobs in one command and returns their handles, in order; otherwise as `enqueue`.

        All payloads are checked before anything is sent. Once this has returned, none of the jobs is lost.
        """
        session = options.pop("session", None)
        drafts, bindings = self._drafts(payloads, name, options)
        if not drafts:
            return []
        rule = rules.insert_many if session is None else rules.insert_joined
        documents = self.store.run(rule(drafts, self.store.clock), session=session)
        if session is None:
            self.store.announce(documents)
        return [Job(document, self.store, binding) for document, binding in zip(documents, bindings, strict=True)]

    def callback(
        self,
        build: Build,
        *,
        delay: Duration = 0,
        when: When | None = None,
        name: str | None = None,
        session: SessionOf | None = None,
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
        What the handler knows, it hands to `build` on `flask.g` or `request.state`. Raises `ConfigurationError`.
        """
        return Callback(self, build, delay=delay, when=when, name=name, session=session)

    def get(self, id: Any, *, model: type[M] | None = None) -> Job[M, Any]:
        """Returns a job; `model` says how its payload and result are read. Raises `JobNotFound`."""
        return Job(self.store.run(manage.get(identity(id))).document, self.store, bind(model) if model else None)

    def find(
        self,
        *,
        state: State | None = None,
        name: str | None = None,
        label: str | None = None,
        limit: int = 100,
        skip: int = 0,
    ) -> list[Job[Any, Any]]:
        """Returns jobs of this queue, the newest first: at most `limit` (default 100) after the first `skip`."""
        found = self.store.run(manage.find(self.name, **_wanted(name, label), state=state, limit=limit, skip=skip))
        return [Job(record.document, self.store, None) for record in found]

    def wait(self, id: Any, *, timeout: Duration | None = None) -> Job[Any, Any]:
        """Waits until a job has completed and returns it; errors and `timeout` as for `Job.wait`."""
        limit = None if timeout is None else seconds(timeout, "timeout")
        record = self.store.run(manage.wait(identity(id), self.store.clock, timeout=limit, codec=self.store.codec))
        return Job(record.document, self.store, None)

    def cancel(self, id: Any, *, reason: str = "") -> Cancellation:
        """Cancels a job: at once where it waits, else by asking its worker. Raises `JobNotFound`."""
        return self.store.run(manage.cancel(identity(id), self.store.clock, reason=reason))

    def retry(self, id: Any) -> Job[Any, Any]:
        """Enqueues a failed or ended job once more, due now. Raises `JobNotFound`, `LabelTaken`."""
        record = self.store.run(manage.retry(identity(id), self.store.clock))
        return Job(record.document, self.store, None)

    def remove(self, id: Any) -> bool:
        """Deletes a job, in flight or not, and returns whether it was there."""
        return self.store.run(manage.remove(identity(id)))

    def stats(self, *, cap: int = 10_000) -> dict[State, int]:
        """Returns how many jobs of this queue are in each state, counting no further than `cap` (default
        10,000).
        """
        return self.store.run(manage.stats(self.name, cap=cap))

    def pause(self, name: str | None = None) -> None:
        """Has pools claim no more jobs of this queue, or of its task `name`; running ones go on."""
        self.store.run(manage.pause(self.name, _task(name)))

    def resume(self, name: str | None = None) -> None:
        """Takes a pause of this queue, or of its task `name`, back."""
        self.store.run(manage.resume(self.name, _task(name)))

    def ensure_indexes(self) -> list[str]:
        """Creates the indexes that are missing and returns the names of all. Raises `AccessDenied`."""
        return self.store.run(indexes.ensure())

    def _ready_labels(self) -> None:
        if not self._labels_ready:
            self.store.run(indexes.secure("label", self.store.place.collection))
            self._labels_ready = True


class AsyncQueue(_Face):
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
        session = options.pop("session", None)
        binding = bind(type(payload), name=name)
        draft = self._draft(binding, payload, _checked("enqueue", options))
        if draft.label is not None:
            await self._ready_labels()
        clock = self.store.clock
        if session is None:
            document = await self.store.arun(rules.insert(draft, clock))
            self.store.announce([document])
        else:
            (document,) = await self.store.arun(rules.insert_joined([draft], clock), session=session)
        return AsyncJob(document, self.store, binding)

    @overload
    async def enqueue_many(
        self,
        payloads: Iterable[Payload[M, R]],
        **options: Unpack[BatchOptions],
    ) -> list[AsyncJob[M, R]]: ...
    @overload
    async def enqueue_many(
        self,
        payloads: Iterable[M],
        *,
        name: str,
        **options: Unpack[BatchOptions],
    ) -> list[AsyncJob[M, Any]]: ...
    async def enqueue_many(
        self, payloads: Iterable[Any], *, name: str | None = None, **options: Unpack[BatchOptions]
    ) -> list[AsyncJob[Any, Any]]:
        """Stores many jobs in one command and returns their handles, in order; otherwise as
        `Queue.enqueue_many`.
        """
        session = options.pop("session", None)
        drafts, bindings = self._drafts(payloads, name, options)
        if not drafts:
            return []
        rule = rules.insert_many if session is None else rules.insert_joined
        documents = await self.store.arun(rule(drafts, self.store.clock), session=session)
        if session is None:
            self.store.announce(documents)
        return [AsyncJob(document, self.store, binding) for document, binding in zip(documents, bindings, strict=True)]

    def callback(
        self,
        build: AsyncBuild,
        *,
        delay: Duration = 0,
        when: AsyncWhen | None = None,
        name: str | None = None,
        session: SessionOf | None = None,
    ) -> AsyncCallback:
        """Returns a web callback; otherwise as `Queue.callback`, and its functions may be async.

        In FastAPI `dependencies=[Depends(queue.callback(build))]`, after the transaction's where there is one;
        in Starlette `Route(path, queue.callback(build).route(endpoint))`; in both
        `app.add_middleware(queue.callback(build).middleware)`. The session is `request.state.session`.
        """
        return AsyncCallback(self, build, delay=delay, when=when, name=name, session=session)

    async def get(self, id: Any, *, model: type[M] | None = None) -> AsyncJob[M, Any]:
        """Returns a job; `model` says how its payload and result are read. Raises `JobNotFound`."""
        return AsyncJob(
            (await self.store.arun(manage.get(identity(id)))).document, self.store, bind(model) if model else None
        )

    async def find(
        self,
        *,
        state: State | None = None,
        name: str | None = None,
        label: str | None = None,
        limit: int = 100,
        skip: int = 0,
    ) -> list[AsyncJob[Any, Any]]:
        """Returns jobs of this queue, the newest first: at most `limit` (default 100) after the first `skip`."""
        found = await self.store.arun(
            manage.find(self.name, **_wanted(name, label), state=state, limit=limit, skip=skip)
        )
        return [AsyncJob(record.document, self.store, None) for record in found]

    async def wait(self, id: Any, *, timeout: Duration | None = None) -> AsyncJob[Any, Any]:
        """Waits until a job has completed and returns it; errors and `timeout` as for `AsyncJob.wait`."""
        limit = None if timeout is None else seconds(timeout, "timeout")
        record = await self.store.arun(
            manage.wait(identity(id), self.store.clock, timeout=limit, codec=self.store.codec)
        )
        return AsyncJob(record.document, self.store, None)

    async def cancel(self, id: Any, *, reason: str = "") -> Cancellation:
        """Cancels a job: at once where it waits, else by asking its worker. Raises `JobNotFound`."""
        return await self.store.arun(manage.cancel(identity(id), self.store.clock, reason=reason))

    async def retry(self, id: Any) -> AsyncJob[Any, Any]:
        """Enqueues a failed or ended job once more, due now. Raises `JobNotFound`, `LabelTaken`."""
        record = await self.store.arun(manage.retry(identity(id), self.store.clock))
        return AsyncJob(record.document, self.store, None)

    async def remove(self, id: Any) -> bool:
        """Deletes a job, in flight or not, and returns whether it was there."""
        return await self.store.arun(manage.remove(identity(id)))

    async def stats(self, *, cap: int = 10_000) -> dict[State, int]:
        """Returns how many jobs of this queue are in each state, counting no further than `cap` (default
        10,000).
        """
        return await self.store.arun(manage.stats(self.name, cap=cap))

    async def pause(self, name: str | None = None) -> None:
        """Has pools claim no more jobs of this queue, or of its task `name`; running ones go on."""
        await self.store.arun(manage.pause(self.name, _task(name)))

    async def resume(self, name: str | None = None) -> None:
        """Takes a pause of this queue, or of its task `name`, back."""
        await self.store.arun(manage.resume(self.name, _task(name)))

    async def ensure_indexes(self) -> list[str]:
        """Creates the indexes that are missing and returns the names of all. Raises `AccessDenied`."""
        return await self.store.arun(indexes.ensure())

    async def _ready_labels(self) -> None:
        if not self._labels_ready:
            await self.store.arun(indexes.secure("label", self.store.place.collection))
            self._labels_ready = True


_BATCH_OPTIONS = frozenset(typing.get_type_hints(BatchOptions))
_ENQUEUE_OPTIONS = frozenset(typing.get_type_hints(EnqueueOptions))


def _checked(verb: str, options: Mapping[str, Any], known: frozenset[str] = _ENQUEUE_OPTIONS) -> dict[str, Any]:
    """Returns the options of an enqueue as a draft takes them; raises `ConfigurationError` naming the one that
    is wrong.
    """
    unknown = options.keys() - known
    if unknown:
        raise ConfigurationError(f"{verb} takes no {', '.join(sorted(unknown))}: see help(axeq.Queue.{verb})")
    return {option: _CHECKS[option](value) for option, value in options.items()} | _due(options)


def _wanted(name: Any, label: Any) -> dict[str, str | None]:
    """Returns what a search asks for, checked: as text it can be no operator of a filter."""
    return {"name": _task(name), "label": _label(label)}


def _task(name: Any) -> str | None:
    return None if name is None else name_of(name)


def _due(options: Mapping[str, Any]) -> dict[str, Any]:
    delay, run_at = options.get("delay", 0), options.get("run_at")
    wait = seconds(delay, "delay")
    if run_at is not None and wait:
        raise ConfigurationError("give delay or run_at, not both")
    if run_at is not None and aware(run_at, "run_at") > datetime.now(UTC) + _FARTHEST:
        raise ConfigurationError("run_at must be within ten years")
    return {"delay": wait, "run_at": run_at}


def _label(label: Any) -> str | None:
    if label is not None and not (isinstance(label, str) and 0 < len(label) <= _LONGEST_NAME):
        raise ConfigurationError(f"label must be text of 1 to {_LONGEST_NAME} characters, not {label!r:.100}")
    return label


def _priority(priority: Any) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or priority not in _PRIORITIES:
        raise ConfigurationError(f"priority must be a whole number from -32768 to 32767, not {priority!r:.100}")
    return priority


def _identity(value: Any) -> Any:
    # One line, for logs name jobs by their ids.
    if isinstance(value, str | bytes) and not (0 < len(value) <= _LONGEST_NAME):
        raise ConfigurationError(f"id must be 1 to {_LONGEST_NAME} characters, not {len(value):,}")
    if isinstance(value, str) and not value.isprintable():
        raise ConfigurationError(f"id must be of printable characters, not {value!r:.100}")
    return None if value is None else identity(value)


def _same(value: Any) -> Any:
    return value


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "delay": _same,
    "run_at": _same,
    "deadline": lambda value: None if value is None else aware(value, "deadline"),
    "retention": lambda value: None if value is None else seconds(value, "retention"),
    "label": _label,
    "priority": _priority,
    "id": _identity,
}
