"""The pool's rounds: see what is due, claim as much as the workers want, hand it to the crew."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from axeq.attempts.leases import Leases
from axeq.documents.record import Record
from axeq.rules.due import Candidate
from axeq.running.claims import Claims
from axeq.running.crew import Crew
from axeq.running.lane import Lane
from axeq.running.rounds import LONGEST_REST, Rounds
from axeq.running.turns import Basket, Pick, Turns
from axeq.supply.hints import Hints
from axeq.supply.shares import Shares
from axeq.supply.source import Source
from axeq.wire.store import Store

__all__ = ["Dispatcher"]

_UNHEALTHY_REST = 1.0


class Dispatcher(Rounds):
    """Claims jobs for the lanes, a batch at a time, until told to end.

    `sources` are the pool's queues by name, `weights` theirs; `strict` leaves the lighter alone while heavier ones
    have jobs. Lanes of `Places` are seen as one, for what one of them takes the others cannot have. `worker` is the
    pool's id, `lease` in seconds.
    """

    def __init__(
        self,
        store: Store,
        lanes: Mapping[str, Lane],
        *,
        sources: Mapping[str, Source],
        weights: Mapping[str, int],
        strict: bool,
        hints: Hints,
        crew: Crew,
        leases: Leases,
        counts: Counter[str],
        worker: str,
        lease: float,
    ) -> None:
        super().__init__()
        self._store = store
        self._lanes = lanes
        self._hints = hints
        self._crew = crew
        self._leases = leases
        self._counts = counts
        self._claims = Claims(store, worker=worker, lease=lease)
        self._strict = strict
        self._weights = weights
        self._sources = [sources[queue] for queue in Shares(weights).order]
        self._turns: dict[str, Turns] = {}

    def renew(self) -> None:
        """Takes note that there are more lanes."""
        self._turns.clear()
        self.wake()

    async def _round(self) -> float:
        """Claims once for every lane that wants jobs, and returns the seconds to rest, 0 for none."""
        if not self._leases.healthy:
            return _UNHEALTHY_REST
        if not self._lanes:
            self._hints.idle()
            return LONGEST_REST
        hungry = [lane for lane in self._lanes.values() if lane.wanted and self._open(lane)]
        if not hungry:
            self._hints.busy()
            return LONGEST_REST
        await self._look(hungry)
        claimed = 0
        for lanes in _competing(hungry):
            claimed += await self._claim(lanes)
        waiting = [lane for lane in hungry if lane.wanted and not self._holds_back(lane)]
        if claimed or any(source.unread(lane.task.name) for lane in waiting for source in self._open(lane)):
            return 0
        if not waiting:  # a worker that gets free, or an outcome that is stored, begins the next round
            return LONGEST_REST
        for source in self._sources:
            await source.feed.expect()
        self._hints.idle()
        return min(LONGEST_REST, *(source.feed.pause() for source in self._sources))

    def _failed(self) -> None:
        for source in self._sources:  # what a claim took off the boards is due as before, or soon again
            source.feed.doubt()

    def _open(self, lane: Lane) -> list[Source]:
        """Returns the queues of which a lane may claim jobs now, in order."""
        return [source for source in self._sources if source.is_open(lane.task.name)]

    async def _look(self, hungry: Sequence[Lane]) -> None:
        """Reads what is due where a board is out of date or runs short."""
        looks = []
        for source in self._sources:
            wanted = {lane.task.name: lane.wanted for lane in hungry if source.is_open(lane.task.name)}
            if not wanted:
                continue
            if len(self._sources) == 1 or self._strict:
                await source.look(wanted)
            else:
                looks.append(source.look(wanted))
            if self._strict and all(source.board.count_own(name) >= count for name, count in wanted.items()):
                return
        if looks:
            await asyncio.gather(*looks)

    async def _claim(self, lanes: Sequence[Lane]) -> int:
        """Claims for lanes that compete with each other, and returns how many jobs."""
        claimed = 0
        for lane in lanes:
            claimed += await self._claim_lost(lane)
        held = [lane for lane in lanes if self._holds_back(lane)]
        if held:
            lanes = [] if any(lane.waits_for_place for lane in held) else [lane for lane in lanes if lane not in held]
        picks = self._picked(lanes) if lanes else []
        if not picks:
            return claimed
        candidates = [candidate for pick in picks for candidate in pick.candidates]
        sent = time.monotonic()
        records = await self._claims.claim(candidates)
        self._crew.take_on(records, since=records.since)
        self._raced(picks, records, time.monotonic() - sent)
        return claimed + len(records)

    def _picked(self, lanes: Sequence[Lane]) -> list[Pick]:
        """Takes what to claim now off the boards: as many as the lanes want and the server can give in time, divided
        over queues and lanes. The rest stays for the next claim.
        """
        most = lanes[0].wanted if lanes[0].places is None else lanes[0].places.room
        if self._claims.most is not None:
            most = min(most, self._claims.most)
        basket = Basket(lanes, self._store.clock.earliest(), apart=self._apart)
        if len(self._sources) == 1 and len(lanes) == 1:
            basket.take(self._sources[0], lanes[0], most)
        else:
            self._turns_of(lanes[0]).divide(most, basket)
        return basket.picks

    def _turns_of(self, lane: Lane) -> Turns:
        """Returns the turns of a lane, or of all lanes that share its places."""
        key = lane.task.name if lane.places is None else ""
        if key not in self._turns:
            lanes = {lane.task.name: lane} if lane.places is None else dict(self._lanes)
            self._turns[key] = Turns(self._sources, self._weights, lanes, strict=self._strict)
        return self._turns[key]

    def _holds_back(self, lane: Lane) -> bool:
        """Whether the next in order is a job that has lost a lease, and no worker is free for it.

        Jobs claimed ahead would keep every worker from it, for as long as there are any.
        """
        if lane.free:
            return False
        now, name = self._store.clock.earliest(), lane.task.name
        for source in self._open(lane):
            if source.board.lost_first(name, now, most_lost=self._most_lost, apart=self._apart):
                return True
            if self._strict and source.board.count_own(name):
                return False
        return False

    async def _claim_lost(self, lane: Lane) -> int:
        """Claims jobs that have lost a lease: each alone, and only for a worker that is free now."""
        claimed = 0
        for _ in range(lane.free):
            candidate = self._take_lost(lane)
            if candidate is None:
                break
            records = await self._claims.claim([candidate])
            self._crew.take_on(records, since=records.since)
            claimed += len(records)
            if not records:  # another pool's now, or the claim had no answer
                for source in self._open(lane):
                    source.board.expect_more(lane.task.name, True)
        return claimed

    def _take_lost(self, lane: Lane) -> Candidate | None:
        now, name = self._store.clock.earliest(), lane.task.name
        for source in self._open(lane):
            found = source.board.take_lost(name, now, most_lost=self._most_lost, apart=self._apart)
            if found is not None or (self._strict and source.board.count_own(name)):
                return found
        return None

    def _raced(self, picks: Sequence[Pick], records: Sequence[Record], took: float) -> None:
        """Has the lags of the queues learn from a claim, and the boards expect more where it took something off."""
        got = Counter(record.queue for record in records) if len(self._sources) > 1 else None
        tried: Counter[Source] = Counter()
        for pick in picks:
            pick.source.board.expect_more(pick.lane.task.name, True)
            tried[pick.source] += len(pick.candidates)
        for source, attempted in tried.items():
            lost = attempted - (len(records) if got is None else got[source.queue])
            source.lag.raced(attempted, lost, took)
            self._counts["attempted"] += attempted
            self._counts["raced"] += lost

    @property
    def _most_lost(self) -> int | None:
        """How many leases a job may have lost to be claimed now; None for any number."""
        return 1 if self._crew.watches_suspect else None

    @property
    def _apart(self) -> Collection[Any]:
        """The jobs that must not be claimed here."""
        left_alone = self._claims.left_alone
        return left_alone.union(self._crew.ids) if left_alone else self._crew.ids


def _competing(lanes: Sequence[Lane]) -> list[list[Lane]]:
    """Returns the lanes in groups of those that share places."""
    alone = [[lane] for lane in lanes if lane.places is None]
    sharing = [lane for lane in lanes if lane.places is not None]
    return [*alone, sharing] if sharing else alone
