"""The jobs collection in memory: exactly the filters and updates that axeq's rules send, anything else refused aloud.

It is fast enough for millions of commands. `test_model.py` holds it to what mongomock makes of the same commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axeq.documents.record import Document
from axeq.wire.wire import JOBS, Call, Command, Find, Merge, Update
from axeq.words.errors import DuplicateKey

__all__ = ["Collection", "Counted", "NotUnderstood", "matches", "updated"]

_MISSING: Any = object()


class NotUnderstood(AssertionError):
    """A rule sent something that this stand-in does not know."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The answer to a write."""

    matched_count: int = 0
    deleted_count: int = 0


@dataclass(slots=True)
class Collection:
    """Documents by id. A stored document is never changed in place: a write puts another in its stead."""

    documents: dict[Any, Document] = field(default_factory=dict)

    def execute(self, command: Command) -> Any:
        """Carries out one command and returns its reply, or raises `DuplicateKey` as the wire does."""
        if isinstance(command, Find):
            return self._find(command)
        if not isinstance(command, Call) or command.collection != JOBS or command.method not in _METHODS:
            raise NotUnderstood(f"{command}")
        return _METHODS[command.method](self, *command.args, **command.kwargs)

    def _find(self, command: Find) -> list[Document]:
        if command.collection != JOBS or command.skip:
            raise NotUnderstood(f"{command}")
        found = [document for document in self.documents.values() if matches(command.filter, document)]
        for key, direction in reversed(command.sort or ()):
            found.sort(key=lambda document: document[key], reverse=direction < 0)
        found = found[: command.limit] if command.limit else found
        return [_projected(document, command.projection) for document in found]

    def _insert_one(self, document: Document) -> None:
        self._refuse_duplicate(document, inserting=True)
        self.documents[document["_id"]] = dict(document)

    def _insert_many(self, documents: Sequence[Document], *, ordered: bool) -> None:
        refused = []
        for position, document in enumerate(documents):
            try:
                self._insert_one(document)
            except DuplicateKey:
                refused.append(position)
                if ordered:
                    break
        if refused:
            raise DuplicateKey(refused)

    def _update_one(self, query: Mapping[str, Any], update: Mapping[str, Any]) -> Counted:
        return Counted(len(self._change(query, update, many=False)))

    def _update_many(self, query: Mapping[str, Any], update: Mapping[str, Any]) -> Counted:
        return Counted(len(self._change(query, update, many=True)))

    def _bulk_write(self, writes: Sequence[Update | Merge], *, ordered: bool) -> Counted:
        if ordered:
            raise NotUnderstood("an ordered bulk")
        updates = [each for write in writes for each in (write.singles() if isinstance(write, Merge) else [write])]
        return Counted(sum(len(self._change(each.filter, each.update, many=each.many)) for each in updates))

    def _find_one_and_update(
        self, query: Mapping[str, Any], update: Mapping[str, Any], *, return_document: bool
    ) -> Document | None:
        changed = self._change(query, update, many=False)
        if not return_document:
            raise NotUnderstood("the document as it was before")
        return changed[0] if changed else None

    def _delete_one(self, query: Mapping[str, Any]) -> Counted:
        found = next((document for document in self.documents.values() if matches(query, document)), None)
        if found is None:
            return Counted()
        del self.documents[found["_id"]]
        return Counted(deleted_count=1)

    def _change(self, query: Mapping[str, Any], update: Mapping[str, Any], *, many: bool) -> list[Document]:
        found = [document for document in self.documents.values() if matches(query, document)]
        changed = [updated(document, update) for document in (found if many else found[:1])]
        for document in changed:
            self._refuse_duplicate(document)
            self.documents[document["_id"]] = document
        return changed

    def _refuse_duplicate(self, document: Document, *, inserting: bool = False) -> None:
        if inserting and document["_id"] in self.documents:
            raise DuplicateKey
        if "label" not in document or "available_at" not in document:
            return
        for other in self.documents.values():
            same = other["name"] == document["name"] and other.get("label") == document["label"]
            if same and "available_at" in other and other["_id"] != document["_id"]:
                raise DuplicateKey


_METHODS: Mapping[str, Callable[..., Any]] = {
    "insert_one": Collection._insert_one,
    "insert_many": Collection._insert_many,
    "update_one": Collection._update_one,
    "update_many": Collection._update_many,
    "bulk_write": Collection._bulk_write,
    "find_one_and_update": Collection._find_one_and_update,
    "delete_one": Collection._delete_one,
}


def matches(query: Mapping[str, Any], document: Document) -> bool:
    """Whether a filter takes a document."""
    return all(_holds(key, wanted, document) for key, wanted in query.items())


def _holds(key: str, wanted: Any, document: Document) -> bool:
    if key == "$or":
        return any(matches(alternative, document) for alternative in wanted)
    if key.startswith("$"):
        raise NotUnderstood(f"filter {key}")
    value = _value(document, key)
    if not isinstance(wanted, Mapping):
        if wanted is None:
            raise NotUnderstood(f"filter {key}: None")
        return bool(value == wanted)
    if not wanted:
        raise NotUnderstood(f"filter {key}: {{}}")
    for operator, operand in wanted.items():
        if operator not in _TESTS:
            raise NotUnderstood(f"filter {key}: {operator}")
        if not _TESTS[operator](value, operand):
            return False
    return True


def _value(document: Document, key: str) -> Any:
    value: Any = document
    for part in key.split("."):
        value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
    return value


_TESTS: Mapping[str, Callable[[Any, Any], bool]] = {
    "$in": lambda value, operand: value in operand,
    "$exists": lambda value, operand: (value is not _MISSING) is operand,
    "$lte": lambda value, operand: value is not _MISSING and value <= operand,
    "$gt": lambda value, operand: value is not _MISSING and value > operand,
}


def updated(document: Document, update: Mapping[str, Any]) -> Document:
    """Returns what an update makes of a document."""
    result = dict(document)
    for operator, changes in update.items():
        if operator not in _CHANGES or not changes:
            raise NotUnderstood(f"update {operator}")
        for key, operand in changes.items():
            if "." in key or key == "_id":
                raise NotUnderstood(f"update of {key}")
            _CHANGES[operator](result, key, operand)
    return result


def _push(document: Document, key: str, operand: Mapping[str, Any]) -> None:
    if operand.keys() != {"$each", "$slice"} or operand["$slice"] >= 0:
        raise NotUnderstood(f"$push {operand}")
    document[key] = [*document.get(key, ()), *operand["$each"]][operand["$slice"] :]


_CHANGES: Mapping[str, Callable[[Document, str, Any], None]] = {
    "$set": lambda document, key, operand: document.__setitem__(key, operand),
    "$unset": lambda document, key, operand: document.pop(key, None) and None,
    "$inc": lambda document, key, operand: document.__setitem__(key, document.get(key, 0) + operand),
    "$max": lambda document, key, operand: document.__setitem__(key, max(document.get(key, operand), operand)),
    "$push": _push,
}


def _projected(document: Document, projection: Mapping[str, Any] | None) -> Document:
    if projection is None:
        return document
    shown: Document = {} if projection.get("_id") == 0 else {"_id": document["_id"]}
    for key, wanted in projection.items():
        value = _value(document, key) if wanted else _MISSING
        if value is not _MISSING:
            _put(shown, key.split("."), value)
    return shown


def _put(document: Document, path: Iterable[str], value: Any) -> None:
    *parents, last = path
    for parent in parents:
        document = document.setdefault(parent, {})
    document[last] = value
