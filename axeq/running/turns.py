"""Which jobs a claim takes: so many of each queue, and where tasks compete, so many of each task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from axeq.rules.due import Candidate
from axeq.running.lane import Lane
from axeq.supply.shares import Shares
from axeq.supply.source import Source

__all__ = ["Basket", "Pick", "Turns"]


@dataclass(slots=True)
class Pick:
    """What was taken off the board of one queue for one lane."""

    source: Source
    lane: Lane
    candidates: list[Candidate]


class Basket:
    """What has been taken off the boards for one claim, no more of each lane than that wants. Ids in `apart` are left
    out.
    """

    def __init__(self, lanes: Sequence[Lane], now: datetime, *, apart: Collection[Any]) -> None:
        self.picks: list[Pick] = []
        self._now = now
        self._apart = apart
        self._wanted = {lane.task.name: lane.wanted for lane in lanes}
        self._free = {lane.task.name: lane.free for lane in lanes}

    def take(self, source: Source, lane: Lane, count: int) -> int:
        """Takes up to `count` jobs of a lane off the board of a queue, and returns how many there were."""
        name = lane.task.name
        most = min(count, self._wanted.get(name, 0))
        if most < 1 or not source.is_open(name):
            return 0
        taken = source.board.take(name, most, self._now, idle=max(self._free[name], 0), apart=self._apart)
        if taken:
            self._wanted[name] -= len(taken)
            self._free[name] -= len(taken)
            self.picks.append(Pick(source, lane, taken))
        return len(taken)


class Turns:
    """Divides claims over queues by their weights, and what falls to a queue evenly over lanes that compete."""

    def __init__(
        self, sources: Iterable[Source], weights: Mapping[str, int], lanes: Mapping[str, Lane], *, strict: bool
    ) -> None:
        self._sources = {source.queue: source for source in sources}
        self._queues = Shares({queue: weights[queue] for queue in self._sources}, strict=strict)
        self._lanes = lanes
        self._tasks = {queue: Shares(dict.fromkeys(lanes, 1)) for queue in self._sources}

    def divide(self, count: int, basket: Basket) -> None:
        """Fills a basket with up to `count` jobs."""
        self._queues.portion(count, lambda queue, turns: self._use(queue, turns, basket))

    def _use(self, queue: str, turns: int, basket: Basket) -> int:
        source = self._sources[queue]
        return self._tasks[queue].portion(turns, lambda name, count: basket.take(source, self._lanes[name], count))
