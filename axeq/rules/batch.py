"""The enqueue of many jobs: in one command, all or none where they have labels, or around those that are taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from axeq.documents.record import Document
from axeq.rules.enqueue import Draft, Stored, labelled, repeatable, repeated
from axeq.wire.wire import JOBS, Call, Find, Op, Transaction
from axeq.words.clock import Clock
from axeq.words.errors import DuplicateKey, LabelTaken

__all__ = ["insert_around", "insert_joined", "insert_many", "insert_one_joined", "insert_together"]

_LARGEST_LOOKUP = 1000
"""How many labels or ids one read asks for."""


def insert_many(drafts: Sequence[Draft], clock: Clock) -> Op[list[Document]]:
    """Stores jobs without labels in one command and returns their documents; retried as `insert` is."""
    documents = _documents(drafts, clock)

    def attempt(_: bool) -> Op[list[Document]]:
        with suppress(DuplicateKey):  # their ids are new, so an unanswered try stored those before
            yield Call(JOBS, "insert_many", (documents,), {"ordered": False})
        return documents

    return (yield from repeated(_ids(documents), clock, attempt, again=repeatable(documents)))


def insert_together(drafts: Sequence[Draft], clock: Clock) -> Op[list[Stored]]:
    """Stores jobs in a transaction, all of them or none; retried as `insert` is.

    Raises `LabelTaken` where a label is taken, also by another job of the same batch.
    """
    documents = _documents(drafts, clock)
    _refuse_twins(documents)

    def attempt(unanswered: bool) -> Op[list[Stored] | None]:
        try:
            yield Transaction(lambda: _sent(documents))
        except DuplicateKey as error:
            # All or none: where an unanswered try stored one that is still there, it stored them all.
            if not (unanswered and (yield from _present(documents))):
                refused = documents[error.positions[0]]
                if "label" in refused:
                    yield from labelled(refused, ignoring=False)
                return None
        return [Stored(document) for document in documents]

    return (yield from repeated(_ids(documents), clock, attempt, again=repeatable(documents)))


def insert_around(drafts: Sequence[Draft], clock: Clock) -> Op[list[Stored]]:
    """Stores those jobs whose labels are free, and returns for each what is stored, in order: itself, or the live job
    that has its label; retried as `insert` is.
    """
    documents = _documents(drafts, clock)
    firsts = _firsts(documents)
    answers: dict[Any, Stored] = {}

    def attempt(unanswered: bool) -> Op[list[Stored] | None]:
        waiting = [document for document in firsts.values() if document["_id"] not in answers]
        try:
            yield Call(JOBS, "insert_many", (waiting,), {"ordered": False})
        except DuplicateKey as error:
            refused = [waiting[position] for position in error.positions]
            answers.update((yield from _in_their_place(refused, unanswered)))
            stood = {document["_id"] for document in refused}
            waiting = [document for document in waiting if document["_id"] not in stood]
        answers.update((document["_id"], Stored(document)) for document in waiting)
        if len(answers) < len(firsts):
            return None  # what stood in the way of some has gone
        return [_answer(document, firsts[_key(document)], answers) for document in documents]

    return (yield from repeated(_ids(documents), clock, attempt, again=repeatable(documents)))


def insert_joined(drafts: Sequence[Draft], clock: Clock, *, ignoring: bool = False) -> Op[list[Stored]]:
    """Stores jobs inside the caller's transaction, which alone decides whether they exist.

    Labels are looked up first, for a duplicate key would abort the transaction; one taken in between is raised
    as such.
    """
    documents = _documents(drafts, clock)
    if not ignoring:
        _refuse_twins(documents)
    firsts = _firsts(documents)
    answers = yield from _holders(firsts.values(), whole=ignoring)
    for document in firsts.values():
        if document["_id"] not in answers:
            answers[document["_id"]] = Stored(document)
        elif not ignoring:
            existing = answers[document["_id"]].document["_id"]
            raise LabelTaken(document["name"], document["label"], existing_id=existing)
    waiting = [stored.document for stored in answers.values() if stored.created]
    try:
        if waiting:
            yield from _sent(waiting)
    except DuplicateKey as error:
        refused = waiting[error.positions[0]]
        raise LabelTaken(refused["name"], str(refused.get("label", refused["_id"])), aborted=True) from None
    return [_answer(document, firsts[_key(document)], answers) for document in documents]


def insert_one_joined(draft: Draft, clock: Clock, *, ignoring: bool = False) -> Op[Stored]:
    """Stores one job inside the caller's transaction, or returns the one that has its id already; otherwise as
    `insert_joined`.
    """
    if draft.id is not None:
        found = yield Find(JOBS, {"_id": draft.id}, limit=1)
        if found:
            return Stored(found[0], created=False)
    (stored,) = yield from insert_joined([draft], clock, ignoring=ignoring)
    return stored


def _documents(drafts: Sequence[Draft], clock: Clock) -> list[Document]:
    now = clock.earliest()
    return [draft.document(clock, now) for draft in drafts]


def _ids(documents: Sequence[Document]) -> list[Any]:
    return [document["_id"] for document in documents]


def _sent(documents: Sequence[Document]) -> Op[None]:
    yield Call(JOBS, "insert_many", (documents,))


def _key(document: Document) -> Any:
    """Returns what is unique about a job among those of a batch."""
    return (document["name"], document["label"]) if "label" in document else document["_id"]


def _firsts(documents: Sequence[Document]) -> dict[Any, Document]:
    """Returns the jobs of a batch that are to be stored, by their keys: of several with one label the first."""
    firsts: dict[Any, Document] = {}
    for document in documents:
        firsts.setdefault(_key(document), document)
    return firsts


def _answer(document: Document, first: Document, answers: dict[Any, Stored]) -> Stored:
    stored = answers[first["_id"]]
    return stored if document is first else Stored(stored.document, created=False)


def _refuse_twins(documents: Sequence[Document]) -> None:
    seen: dict[Any, Document] = {}
    for document in documents:
        if "label" in document and (first := seen.setdefault(_key(document), document)) is not document:
            raise LabelTaken(document["name"], document["label"], existing_id=first["_id"])


def _in_their_place(refused: Sequence[Document], unanswered: bool) -> Op[dict[Any, Stored]]:
    """Returns, by the ids of jobs that were refused, what an unanswered try has stored of them, or who has their
    labels; nothing for those whose label has become free.
    """
    present = (yield from _present(refused)) if unanswered else set()
    answers = {document["_id"]: Stored(document) for document in refused if document["_id"] in present}
    others = [document for document in refused if document["_id"] not in present]
    return {**(yield from _holders(others, whole=True)), **answers}


def _present(documents: Sequence[Document]) -> Op[set[Any]]:
    present: set[Any] = set()
    for part in _parts(_ids(documents)):
        found = yield Find(JOBS, {"_id": {"$in": part}}, {"_id": 1})
        present.update(document["_id"] for document in found)
    return present


def _holders(documents: Iterable[Document], *, whole: bool) -> Op[dict[Any, Stored]]:
    """Returns the live jobs that have the labels of `documents`, by the ids of those."""
    labelled: dict[str, dict[str, Any]] = {}
    for document in documents:
        if "label" in document:
            labelled.setdefault(document["name"], {})[document["label"]] = document["_id"]
    shown = None if whole else {"_id": 1, "label": 1}
    holders: dict[Any, Stored] = {}
    for name, ids in labelled.items():
        for part in _parts(list(ids)):
            live = {"name": name, "label": {"$in": part}, "available_at": {"$exists": True}}
            for holder in (yield Find(JOBS, live, shown)):
                holders[ids[holder["label"]]] = Stored(holder, created=False)
    return holders


def _parts(values: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _LARGEST_LOOKUP):
        yield list(values[start : start + _LARGEST_LOOKUP])
