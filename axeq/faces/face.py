"""What both faces of a queue share: how a payload becomes a draft, and which rule stores it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from axeq.documents.codec import fingerprint
from axeq.documents.model import LARGEST_PAYLOAD, Binding, bind, name_of
from axeq.faces.options import BATCH_OPTIONS, checked, labelled
from axeq.rules import batch, indexes, isolation
from axeq.rules.enqueue import Draft, Stored, insert
from axeq.rules.replacement import replace
from axeq.wire.store import Store, in_progress
from axeq.wire.wire import Op
from axeq.words.errors import ConfigurationError, ServerUnsuitable
from axeq.words.states import State

__all__ = ["Face"]

_TRUSTED = 60.0
"""For how many seconds an index that was there is relied on: a dropped collection takes its indexes with it."""


class Face:
    """What both faces know: the store, the queue's name, and how a payload becomes a draft."""

    def __init__(self, store: Store, name: str = "default", *, max_payload: int = 256 * 1024) -> None:
        if not isinstance(store, Store):
            raise ConfigurationError(f"a queue takes an axeq.Store, not {type(store).__name__}: Queue(Store(...))")
        if not (isinstance(max_payload, int) and 0 < max_payload <= LARGEST_PAYLOAD):
            raise ConfigurationError(f"max_payload must be 1 to {LARGEST_PAYLOAD:,} bytes, not {max_payload!r}")
        self.store = store
        self.name = name_of(name)
        self.max_payload = max_payload
        self._secured: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} on {self.store!r}>"

    def _draft(
        self, binding: Binding[Any, Any], payload: Any, options: Mapping[str, Any], *, unique: bool = False
    ) -> Draft:
        """Returns the draft of a payload; `options` are checked ones."""
        draft = Draft(
            name=binding.name,
            version=binding.version,
            queue=self.name,
            data=binding.encode(payload, self.max_payload, self.store.codec),
            **options,
        )
        if unique:
            if self.store.codec is not None:
                raise ConfigurationError("unique needs payloads that can be read, and this store seals them: use label")
            draft.label = f"unique:{fingerprint(draft.data)}"
        return draft

    def _drafted(
        self, payload: Any, name: str | None, options: Mapping[str, Any]
    ) -> tuple[Draft, Binding[Any, Any], Any]:
        """Returns the draft of a payload, its binding, and the session of the caller's transaction."""
        binding = bind(type(payload), name=name)
        terms = checked("enqueue", options)
        session, unique = terms.pop("session", None), terms.pop("unique", False)
        return self._draft(binding, payload, terms, unique=bool(unique)), binding, session

    def _all_drafted(
        self, payloads: Iterable[Any], name: str | None, options: Mapping[str, Any], label: Any
    ) -> tuple[list[Draft], list[Binding[Any, Any]], Any]:
        """Returns the drafts of payloads, their bindings, and the session of the caller's transaction."""
        given = options if label is None else {**options, "label": label}
        terms = checked("enqueue_many", given, BATCH_OPTIONS)
        session, unique = terms.pop("session", None), terms.pop("unique", False)
        terms.pop("label", None)
        if isinstance(payloads, BaseModel) or not isinstance(payloads, Iterable):
            raise ConfigurationError(
                f"enqueue_many takes a list of payloads, not a {type(payloads).__name__}: enqueue takes one"
            )
        payloads = list(payloads)
        bindings = [bind(type(payload), name=name) for payload in payloads]
        drafts = [
            self._draft(binding, payload, terms, unique=unique)
            for binding, payload in zip(bindings, payloads, strict=True)
        ]
        if label is not None:
            for draft, payload in zip(drafts, payloads, strict=True):
                draft.label = labelled(label, payload)
        return drafts, bindings, session

    def _placing(self, draft: Draft, *, joined: bool, transactions: bool) -> Op[Stored]:
        """Returns the rule that enqueues one job; `joined` in the caller's transaction."""
        clock = self.store.clock
        if draft.isolation is not None:
            if joined:
                return isolation.insert_isolated_joined(draft, clock)
            return isolation.insert_isolated(draft, clock, transactions=transactions)
        if joined:
            return batch.insert_one_joined(draft, clock, ignoring=draft.on_conflict == "ignore")
        return replace(draft, clock) if draft.on_conflict == "replace" else insert(draft, clock)

    def _placing_many(self, drafts: list[Draft], *, joined: bool, transactions: bool) -> Op[list[Stored]]:
        """Returns the rule that enqueues jobs that have labels, or are `joined` in the caller's transaction."""
        clock, ignoring = self.store.clock, drafts[0].on_conflict == "ignore"
        if joined:
            return batch.insert_joined(drafts, clock, ignoring=ignoring)
        if ignoring:
            return batch.insert_around(drafts, clock)
        if not transactions:
            raise ServerUnsuitable(
                "enqueue_many with labels stores all jobs or none, which takes transactions: run MongoDB as a replica "
                'set, pass on_conflict="ignore", or enqueue one by one'
            )
        return batch.insert_together(drafts, clock)

    def _unsecured(self, drafts: Iterable[Draft], session: Any) -> list[tuple[str, Op[None]]]:
        """Returns which indexes `drafts` rely on that were not looked after lately, each with the rule that does so. It
        runs by itself, never in the caller's transaction.
        """
        now = self.store.clock.monotonic()
        needed = [("label", any(draft.label is not None for draft in drafts))]
        needed.append(("isolation", any(draft.isolation is not None for draft in drafts)))
        return [
            (index, indexes.secure(index, self.store.place, beside_transaction=in_progress(session)))
            for index, is_needed in needed
            if is_needed and now >= self._secured.get(index, now)
        ]

    def _note_secured(self, index: str) -> None:
        self._secured[index] = self.store.clock.monotonic() + _TRUSTED

    def _announce(self, stored: Iterable[Stored]) -> None:
        self.store.announce([each.document for each in stored if each.document["state"] == State.ENQUEUED.value])
