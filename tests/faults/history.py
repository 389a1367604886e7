"""What became of each job in the store, in order, heard from the collection's change stream and not from axeq."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pymongo
from pymongo.errors import PyMongoError

__all__ = ["Change", "History", "changed"]

_CLOSED_AFTER = _SILENT_FOR = 15.0


@dataclass(frozen=True, slots=True)
class Change:
    """One write to a job: the document before (None: it was inserted) and after (None: it was removed)."""

    job: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


class History:
    """Records every change of the jobs in `collection` (without payloads) while entered, in a thread of its own.

    It goes on over a restart of the server, from where it was.
    """

    def __init__(self, uri: str, database: str, collection: str = "jobs") -> None:
        self._uri, self._database, self._collection = uri, database, collection
        self._documents: dict[Any, dict[str, Any]] = {}
        self._ending = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-history", daemon=True)
        self._resume: Mapping[str, Any] | None = None
        self._marker: str | None = None
        self._caught_up = threading.Event()
        self._failure: PyMongoError | None = None
        self.changes: list[Change] = []

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(30), "the change stream does not open"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(_CLOSED_AFTER)
        assert not self._thread.is_alive(), "the change stream does not close"

    def complete(self, seconds: float = 90.0) -> list[Change]:
        """Returns the changes up to now: it waits until a write of its own has come back."""
        self._caught_up.clear()
        self._marker = f"marker {time.monotonic_ns()}"
        with pymongo.MongoClient[dict[str, Any]](self._uri) as client:
            jobs = client[self._database][self._collection]
            jobs.insert_one({"_id": self._marker})
            jobs.delete_one({"_id": self._marker})
        assert self._caught_up.wait(seconds), (
            f"the change stream does not keep up: {len(self.changes)} changes, {self._failure!r:.500}"
        )
        return list(self.changes)

    def _run(self) -> None:
        with pymongo.MongoClient[dict[str, Any]](self._uri, serverSelectionTimeoutMS=2000) as client:
            while not self._ending.is_set():
                try:
                    self._listen(client)
                except PyMongoError as error:
                    self._failure = error
                    self._ending.wait(0.1)

    def _listen(self, client: pymongo.MongoClient[dict[str, Any]]) -> None:
        jobs = client[self._database][self._collection]
        with jobs.watch(resume_after=self._resume, max_await_time_ms=200) as stream:
            self._listening.set()
            heard_at = time.monotonic()
            while not self._ending.is_set():
                event = stream.try_next()
                self._resume = stream.resume_token
                if event is not None:
                    heard_at = time.monotonic()
                    self._heard(event)
                elif self._resume is not None and time.monotonic() - heard_at > _SILENT_FOR:
                    return  # a stand-in's stream fell silent for good, now and then: go on from where it was

    def _heard(self, event: Mapping[str, Any]) -> None:
        identity = event.get("documentKey", {}).get("_id")
        if isinstance(identity, str) and identity.startswith("marker "):
            if identity == self._marker and event["operationType"] == "delete":
                self._caught_up.set()
            return
        before = self._documents.get(identity)
        match event["operationType"]:
            case "insert" | "replace":
                document = event["fullDocument"]
                after: dict[str, Any] | None = {key: value for key, value in document.items() if key != "data"}
            case "update":
                after = changed(before or {"_id": identity}, event["updateDescription"])
            case "delete":
                after = None
            case _:
                return
        if after is None:
            self._documents.pop(identity, None)
        else:
            self._documents[identity] = after
        self.changes.append(Change(str(identity), before, after))


def changed(document: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `document` after the update that a change event describes."""
    after = deepcopy(dict(document))
    for path, value in (description.get("updatedFields") or {}).items():
        _put(after, path, value)
    for path in description.get("removedFields") or ():
        holder, _, last = path.rpartition(".")
        _holder(after, holder).pop(last, None)
    return after


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    holder, _, last = path.rpartition(".")
    found = _holder(document, holder)
    if isinstance(found, list):
        position = int(last)
        found[position:] = [value, *found[position + 1 :]]
    else:
        found[last] = value


def _holder(document: dict[str, Any], path: str) -> Any:
    found: Any = document
    for part in filter(None, path.split(".")):
        found = found[int(part)] if isinstance(found, list) else found.setdefault(part, {})
    return found
