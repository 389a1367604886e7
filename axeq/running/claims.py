"""Claims candidates for a pool: together where the server takes them so, else one by one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from axeq.rules.due import Candidate, cancel_flawed
from axeq.rules.lifecycle import Claim, claim_many, claim_one
from axeq.running.ceiling import Ceiling
from axeq.wire.store import Store
from axeq.words.errors import AccessDenied, StoreError, StoreUnavailable

__all__ = ["Claims"]

_LOGGER = logging.getLogger("axeq.pool")
_CLAIM_PATIENCE = 2.0
"""Seconds: an unanswered claim holds the pool up until then."""
_CLAIMED_A_SECOND = 1000
"""How many jobs a slow server claims together: large groups take longer."""


class Claims:
    """Claims jobs for a pool whose id is `worker`, for `lease` seconds each.

    `left_alone` are jobs that can neither be claimed nor cancelled: they are not to be tried again.
    """

    def __init__(self, store: Store, *, worker: str, lease: float) -> None:
        self._store = store
        self._worker = worker
        self._lease = lease
        self._ceiling = Ceiling(self._patience)
        self.left_alone: set[Any] = set()

    @property
    def most(self) -> int | None:
        """How many candidates to claim together now, so that the server answers in time; None for any number."""
        return self._ceiling.most

    async def claim(self, candidates: Sequence[Candidate]) -> Claim:
        """Claims candidates together; where the server refuses that, one by one, for the sake of the others.

        One that has lost a lease is claimed alone.
        """
        try:
            return await self._together(candidates)
        except (AccessDenied, StoreUnavailable):
            raise
        except StoreError as error:
            if len(candidates) == 1:
                await self._refused(candidates[0], error)
                return Claim()
        return await self._one_by_one(candidates)

    async def _one_by_one(self, candidates: Sequence[Candidate]) -> Claim:
        claims: list[Claim] = []
        for candidate in candidates:
            try:
                claims.append(await self.claim([candidate]))
            except StoreError as error:
                _LOGGER.warning("the rest of a refused claim is left for later: %s", error)
                break
        since = min((claim.since for claim in claims), default=float("inf"))
        return Claim((record for claim in claims for record in claim), since=since)

    async def claim_together(self, candidates: Sequence[Candidate]) -> Claim:
        """Claims candidates for one call: they have all lost equally many leases. Otherwise as `claim`."""
        if len(candidates) == 1:
            return await self.claim(candidates)
        patience = min(self._store.place.timeout, _CLAIM_PATIENCE + len(candidates) / _CLAIMED_A_SECOND)
        rule = claim_many(
            [candidate.id for candidate in candidates],
            self._store.clock,
            worker=self._worker,
            lease=self._lease,
            patience=patience,
            lost=candidates[0].lost,
        )
        try:
            return await self._store.arun(rule)
        except (AccessDenied, StoreUnavailable):
            raise
        except StoreError:
            return await self._one_by_one(candidates)

    async def _refused(self, candidate: Candidate, error: StoreError) -> None:
        """Ends a job that can never be claimed, or leaves it alone from now on."""
        if not await self._store.arun(cancel_flawed([candidate.id], self._store.clock.earliest())):
            self.left_alone.add(candidate.id)
            _LOGGER.error("job %s (%s) is left alone, its claim is refused: %s", candidate.id, candidate.name, error)

    async def _together(self, candidates: Sequence[Candidate]) -> Claim:
        clock, patience = self._store.clock, self._patience
        if len(candidates) == 1:
            rule = claim_one(candidates[0], clock, worker=self._worker, lease=self._lease, patience=patience)
            return await self._store.arun(rule)
        ids = [candidate.id for candidate in candidates]
        sent = clock.monotonic()
        try:
            records = await self._store.arun(
                claim_many(ids, clock, worker=self._worker, lease=self._lease, patience=patience)
            )
        except StoreUnavailable:
            self._ceiling.unanswered(len(ids))
            raise
        took = clock.monotonic() - sent
        if took < patience:
            self._ceiling.answered(len(ids), took)
        else:
            self._ceiling.unanswered(len(ids))
        return records

    @property
    def _patience(self) -> float:
        return min(self._store.place.timeout, _CLAIM_PATIENCE)
