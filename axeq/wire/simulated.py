"""A wire to mongomock, which stands in for a server in users' unit tests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import bson
from bson.codec_options import CodecOptions

from axeq.documents.codec import CODEC_OPTIONS
from axeq.wire.wire import (
    Call,
    Change,
    Command,
    Find,
    Merge,
    Op,
    Place,
    Sleep,
    Transaction,
    Update,
    adrive,
    drive,
    translated,
)
from axeq.words.clock import Clock
from axeq.words.errors import ServerUnsuitable, StoreError

__all__ = ["SimulatedWire"]

T = TypeVar("T")


class SimulatedWire:
    """Runs rules on a mongomock database, sync or async, one command at a time.

    mongomock's find-and-modify is not atomic and its bulk writes break with current pymongo, so every command
    runs under one lock and a bulk goes as single updates. Documents and filters pass through BSON, so that they are
    what a server would have stored and sought.
    """

    def __init__(self, database: Any, place: Place, clock: Clock) -> None:
        self.clock = clock
        self._database = database
        self._place = place
        self._lock = threading.Lock()

    def run(self, op: Op[T]) -> T:
        """Runs a rule to its end."""
        return drive(op, self._execute)

    def close(self) -> None:
        """Does nothing: there is no connection."""

    async def arun(self, op: Op[T]) -> T:
        """Runs a rule to its end, sleeping without blocking the loop."""
        return await adrive(op, self._aexecute)

    async def _aexecute(self, command: Command) -> Any:
        if isinstance(command, Sleep):
            await asyncio.sleep(command.seconds)
            return None
        return self._execute(command)

    def _execute(self, command: Command) -> Any:
        if isinstance(command, Sleep):
            time.sleep(command.seconds)
            return None
        if isinstance(command, Transaction):
            raise ServerUnsuitable("mongomock has no transactions: use a replica set")
        if isinstance(command, Change):
            return None
        with self._lock, translated(self._place, self.clock):
            collection = self._database[self._place.name(command.collection)]
            if isinstance(command, Find):
                found = collection.find(
                    _as_sent(command.filter),
                    command.projection,
                    sort=list(command.sort) if command.sort else None,
                    limit=command.limit,
                    skip=command.skip,
                )
                return [_as_read(document) for document in found]
            return self._call(collection, command)

    def _call(self, collection: Any, command: Call) -> Any:
        args = command.args
        match command.method:
            case "bulk_write":
                writes: Sequence[Update | Merge] = args[0]
                updates = [
                    each for entry in writes for each in (entry.singles() if isinstance(entry, Merge) else [entry])
                ]
                return _Matched(sum(self._update(collection, update) for update in updates))
            case "create_indexes":
                return [_create_index(collection, specification) for specification in args[0]]
            case "list_indexes":
                return [{"name": name, **details} for name, details in collection.index_information().items()]
            case "aggregate":
                (pipeline,) = args
                return [_as_read(each) for each in collection.aggregate([_as_sent(stage) for stage in pipeline])]
            case "insert_one":
                args = (_as_sent(args[0]),)
            case "insert_many":
                args = ([_as_sent(document) for document in args[0]],)
            case "find_one_and_update" | "update_one" | "update_many":
                args = (_as_sent(args[0]), _as_sent(args[1]))
            case "count_documents" | "delete_one" | "delete_many":
                args = (_as_sent(args[0]),)
        try:
            reply = getattr(collection, command.method)(*args, **dict(command.kwargs))
        except TypeError as error:  # as of an $inc of text, which a server refuses
            raise StoreError(f"mongomock: {error}") from error
        return _as_read(reply) if isinstance(reply, dict) else reply

    def _update(self, collection: Any, entry: Update) -> int:
        update = collection.update_many if entry.many else collection.update_one
        return int(update(_as_sent(entry.filter), _as_sent(entry.update)).matched_count)


@dataclass(frozen=True, slots=True)
class _Matched:
    matched_count: int


def _create_index(collection: Any, specification: Mapping[str, Any]) -> str:
    keys = list(specification["key"].items())
    options = {key: value for key, value in specification.items() if key != "key"}
    partial = options.get("partialFilterExpression")
    if options.get("unique") and partial and "name" in options and _are_unique(collection.find(partial), keys):
        # mongomock would look at documents that the filter leaves out, too, and refuse jobs without labels.
        collection._store.create_index(
            options["name"], {"key": keys, "unique": True, "partialFilterExpression": partial}
        )
        return str(options["name"])
    return str(collection.create_index(keys, **options))


def _are_unique(documents: Iterable[Mapping[str, Any]], keys: Sequence[tuple[str, int]]) -> bool:
    values = [repr([document.get(key) for key, _ in keys]) for document in documents]
    return len(values) == len(set(values))


_STORED: CodecOptions[dict[str, Any]] = CodecOptions()
"""As mongomock can hold it: UUIDs and decimals in BSON's own types, and moments without a zone, which it drops of all
but the keys by which it keeps documents.
"""


def _as_sent(document: Mapping[str, Any]) -> dict[str, Any]:
    return bson.decode(bson.encode(document, codec_options=CODEC_OPTIONS), _STORED)


def _as_read(document: Mapping[str, Any]) -> dict[str, Any]:
    return bson.decode(bson.encode(document, codec_options=_STORED), CODEC_OPTIONS)
