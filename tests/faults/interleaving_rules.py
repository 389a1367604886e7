"""Rules under way, as values: what each was started with and has heard, so that any of them can be forked by replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cache
from typing import Any
from unittest import mock

from axeq.documents.failure import failure
from axeq.documents.record import Document, Record
from axeq.rules import lifecycle, manage
from axeq.rules.due import Candidate
from axeq.rules.enqueue import Draft, Stored, insert
from axeq.rules.outcome import Cancelled, Completed, Failed, Limits, Outcome, Released, Snoozed
from axeq.rules.settlement import settle, settlement
from axeq.wire.wire import Command, Op
from axeq.words.backoff import Constant
from axeq.words.errors import AxeqError, DuplicateKey, StoreUnavailable
from axeq.words.states import Cause

__all__ = [
    "DOUBT",
    "JOB",
    "LEASE",
    "LIMITS",
    "PATIENCE",
    "Fault",
    "Token",
    "Underway",
    "begin",
    "milliseconds_of",
    "minting",
    "moment",
]

JOB = "job"
LEASE = 30_000
PATIENCE = 250
"""The deadline of a command: for so long an unanswered one may still reach the server."""
DOUBT = 20
"""How far each bound of a clock lies from the server's true time. All times are in milliseconds."""
LIMITS = Limits(max_attempts=2, max_lost=1, backoff=Constant(LEASE / 1000))

_EPOCH = datetime(2026, 5, 4, 12, tzinfo=UTC)


@cache
def moment(milliseconds: int) -> datetime:
    """Returns a time of the server, counted from the start of the exploration."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


@cache
def milliseconds_of(time: datetime) -> int:
    """Returns the milliseconds from the start of the exploration."""
    return round((time - _EPOCH) / timedelta(milliseconds=1))


class Token(str):
    """A claim's token, told apart from other text so that it can be renamed."""

    __slots__ = ()


class Fault(Enum):
    """What a rule hears in place of a reply."""

    UNANSWERED = "unanswered"
    UNSENT = "unsent"
    TAKEN = "taken"

    def error(self) -> AxeqError:
        if self is Fault.TAKEN:
            return DuplicateKey()
        return StoreUnavailable("db", self.value, sent=self is Fault.UNANSWERED)


@dataclass(frozen=True, slots=True)
class Heard:
    """A reply, and what time it was."""

    server: int
    monotonic: int
    reply: Any


@dataclass(frozen=True, slots=True)
class Underway:
    """A rule that waits for the reply to `command`, or has ended with a `result` or an `error`."""

    rule: str
    inputs: tuple[Any, ...]
    heard: tuple[Heard, ...]
    command: Command | None = None
    result: Any = None
    error: str | None = None
    flat: list[Any] = field(default_factory=list, compare=False, repr=False)

    @property
    def began(self) -> int:
        """The server's time when it was started."""
        return self.heard[0].server

    def hear(self, server: int, monotonic: int, reply: Any) -> Underway:
        """Returns what becomes of it on a reply."""
        return _run(self.rule, self.inputs, (*self.heard, Heard(server, monotonic, reply)))


def begin(rule: str, server: int, monotonic: int, *inputs: Any) -> Underway:
    """Returns a rule with its first command."""
    return _run(rule, inputs, (Heard(server, monotonic, None),))


class _Clock:
    """The server's time as a rule sees it: whatever it was when the rule heard its last reply."""

    stale = unsure = False

    def __init__(self, heard: Heard) -> None:
        self.heard = heard

    def earliest(self) -> datetime:
        return moment(self.heard.server - DOUBT)

    def latest(self) -> datetime:
        return moment(self.heard.server + DOUBT)

    def monotonic(self) -> float:
        return self.heard.monotonic / 1000


def _run(rule: str, inputs: tuple[Any, ...], heard: tuple[Heard, ...]) -> Underway:
    clock = _Clock(heard[0])
    op = _RULES[rule](clock, *inputs)
    try:
        command = next(op)
        for clock.heard in heard[1:]:
            reply = clock.heard.reply
            command = op.throw(reply.error()) if isinstance(reply, Fault) else op.send(reply)
    except StopIteration as stop:
        return Underway(rule, inputs, heard, result=stop.value)
    except AxeqError as error:
        return Underway(rule, inputs, heard, error=type(error).__name__)
    finally:
        op.close()
    return Underway(rule, inputs, heard, command)


class _Mint:
    token: Token

    def __call__(self) -> Token:
        return self.token


_MINT = _Mint()


@contextmanager
def minting() -> Iterator[None]:
    """Has claims take the tokens that the exploration gives them, so that a replay mints the same one."""
    with mock.patch.object(lifecycle, "ObjectId", _MINT):
        yield


def _claim_one(clock: Any, token: Token, seen: Document) -> Op[list[Record]]:
    _MINT.token = token
    return lifecycle.claim_one(Candidate.of(seen), clock, worker="w", lease=LEASE / 1000, patience=PATIENCE / 1000)


def _claim_many(clock: Any, token: Token) -> Op[list[Record]]:
    _MINT.token = token
    return lifecycle.claim_many([JOB], clock, worker="w", lease=LEASE / 1000, patience=PATIENCE / 1000)


def _extend(clock: Any, token: Token) -> Op[lifecycle.Holding]:
    return lifecycle.extend([lifecycle.Held(JOB, token)], clock, lease=LEASE / 1000)


_ERROR = failure("ValueError", "bad")
_OUTCOMES: Mapping[str, Outcome] = {
    "complete": Completed(),
    "complete with result": Completed(1),
    "fail": Failed(_ERROR, delay=LEASE / 1000),
    "snooze": Snoozed(delay=LEASE / 1000),
    "release": Released("shutdown"),
    "cancel": Cancelled(Cause.HANDLER),
    "requested": Cancelled(Cause.REQUESTED, "asked"),
    "exhausted": Cancelled(Cause.EXHAUSTED),
}


def _settle(clock: Any, token: Token, held: Document, outcome: str) -> Op[Any]:
    now = clock.earliest()
    entry = settlement(Record(held), _OUTCOMES[outcome], LIMITS, clock, started_at=now, ended_at=now)
    return settle([entry], clock)


def _insert(clock: Any) -> Op[Stored]:
    return insert(Draft(name="task", version=1, queue="default", data={}, id=JOB), clock)


_RULES: Mapping[str, Callable[..., Op[Any]]] = {
    "claim_one": _claim_one,
    "claim_many": _claim_many,
    "extend": _extend,
    "settle": _settle,
    "insert": _insert,
    "cancel": lambda clock: manage.cancel(JOB, clock, reason="asked"),
    "retry": lambda clock: manage.retry(JOB, clock),
    "remove": lambda clock: manage.remove(JOB),
}
