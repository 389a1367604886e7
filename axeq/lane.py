"""One task in a pool: what is ready, what runs, and how many more to claim."""

from __future__ import annotations

from collections import deque
from typing import Any

from axeq.executor import Attempt
from axeq.pace import Pace
from axeq.task import Task

__all__ = ["Lane"]

_AHEAD_SECONDS = 0.2
_MOST_AHEAD = 1000
_LONGEST_WAIT = 1.0
_UNSETTLED_SECONDS = 0.25
_LEAST_UNSETTLED = 200


class Lane:
    """The claimed jobs of one task: `ready` ones wait for one of its workers, `running` counts those that have
    one, `unsettled` those whose outcome is on its way to the store.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        self.task = task
        self.ready: deque[Attempt] = deque()
        self.running = 0
        self.unsettled = 0
        self._handling = Pace()
        self._settling = Pace()

    @property
    def free(self) -> int:
        """How many workers have nothing to do and nothing waiting for them."""
        return max(self.task.workers - self.running - len(self.ready), 0)

    @property
    def wanted(self) -> int:
        """How many jobs to claim now: free workers, and as many ahead as are handled in 200 ms, so that slow
        jobs are never hoarded.

        0 until half of those ahead are used up, so that claims stay large, and while the store is a quarter of a
        second behind with outcomes: what is claimed then only waits.
        """
        if self.unsettled > max(self._settling.rate * _UNSETTLED_SECONDS, _LEAST_UNSETTLED):
            return 0
        ahead = min(int(self._handling.rate * _AHEAD_SECONDS), _MOST_AHEAD)
        missing = self.task.workers + ahead - self.running - len(self.ready)
        return missing if self.free or len(self.ready) <= ahead // 2 else 0

    @property
    def surplus(self) -> int:
        """How many of the ready jobs no worker will come to within a second: they were claimed when jobs were
        faster.
        """
        return max(len(self.ready) - int(self._handling.rate * _LONGEST_WAIT) - self.task.workers, 0)

    def start(self) -> Attempt | None:
        """Takes the next ready attempt for a free worker; None where there is neither."""
        if not self.ready or self.running >= self.task.workers:
            return None
        self.running += 1
        self._handling.begin()
        return self.ready.popleft()

    def finish(self) -> None:
        """Gives a worker back."""
        self.running -= 1
        self._handling.end()

    def settling(self) -> None:
        """Counts an outcome that is on its way to the store."""
        self.unsettled += 1
        self._settling.begin()

    def settled(self) -> None:
        """Counts an outcome that the store has taken, or has refused for good."""
        self.unsettled -= 1
        self._settling.end()
