"""Lagged dequeue: how long a pool leaves a job to others, so that they do not all go for it at once."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from axeq.rules.due import Candidate

__all__ = ["Lag", "RandomLag", "RankedLag"]

_SHORTEST_STEP = 0.01
_CLAIMS, _LATEST_SHARE = 3.0, 0.1
_ATTEMPTS_JUDGED = 200
_FEW, _MANY = 0.005, 0.02
_MIX = 0x9E3779B97F4A7C15  # 2 ** 64 / golden ratio (Knuth, The Art of Computer Programming, 6.4)


class Lag(Protocol):
    """Says how a pool competes for a candidate."""

    def delay(self, candidate: Candidate) -> tuple[bool, float]:
        """Returns whether the candidate is this pool's own, and for how many seconds the pool leaves it alone."""
        ...

    def raced(self, attempted: int, lost: int, took: float) -> None:
        """Takes note of a claim of `took` seconds: so many candidates were gone for, so many of them went to others."""
        ...


class RandomLag:
    """Leaves every job alone for a random part of `max_lag` seconds; needs to know nothing of other pools.

    `chance` (0 to 1) is replaced in tests.
    """

    def __init__(self, max_lag: float, *, chance: Callable[[], float] = random.random) -> None:
        self._max_lag = max_lag
        self._chance = chance

    def delay(self, candidate: Candidate) -> tuple[bool, float]:
        return True, self._max_lag * self._chance()

    def raced(self, attempted: int, lost: int, took: float) -> None:
        """Does nothing: chance does not learn."""


class RankedLag:
    """Leaves a job alone one step for each live pool that goes before this one, at most `max_lag` seconds.

    The order of pools differs from job to job: it is the rendezvous order of (job id, pool), so that each pool
    is first for its share, and a lone pool for everything. The step grows while many claims are lost to others,
    and shrinks while few are.
    """

    def __init__(self, worker: str, max_lag: float) -> None:
        self._own = _salt(worker)
        self._max_lag = max_lag
        self._others: dict[str, list[int]] = {}
        self._attempted = self._lost = 0
        self._took = 0.0
        self._wider = 1.0

    def meet(self, pools: Mapping[str, Iterable[str]]) -> bool:
        """Learns which other pools are live: their ids, and the names of the tasks that each serves. Returns whether
        that is news.
        """
        others: dict[str, list[int]] = {}
        for worker, names in pools.items():
            salt = _salt(worker)
            for name in names:
                if salt != self._own:
                    others.setdefault(name, []).append(salt)
        news = others != self._others
        self._others = others
        return news

    @property
    def step(self) -> float:
        """The seconds for one pool that goes before: enough for its claim to be seen, and more while many are lost."""
        return min(max(_SHORTEST_STEP, _CLAIMS * self._took) * self._wider, self._max_lag)

    def rank(self, candidate: Candidate) -> int:
        """Returns how many live pools go before this one for the candidate."""
        others = self._others.get(candidate.name)
        if not others:
            return 0
        key = _key(candidate.id)
        own = _weight(key, self._own)
        return sum(_weight(key, other) > own for other in others)

    def delay(self, candidate: Candidate) -> tuple[bool, float]:
        rank = self.rank(candidate)
        return rank == 0, min(rank * self.step, self._max_lag)

    def raced(self, attempted: int, lost: int, took: float) -> None:
        self._took += (took - self._took) * _LATEST_SHARE
        self._attempted += attempted
        self._lost += lost
        if self._attempted < _ATTEMPTS_JUDGED:
            return
        share = self._lost / self._attempted
        if share > _MANY:
            if self.step < self._max_lag:  # a wider one would change nothing, and take long to narrow again
                self._wider *= 1.5
        elif share < _FEW:
            self._wider = max(self._wider * 0.9, 1.0)
        self._attempted = self._lost = 0


def _key(identity: Any) -> int:
    return zlib.crc32(getattr(identity, "binary", None) or repr(identity).encode())


def _salt(worker: str) -> int:
    return zlib.crc32(worker.encode())


def _weight(key: int, salt: int) -> int:
    # A product of the two would rank pools alike for many jobs; mixing their exclusive or does not.
    mixed = ((key ^ salt) * _MIX) & 0xFFFFFFFFFFFFFFFF
    return ((mixed ^ (mixed >> 32)) * _MIX) & 0xFFFFFFFFFFFFFFFF
