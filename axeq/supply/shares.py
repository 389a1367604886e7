"""How turns are divided over those that wait for them: by order, or by weight over time. Pure; no clock, no IO."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from math import lcm
from typing import Generic, TypeVar

__all__ = ["Shares"]

K = TypeVar("K")


class Shares(Generic[K]):
    """Divides turns over keys by their `weights`, counting only turns that were used.

    Each key has a mark, how far it has come: a turn moves it on by the less the heavier it is, and the next turn
    is of the key that is furthest back. So keys that always have something share exactly by weight. One that
    had nothing for a while starts level with the others: it has neither saved turns nor lost any that it could
    have used. `strict` gives all turns to the heaviest that can use them; of equal ones, to the first.
    """

    def __init__(self, weights: Mapping[K, int], *, strict: bool = False) -> None:
        self._order = sorted(weights, key=lambda key: -weights[key])
        self._strict = strict
        whole = lcm(*weights.values()) if weights else 1
        self._steps = {key: whole // weights[key] for key in self._order}
        self._marks = dict.fromkeys(self._order, 0)
        self._level = 0
        """Where the keys that use their turns have come to at least."""

    @property
    def order(self) -> list[K]:
        """The keys, the heaviest first."""
        return list(self._order)

    def portion(self, count: int, use: Callable[[K, int], int]) -> int:
        """Has up to `count` turns used and returns how many were: `use` is told a key and how many turns it has,
        and returns how many it used. What one cannot use goes to the others.
        """
        left, able = count, self._order
        while left > 0 and able:
            asked = self.divide(left, able)
            used = {key: use(key, turns) for key, turns in asked.items()}
            self._note(used)
            left -= sum(used.values())
            spent = {key for key, turns in asked.items() if used[key] < turns}
            able = [key for key in able if key not in spent]
        return count - left

    def divide(self, count: int, among: Iterable[K]) -> dict[K, int]:
        """Returns how the next `count` turns are divided over `among`, without those that have none."""
        able = [key for key in self._order if key in set(among)]
        if self._strict or len(able) < 2:
            return {able[0]: count} if able and count > 0 else {}
        turns = dict.fromkeys(able, 0)
        queue = [(max(self._marks[key], self._level), place) for place, key in enumerate(able)]
        heapq.heapify(queue)
        for _ in range(count):
            mark, place = queue[0]
            turns[able[place]] += 1
            heapq.heapreplace(queue, (mark + self._steps[able[place]], place))
        return {key: given for key, given in turns.items() if given}

    def _note(self, used: Mapping[K, int]) -> None:
        level = self._level
        for key, turns in used.items():
            if turns:
                last = max(self._marks[key], level) + (turns - 1) * self._steps[key]
                self._marks[key] = last + self._steps[key]
                # Whoever could have used that turn was no further back.
                self._level = max(self._level, last)
