"""The indexes of axeq's collections as data: created from here, and rendered into `indexes/` from here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axeq.wire.wire import ISOLATIONS, JOBS, Call, Op, Place
from axeq.words.errors import AccessDenied, DuplicateKey, IndexMissing, StoreError

__all__ = ["INDEXES", "Index", "ensure", "missing", "render", "secure"]

_LIVE = {"available_at": {"$exists": True}}


@dataclass(frozen=True, slots=True)
class Index:
    """One index: its keys in order, its options, which operations need it, and of which collection it is."""

    name: str
    keys: tuple[tuple[str, int], ...]
    needed_by: str
    shape: str
    options: Mapping[str, Any] = field(default_factory=dict)
    collection: str = JOBS

    @property
    def specification(self) -> dict[str, Any]:
        """The index as MongoDB's `createIndexes` takes it."""
        return {"key": dict(self.keys), "name": self.name, **self.options}


INDEXES: tuple[Index, ...] = (
    Index(
        "claim",
        (
            ("queue", 1),
            ("name", 1),
            ("priority", 1),
            ("available_at", 1),
            ("version", 1),
            ("lost", 1),
            ("_id", 1),
        ),
        "the board's reads of due jobs, by priority and due time; it covers them",
        "{queue, name, available_at: {$lte: now}, version: {$lte: v}} sorted by {priority, available_at}",
        {"partialFilterExpression": _LIVE},
    ),
    Index(
        "due",
        (("queue", 1), ("available_at", 1)),
        "the next due time of an idle pool, and the count of jobs that no task understands",
        "{queue, available_at: {$gt: now}} sorted by {available_at}, limit 1",
        {"partialFilterExpression": _LIVE},
    ),
    Index(
        "label",
        (("name", 1), ("label", 1)),
        "labels: unique among the live jobs of a task, freed when the job ends",
        "insert; {name, label, available_at: {$exists: true}}",
        {"unique": True, "partialFilterExpression": {"label": {"$exists": True}, **_LIVE}},
    ),
    Index(
        "retention",
        (("expire_at", 1),),
        "the server's removal of ended jobs when their retention has passed",
        "the TTL monitor",
        {"expireAfterSeconds": 0, "partialFilterExpression": {"expire_at": {"$exists": True}}},
    ),
    Index(
        "inspection",
        (("state", 1), ("queue", 1), ("finished_at", -1), ("name", 1), ("cause", 1)),
        "find, dead and stats of ended jobs, the last first, also by task; live jobs cost it nothing",
        "{state, queue, finished_at: {$exists: true}, name, cause} sorted by {finished_at: -1}",
        {"partialFilterExpression": {"finished_at": {"$exists": True}}},
    ),
    Index(
        "isolation",
        (("until", 1),),
        "the server's removal of markers whose isolation has passed, a minute later: a late look must find them",
        "the TTL monitor",
        {"expireAfterSeconds": 60},
        ISOLATIONS,
    ),
)


def ensure() -> Op[list[str]]:
    """Creates the indexes that are missing and returns the names of all; an existing equal index is left as it
    is.
    """
    names: list[str] = []
    for collection in _by_collection():
        names += yield from _created(collection)
    return names


def missing() -> Op[list[Index]]:
    """Returns the indexes that do not exist."""
    absent: list[Index] = []
    for collection in _by_collection():
        absent += yield from _missing_from(collection)
    return absent


def secure(name: str, place: Place, *, beside_transaction: bool = False) -> Op[None]:
    """Makes sure that the index called `name` exists, as the others of its collection.

    Creates it where the account may; raises `IndexMissing` where it may not and the index is not there. An open
    transaction of the caller's, which this runs beside, may hold what the creation waits for: nothing is created then.
    """
    wanted = next(index for index in INDEXES if index.name == name)
    purpose = f"serves {wanted.needed_by}"
    if beside_transaction:
        purpose += ", and cannot be created while your transaction is open; before you start it"
    else:
        try:
            yield from _created(wanted.collection)
        except AccessDenied:  # it may still exist: somebody else creates the indexes then
            pass
        else:
            return
    if wanted in (yield from _missing_from(wanted.collection)):
        raise IndexMissing(name, place.name(wanted.collection), purpose)


def _created(collection: str) -> Op[list[str]]:
    specifications = [index.specification for index in _by_collection()[collection]]
    try:
        names: list[str] = yield Call(collection, "create_indexes", (specifications,))
    except DuplicateKey:
        raise StoreError(  # no other index is unique
            "index 'label' cannot be created: several live jobs of one task have the same label; "
            "cancel or remove all but one of each, then run `axeq indexes ensure`"
        ) from None
    return names


def _missing_from(collection: str) -> Op[list[Index]]:
    present = {entry["name"] for entry in (yield Call(collection, "list_indexes"))}
    return [index for index in _by_collection()[collection] if index.name not in present]


def _by_collection() -> dict[str, list[Index]]:
    declared: dict[str, list[Index]] = {}
    for index in INDEXES:
        declared.setdefault(index.collection, []).append(index)
    return declared


def render() -> dict[str, str]:
    """Returns the files of `indexes/` by name: JSON for each collection, a mongosh script, and the page that says
    what needs what.
    """
    files = {f"{_shown(collection)}.json": _as_json(declared) for collection, declared in _by_collection().items()}
    return {**files, "create.js": _as_script(), "README.md": _as_page()}


def _shown(collection: str) -> str:
    return Place("").name(collection)


def _as_json(declared: Sequence[Index]) -> str:
    return json.dumps([index.specification for index in declared], indent=2) + "\n"


def _as_script() -> str:
    lines = [
        "// Creates axeq's indexes, for those whose application may not. Generated from axeq/rules/indexes.py.",
        '// mongosh "mongodb://localhost:27017/shop" indexes/create.js',
    ]
    for index in INDEXES:
        options = {"name": index.name, **index.options}
        collection = json.dumps(_shown(index.collection))
        lines.append(
            f"db.getCollection({collection}).createIndex({json.dumps(dict(index.keys))}, {json.dumps(options)});"
        )
    return "\n".join(lines) + "\n"


def _as_page() -> str:
    lines = [
        "# Indexes of axeq's collections",
        "",
        "Generated from `axeq/rules/indexes.py` by `axeq indexes render indexes`; a test fails when the two differ.",
        "A pool creates them when it starts. Where the application may not, somebody who may runs",
        "`axeq indexes ensure` or `mongosh URI indexes/create.js`.",
        "",
        "| collection | index | keys | options | needed by | query |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for index in INDEXES:
        keys = ", ".join(f"{key}: {direction}" for key, direction in index.keys)
        options = f"`{json.dumps(index.options)}`" if index.options else ""
        collection = _shown(index.collection)
        lines.append(
            f"| `{collection}` | `{index.name}` | `{{{keys}}}` | {options} | {index.needed_by} | `{index.shape}` |"
        )
    return "\n".join(lines) + "\n"
