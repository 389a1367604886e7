"""What `enqueue` returns: the job's record, and what can be done with the job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic

from axeq.documents.codec import is_sealed, opened
from axeq.documents.failure import FailedAttempt, opened_failure, raised
from axeq.documents.model import Binding, M, R
from axeq.documents.record import Document, Record, identity, phase_at
from axeq.wire.store import Store
from axeq.words.duration import Duration, limit
from axeq.words.errors import ConfigurationError, PayloadSealed
from axeq.words.late import Late
from axeq.words.states import Cancellation, Phase

if TYPE_CHECKING:
    from axeq.rules import manage, waiting
else:
    manage, waiting = Late("axeq.rules.manage"), Late("axeq.rules.waiting")

__all__ = ["AsyncJob", "Job", "identities"]


class _Handle(Record, Generic[M, R]):
    """A record that knows its store and how its payload and result are read."""

    __slots__ = ("_binding", "_store", "created")

    def __init__(
        self, document: Document, store: Store, binding: Binding[M, R] | None, *, created: bool = False
    ) -> None:
        super().__init__(document)
        self._store = store
        self._binding = binding
        self.created = created
        """Whether the enqueue that returned this handle stored the job; False where it was there before."""

    @property
    def payload(self) -> M:
        """The payload as its model; as stored where the job was found without one.

        Raises `pydantic.ValidationError` where it no longer validates, `PayloadSealed` where it cannot be opened.
        """
        codec = self._store.codec
        if self._binding is None:
            plain: Any = opened(self.document.get("data"), codec, root=f"payload of {self.name!r}")
            return plain  # type: ignore[no-any-return]
        return self._binding.decode(self.document.get("data"), self.version, codec)

    @property
    def data(self) -> Any:
        """The payload as it is stored, opened where the store's codec can; a binary where it is sealed."""
        return self._seen("data")

    @property
    def result(self) -> Any:
        """The handler's return value as it is stored, opened as `data` is; None without one."""
        return self._seen("result")

    @property
    def checkpoint(self) -> Any:
        """The state that its handler stored last, opened as `data` is; None without one."""
        return self._seen("checkpoint")

    @property
    def error(self) -> Mapping[str, Any] | None:
        """The last failure as `type`, `message` and `traceback`, opened as `data` is; None without one."""
        return opened_failure(super().error, self._store.codec)

    @property
    def errors(self) -> list[FailedAttempt]:
        """Its last failures, oldest first, opened as `data` is."""
        return [raised(entry, self._store.codec) for entry in self._told() if "type" in entry]

    @property
    def phase(self) -> Phase:
        """How the job as last read looks now, by the server's clock."""
        return phase_at(self, self._store.clock.earliest())

    def _seen(self, field: str) -> Any:
        stored = self.document.get(field)
        if self._store.codec is None or not is_sealed(stored):
            return stored
        try:
            return opened(stored, self._store.codec, root=field)
        except PayloadSealed:
            return stored

    def _result(self, record: Record) -> R:
        self.document = record.document
        codec = self._store.codec
        if self._binding is None:
            plain: Any = opened(record.result, codec, root=f"result of {self.name!r}")
            return plain  # type: ignore[no-any-return]
        return self._binding.decode_result(record.result, codec)


class Job(_Handle[M, R]):
    """A job in sync code: its record as last read, and what can be done with it."""

    __slots__ = ()

    def refresh(self) -> Job[M, R]:
        """Reads the job anew and returns it. Raises `JobNotFound`."""
        self.document = self._store.run(manage.get(self.id)).document
        return self

    def wait(self, timeout: Duration | None = None) -> R:
        """Waits until the job has completed and returns its result.

        `timeout` is a `timedelta` or seconds; None, the default, waits for ever. Raises `WaitTimeout`,
        `JobCancelled`, `JobGone`, `ResultInvalid`.
        """
        return self._result(
            self._store.run(
                waiting.wait(self.id, self._store.clock, timeout=limit(timeout, "timeout"), codec=self._store.codec)
            )
        )

    def cancel(self, reason: str = "") -> Cancellation:
        """Cancels the job and tells what that achieved. Raises `JobNotFound`."""
        return self._store.run(manage.cancel(self.id, self._store.clock, reason=reason))

    def retry(self) -> Job[M, R]:
        """Enqueues the failed or ended job once more, due now, and returns it. Raises `JobNotFound`,
        `LabelTaken`.
        """
        self.document = self._store.run(manage.retry(self.id, self._store.clock)).document
        return self

    def remove(self) -> bool:
        """Deletes the job, in flight or not, and returns whether it was there."""
        return self._store.run(manage.remove(self.id))


class AsyncJob(_Handle[M, R]):
    """A job in async code: its record as last read, and what can be done with it."""

    __slots__ = ()

    async def refresh(self) -> AsyncJob[M, R]:
        """Reads the job anew and returns it. Raises `JobNotFound`."""
        self.document = (await self._store.arun(manage.get(self.id))).document
        return self

    async def wait(self, timeout: Duration | None = None) -> R:
        """Waits until the job has completed and returns its result.

        `timeout` is a `timedelta` or seconds; None, the default, waits for ever. Raises `WaitTimeout`,
        `JobCancelled`, `JobGone`, `ResultInvalid`.
        """
        return self._result(
            await self._store.arun(
                waiting.wait(self.id, self._store.clock, timeout=limit(timeout, "timeout"), codec=self._store.codec)
            )
        )

    async def cancel(self, reason: str = "") -> Cancellation:
        """Cancels the job and tells what that achieved. Raises `JobNotFound`."""
        return await self._store.arun(manage.cancel(self.id, self._store.clock, reason=reason))

    async def retry(self) -> AsyncJob[M, R]:
        """Enqueues the failed or ended job once more, due now, and returns it. Raises `JobNotFound`,
        `LabelTaken`.
        """
        self.document = (await self._store.arun(manage.retry(self.id, self._store.clock))).document
        return self

    async def remove(self) -> bool:
        """Deletes the job, in flight or not, and returns whether it was there."""
        return await self._store.arun(manage.remove(self.id))


def identities(jobs: Iterable[Any]) -> tuple[list[Any], dict[Any, Binding[Any, Any] | None]]:
    """Returns the ids of jobs, given as such or as handles, in order, and the bindings of those that have one.

    Raises `ConfigurationError` for what is no collection of jobs: one id that is text would be taken for many.
    """
    if isinstance(jobs, str | bytes | bytearray | Mapping) or not isinstance(jobs, Iterable):
        raise ConfigurationError(f"jobs must be a list of ids or handles, as in [id], not a {type(jobs).__name__}")
    ids: list[Any] = []
    bindings: dict[Any, Binding[Any, Any] | None] = {}
    for job in jobs:
        ids.append(job.id if isinstance(job, Record) else identity(job))
        if isinstance(job, _Handle):
            bindings[job.id] = job._binding
    return ids, bindings
