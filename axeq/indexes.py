"""The indexes of the jobs collection as data: created from here, and rendered into `indexes/` from here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from axeq.errors import AccessDenied, IndexMissing
from axeq.wire import JOBS, Call, Op

__all__ = ["INDEXES", "Index", "ensure", "missing", "render", "secure"]

_LIVE = {"available_at": {"$exists": True}}


@dataclass(frozen=True, slots=True)
class Index:
    """One index: its keys in order, its options, and which operations need it."""

    name: str
    keys: tuple[tuple[str, int], ...]
    needed_by: str
    shape: str
    options: Mapping[str, Any] = field(default_factory=dict)

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
        (("state", 1), ("queue", 1), ("finished_at", -1)),
        "find and stats of ended jobs, the last first; live jobs cost it nothing",
        "{state, queue, finished_at: {$exists: true}} sorted by {finished_at: -1}",
        {"partialFilterExpression": {"finished_at": {"$exists": True}}},
    ),
)


def ensure() -> Op[list[str]]:
    """Creates the indexes that are missing and returns the names of all; an existing equal index is left as it
    is.
    """
    names: list[str] = yield Call(JOBS, "create_indexes", ([index.specification for index in INDEXES],))
    return names


def missing() -> Op[list[Index]]:
    """Returns the indexes that do not exist."""
    present = {entry["name"] for entry in (yield Call(JOBS, "list_indexes"))}
    return [index for index in INDEXES if index.name not in present]


def secure(name: str, collection: str) -> Op[None]:
    """Makes sure that the index called `name` exists.

    Creates it where the account may; raises `IndexMissing` where it may not and the index is not there.
    """
    try:
        yield from ensure()
        return
    except AccessDenied:
        pass  # it may still exist: somebody else creates the indexes then
    for index in (yield from missing()):
        if index.name == name:
            raise IndexMissing(index.name, collection, f"serves {index.needed_by}")


def render() -> dict[str, str]:
    """Returns the files of `indexes/` by name: JSON, a mongosh script, and the page that says what needs what."""
    return {"jobs.json": _as_json(), "create.js": _as_script(), "README.md": _as_page()}


def _as_json() -> str:
    return json.dumps([index.specification for index in INDEXES], indent=2) + "\n"


def _as_script() -> str:
    lines = [
        "// Creates axeq's indexes, for those whose application may not. Generated from axeq/indexes.py.",
        '// mongosh "mongodb://localhost:27017/shop" indexes/create.js',
    ]
    for index in INDEXES:
        options = {"name": index.name, **index.options}
        lines.append(f"db.jobs.createIndex({json.dumps(dict(index.keys))}, {json.dumps(options)});")
    return "\n".join(lines) + "\n"


def _as_page() -> str:
    lines = [
        "# Indexes of the jobs collection",
        "",
        "Generated from `axeq/indexes.py` by `axeq indexes render indexes`; a test fails when the two differ.",
        "A pool creates them when it starts. Where the application may not, somebody who may runs",
        "`axeq indexes ensure` or `mongosh URI indexes/create.js`.",
        "",
        "| index | keys | options | needed by | query |",
        "| --- | --- | --- | --- | --- |",
    ]
    for index in INDEXES:
        keys = ", ".join(f"{key}: {direction}" for key, direction in index.keys)
        options = f"`{json.dumps(index.options)}`" if index.options else ""
        lines.append(f"| `{index.name}` | `{{{keys}}}` | {options} | {index.needed_by} | `{index.shape}` |")
    return "\n".join(lines) + "\n"
