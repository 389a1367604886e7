"""Breadth-first over everything that can happen: each moment once, the shortest way to what is broken."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from .interleaving_oracle import Broken, Ledger
from .interleaving_rules import DOUBT, JOB, minting, moment
from .interleaving_state import Moment, canonical, steps

__all__ = ["Explored", "explore"]


@dataclass(frozen=True, slots=True)
class Explored:
    """How much there was to see."""

    moments: int
    steps: int
    ended: int


def explore(
    *, outcomes: tuple[str, ...], outside: tuple[str, ...] = (), faults: int = 0, jumps: int = 0, most: int = 10**7
) -> Explored:
    """Goes through every interleaving of two pools and one job, and raises `Broken` with the way to the first breach.

    `outside` is what somebody outside does meanwhile, in this order; `faults` how many commands fail in one of three
    ways, `jumps` how often time moves on to just before or just after the next due time or lease end.
    """
    with minting():
        return _Search(most).run(_start(outcomes, outside, faults, jumps))


def _start(outcomes: tuple[str, ...], outside: tuple[str, ...], faults: int, jumps: int) -> Moment:
    document = {
        "_id": JOB,
        "name": "task",
        "queue": "default",
        "version": 1,
        "data": {},
        "state": "enqueued",
        "priority": 0,
        "created_at": moment(-DOUBT),
        "available_at": moment(-DOUBT),
        "attempts": 0,
        "lost": 0,
    }
    absent = "insert" in outside
    ledger = Ledger(stored=0 if absent else 1)
    return Moment(None if absent else document, 0, faults, jumps, outside, outcomes, ledger=ledger)


class _Search:
    def __init__(self, most: int) -> None:
        self._most = most
        self._numbers: dict[Any, int] = {}
        self._came: list[tuple[int, str]] = []
        self._before: list[list[int]] = []
        self._ended: list[int] = []
        self._hopeful: list[int] = []
        self._steps = 0

    def run(self, start: Moment) -> Explored:
        waiting = deque([start])
        self._number(start, -1, "")
        for number in count():
            if not waiting:
                break
            now = waiting.popleft()
            if now.over:
                self._ended.append(number)
            elif now.jumps:
                self._hopeful.append(number)
            waiting.extend(self._unseen(number, now))
        self._check_hope()
        return Explored(len(self._came), self._steps, len(self._ended))

    def _unseen(self, number: int, now: Moment) -> Iterator[Moment]:
        for name, step in steps(now):
            self._steps += 1
            try:
                after = step()
            except Broken as broken:
                raise Broken(f"{broken}, after: {', '.join([*self._path(number), name])}") from None
            if self._number(after, number, name):
                yield after

    def _number(self, now: Moment, before: int, name: str) -> bool:
        """Notes the way to a moment and returns whether it is new. Moments are numbered in the order of the search."""
        key = canonical(now)
        number = self._numbers.setdefault(key, len(self._came))
        if number < len(self._came):
            self._before[number].append(before)
            return False
        self._came.append((before, name))
        self._before.append([before])
        assert number < self._most, f"more than {self._most:,} moments"
        return True

    def _path(self, number: int) -> list[str]:
        names: list[str] = []
        while number > 0:
            number, name = self._came[number]
            names.insert(0, name)
        return names

    def _check_hope(self) -> None:
        """Raises `Broken` for a moment from which the job cannot come to an end, though time can still pass."""
        good = set(self._ended)
        waiting = deque(self._ended)
        while waiting:
            for before in self._before[waiting.popleft()]:
                if before >= 0 and before not in good:
                    good.add(before)
                    waiting.append(before)
        for number in self._hopeful:
            if number not in good:
                raise Broken(f"a job is lost, after: {', '.join(self._path(number))}")
