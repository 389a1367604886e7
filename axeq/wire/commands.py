"""What rules yield: the commands, as data.

A rule is a generator of commands; `wire` carries them out, sync or async, and sends each reply back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = [
    "CONTROL",
    "ISOLATIONS",
    "JOBS",
    "WORKERS",
    "Abort",
    "Begin",
    "Call",
    "Change",
    "Command",
    "Commit",
    "Find",
    "Joined",
    "Merge",
    "Op",
    "Place",
    "SharedOp",
    "Sleep",
    "Transaction",
    "Update",
]

T = TypeVar("T")

JOBS = "jobs"
"""The collection of jobs, by the name that commands use."""
CONTROL = "control"
"""The collection of control documents, such as paused queues."""
WORKERS = "workers"
"""The collection of live pools."""
ISOLATIONS = "isolations"
"""The collection of markers that keep a label from being enqueued again for a while."""


@dataclass(frozen=True, slots=True)
class Call:
    """One command: a collection's method, as pymongo names it, and its arguments.

    `timeout` in seconds is its deadline, None the store's.
    """

    collection: str
    method: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Find:
    """One read; its reply is the list of documents. `limit` 0 reads all of them."""

    collection: str
    filter: Mapping[str, Any]
    projection: Mapping[str, Any] | None = None
    sort: Sequence[tuple[str, int]] | None = None
    limit: int = 0
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """One entry of a `bulk_write`: what `filter` matches, the first or `many`, is changed by `update`."""

    filter: Mapping[str, Any]
    update: Mapping[str, Any]
    many: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """One entry of a `bulk_write` for many documents: each of those in `fields`, by id, that `filter` matches takes
    on the fields of its own and loses those of `unset`.
    """

    filter: Mapping[str, Any]
    fields: Mapping[Any, Mapping[str, Any]]
    unset: Sequence[str]

    def singles(self) -> list[Update]:
        """Returns the same as an update for each document."""
        unset = dict.fromkeys(self.unset, "")
        return [
            Update({**self.filter, "_id": identity}, {"$set": fields, "$unset": unset})
            for identity, fields in self.fields.items()
        ]


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause of so many seconds before a rule goes on."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Transaction:
    """A rule, made anew by `rule` for every try, whose commands all happen or none does; its reply is what that
    rule returns.

    It may run several times, and its own failure undoes it. `timeout` in seconds bounds all tries together, None
    takes the store's. Inside a caller's transaction it joins that one. Where the reply is `StoreUnavailable` the
    commit may have happened.
    """

    rule: Callable[[], Op[Any]]
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """Begins the transaction that a rule and somebody else's code share. Only a wire of `sessions` knows this and the
    three commands that follow.
    """


@dataclass(frozen=True, slots=True)
class Joined:
    """A command inside that transaction; others of the rule stay outside."""

    command: Call | Find


@dataclass(frozen=True, slots=True)
class Commit:
    """Commits it, or asks once more whether it is committed. Where the reply is a failure it may be."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Undoes it, unless it has been committed or undone; the reply is never a failure."""


@dataclass(frozen=True, slots=True)
class Change:
    """A wait until a job among `ids` may have ended, by a change stream.

    The rule that `look` makes is run once the stream is open, so that nothing is missed, and after each change. The
    reply is the first thing that it returns but None; None after `seconds`, and at once where no stream can be had.
    """

    ids: Sequence[Any]
    look: Callable[[], Op[Any]]
    seconds: float


Command = Call | Find | Sleep | Transaction | Change
Op = Generator[Command, Any, T]
"""A rule under way: it yields commands, is sent replies, and returns a `T`."""
SharedOp = Generator[Command | Begin | Joined | Commit | Abort, Any, T]
"""A rule that shares a transaction with somebody else's code."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store's collections are, and on what terms.

    `host` names the server in errors, without credentials; `timeout` is each command's deadline in seconds, `selection`
    that of finding a server at all.
    """

    database: str
    collection: str = "jobs"
    host: str = "its address"
    timeout: float = 10.0
    selection: float = 10.0

    def name(self, collection: str) -> str:
        """Returns the real name of a collection that commands call by its short one."""
        return self.collection if collection == JOBS else f"{self.collection}.{collection}"
