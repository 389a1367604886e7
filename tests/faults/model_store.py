"""Where the model's rules run: in memory or on mongomock, on virtual time, with replies lost on order."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import mongomock

from axeq.documents.record import Document
from axeq.rules import indexes
from axeq.wire.simulated import SimulatedWire
from axeq.wire.wire import JOBS, Command, Find, Op, Place, Sleep, drive
from axeq.words.errors import DuplicateKey, StoreUnavailable

from .model_collection import Collection

__all__ = ["DOUBT", "Fault", "InMemory", "OnMongomock", "Time", "World"]

DOUBT = 20
"""How far each bound of the clock lies from the true time, in milliseconds."""
_EPOCH = datetime(2126, 5, 4, 12, tzinfo=UTC)
"""In the future, for mongomock removes by the true time what has expired."""


class Time:
    """Virtual time in milliseconds, which only a tick or a rule's own sleep moves."""

    stale = unsure = False

    def __init__(self) -> None:
        self.now = 0

    def earliest(self) -> datetime:
        return self.moment(self.now - DOUBT)

    def latest(self) -> datetime:
        return self.moment(self.now + DOUBT)

    def monotonic(self) -> float:
        return self.now / 1000

    def doubt(self) -> None:
        """Does nothing: the time is known."""

    @staticmethod
    def moment(milliseconds: int) -> datetime:
        return _EPOCH + timedelta(milliseconds=milliseconds)

    @staticmethod
    def milliseconds(moment: datetime) -> int:
        return round((moment - _EPOCH) / timedelta(milliseconds=1))


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls the command at a position: `executed` and not `answered`, or neither, or never `sent`."""

    position: int
    executed: bool = True
    sent: bool = True


class Backend(Protocol):
    """What carries commands out."""

    def execute(self, command: Command) -> Any: ...


class InMemory(Collection):
    """The collection in memory; `time` is of no use to it."""

    def __init__(self, time: Time) -> None:
        super().__init__({})


class OnMongomock:
    """axeq's own wire to mongomock, with its indexes."""

    def __init__(self, time: Time) -> None:
        self._wire = SimulatedWire(mongomock.MongoClient()["axeq"], Place("axeq"), time)  # type: ignore[arg-type]
        self._wire.run(indexes.ensure())

    def execute(self, command: Command) -> Any:
        return self._wire._execute(command)


class World:
    """A store and its time."""

    def __init__(self, backend: type[InMemory | OnMongomock]) -> None:
        self.time = Time()
        self.backend: Backend = backend(self.time)

    def run(self, op: Op[Any], fault: Fault | None = None) -> Any:
        """Runs a rule to its end; its sleeps pass at once."""
        sent = 0

        def execute(command: Command) -> Any:
            nonlocal sent
            if isinstance(command, Sleep):
                self.time.now += math.ceil(command.seconds * 1000)
                return None
            sent += 1
            if fault is None or sent - 1 != fault.position:
                return self.backend.execute(command)
            if fault.executed:
                with suppress(DuplicateKey):  # a refusal is lost like any other reply
                    self.backend.execute(command)
            raise StoreUnavailable("db", "no answer", sent=fault.sent)

        return drive(op, execute)

    def documents(self) -> dict[Any, Document]:
        """Returns every job as it is stored."""
        return {document["_id"]: document for document in self.backend.execute(Find(JOBS, {}))}
