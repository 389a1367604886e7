"""Runs rules without a server: canned replies in, the commands they yielded out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import mongomock
from bson.objectid import ObjectId
from mongomock.filtering import filter_applies

from axeq.documents.record import Document, Record
from axeq.wire.wire import Call, Change, Command, Find, Op, Sleep, Transaction, drive
from axeq.words.errors import StoreUnavailable

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
DOUBT = timedelta(milliseconds=40)
"""How far the two bounds of the scripted clock lie apart."""

UNANSWERED = StoreUnavailable("db:27017", "connection closed", sent=True)
UNSENT = StoreUnavailable("db:27017", "no server", sent=False)


class ScriptedClock:
    """The server's time between two bounds, moving only when a rule sleeps."""

    stale = unsure = False

    def __init__(self) -> None:
        self.elapsed = 0.0

    def earliest(self) -> datetime:
        return NOW + timedelta(seconds=self.elapsed)

    def latest(self) -> datetime:
        return self.earliest() + DOUBT

    def monotonic(self) -> float:
        return 1000.0 + self.elapsed

    def observe(self, server_time: datetime, sent: float, received: float) -> None:
        """Ignores the reading: the script says what time it is."""

    def doubt(self) -> None:
        """Ignores the doubt."""


@dataclass(frozen=True)
class Counted:
    """The driver's answer to a write."""

    matched_count: int = 0
    deleted_count: int = 0


@dataclass(frozen=True)
class Played:
    """A rule that has ended: what it returned, and what it asked the server."""

    result: Any
    commands: list[Command]

    @property
    def asked(self) -> list[Call | Find]:
        return asked(self.commands)


def play(
    rule: Op[Any],
    replies: Sequence[Any],
    *,
    clock: ScriptedClock | None = None,
    seen: list[Command] | None = None,
    changes: int | None = None,
) -> Played:
    """Runs `rule` to its end on `replies`; its commands are also added to `seen`, for a rule that raises.

    A reply that is an exception is raised, one that is callable is called with the command, and a final `...`
    repeats the one before it for ever. A sleep takes no reply and moves `clock`. A transaction's commands take
    theirs, and then its commit does. A change stream looks when it opens and at so many `changes`, and then lets
    the time pass; with None there are no streams.
    """
    commands: list[Command] = [] if seen is None else seen
    script = _script(replies)

    def execute(command: Command) -> Any:
        commands.append(command)
        if isinstance(command, Sleep):
            assert clock is not None, "a rule that sleeps is played with its clock"
            clock.elapsed += command.seconds
            return None
        if isinstance(command, Transaction):
            result = drive(command.rule(), execute)
            answer("the commit")
            return result
        if isinstance(command, Change):
            return None if changes is None else follow(command, changes)
        return answer(command)

    def follow(command: Change, changes: int) -> Any:
        for _ in range(1 + changes):
            found = drive(command.look(), execute)
            if found is not None:
                return found
        assert clock is not None, "a rule that waits is played with its clock"
        clock.elapsed += command.seconds
        return None

    def answer(asking: Any) -> Any:
        reply = next(script, ...)
        assert reply is not ..., f"no reply left for {asking}"
        reply = reply(asking) if callable(reply) else reply
        if isinstance(reply, BaseException):
            raise reply
        return reply

    result = drive(rule, execute)
    if ... not in replies:
        assert next(script, ...) is ..., "the rule ended before it had asked everything"
    return Played(result, commands)


def _script(replies: Sequence[Any]) -> Iterator[Any]:
    last: Any = None
    for reply in replies:
        while reply is ...:
            yield last
        last = reply
        yield reply


def asked(commands: Sequence[Command]) -> list[Call | Find]:
    """Returns the commands that went to the server."""
    return [command for command in commands if isinstance(command, Call | Find)]


def slept(commands: Sequence[Command]) -> float:
    """Returns how many seconds a rule slept in all."""
    return sum(command.seconds for command in commands if isinstance(command, Sleep))


def given_job(**fields: Any) -> Document:
    """Returns an enqueued job's document; `fields` replace its own, None takes one away."""
    document: Document = {
        "_id": ObjectId(),
        "name": "thumbnail",
        "queue": "default",
        "version": 1,
        "data": {},
        "state": "enqueued",
        "priority": 0,
        "created_at": NOW - timedelta(hours=1),
        "available_at": NOW - timedelta(seconds=1),
        "attempts": 0,
        "lost": 0,
        **fields,
    }
    return {key: value for key, value in document.items() if value is not None}


def held_job(**fields: Any) -> Document:
    """Returns a job that is in its first attempt."""
    claim = {"token": ObjectId(), "worker": "host:1:abc"}
    held = {"state": "dequeued", "claim": claim, "attempts": 1, "lost": 1, "available_at": NOW + timedelta(seconds=30)}
    return given_job(**{**held, **fields})


def held_record(**fields: Any) -> Record:
    return Record(held_job(**fields))


def matches(query: Mapping[str, Any], document: Document) -> bool:
    """Whether a filter takes a document."""
    return bool(filter_applies(query, document))


def changed(document: Document, update: Mapping[str, Any]) -> Document:
    """Returns what an update makes of a document."""
    collection = mongomock.MongoClient(tz_aware=True).db.jobs
    collection.insert_one(document)
    collection.update_one({"_id": document["_id"]}, update)
    found: Document = collection.find_one({"_id": document["_id"]})
    return found


def with_token_of(*documents: Document, **fields: Any) -> Callable[[Call], list[Document]]:
    """Answers a claim's read-back with `documents` as that claim left them: under the token that it asks for, and with
    `fields` in place of their own.
    """

    def reply(command: Any) -> list[Document]:
        claim = {"token": command.filter["claim.token"], "worker": "w"}
        return [{**document, "state": "dequeued", "claim": claim, **fields} for document in documents]

    return reply
