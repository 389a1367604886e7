"""One task in a pool: what is ready, what runs, and how many more to claim; and what all tasks share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from axeq.attempts.executor import Attempt
from axeq.faces.task import Task
from axeq.running.pace import Pace

__all__ = ["Lane", "Places"]

_AHEAD_SECONDS = 0.2
_MOST_AHEAD = 1000
_LONGEST_WAIT = 1.0
_UNSETTLED_SECONDS = 0.25
_LEAST_UNSETTLED = 200


class Places:
    """What the lanes of a pool share where only so many attempts may run in all of them together: `most`.

    They share what may be claimed ahead as well, so that the first lane to look does not claim for all places.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._running = 0
        self._line = 0
        self._lanes: list[Lane] = []
        self._handling = Pace()

    def add(self, lane: Lane) -> None:
        """Has a lane share the places."""
        self._lanes.append(lane)

    @property
    def open(self) -> bool:
        """Whether another attempt may start."""
        return self._running < self.most

    @property
    def free(self) -> int:
        """How many places no attempt has and none waits for."""
        return max(self.most - self._running - self._ready, 0)

    @property
    def room(self) -> int:
        """How many jobs to claim now in all lanes, by the measure of `Lane.wanted`."""
        ready = self._ready
        ahead = min(int(self._handling.rate * _AHEAD_SECONDS), _MOST_AHEAD)
        missing = self.most + ahead - self._running - ready
        return max(missing, 0) if self.most - self._running > ready or ready <= ahead // 2 else 0

    def take(self) -> None:
        """Counts an attempt that starts."""
        self._running += 1
        self._handling.begin()

    def give_back(self) -> None:
        """Counts an attempt that has ended."""
        self._running -= 1
        self._handling.end()

    def add_to_line(self) -> int:
        """Returns the number of an attempt in the line of those that wait for a place."""
        self._line += 1
        return self._line

    def in_turn(self) -> Iterable[Lane]:
        """Yields the lanes with an attempt that can start, one by one in the order of their claims, while there are
        places.
        """
        while self.open:
            waiting = [lane for lane in self._lanes if lane.startable]
            if not waiting:
                return
            yield min(waiting, key=lambda lane: lane.ready[0].in_line)

    @property
    def _ready(self) -> int:
        return sum(len(lane.ready) for lane in self._lanes)


class Lane:
    """The claimed jobs of one task: `ready` ones wait for one of its workers, `running` counts those that have
    one, `unsettled` those whose outcome is on its way to the store. `places` are shared with other lanes.
    """

    def __init__(self, task: Task[Any, Any], places: Places | None = None) -> None:
        self.task = task
        self.places = places
        self.ready: deque[Attempt] = deque()
        self.running = 0
        self.unsettled = 0
        self._handling = Pace()
        self._settling = Pace()
        self._indexes = list(range(task.workers))[::-1]
        if places is not None:
            places.add(self)

    @property
    def free(self) -> int:
        """How many workers have nothing to do and nothing waiting for them, and a place each to do it in."""
        free = self.task.workers - self.running - len(self.ready)
        if self.places is not None:
            free = min(free, self.places.free)
        return max(free, 0)

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
        ready = len(self.ready)
        missing = self.task.workers + ahead - self.running - ready
        if self.places is not None:
            # What is claimed when is up to the places: a lane that sat out a claim would lose its share of it.
            return max(min(missing + ahead, self.places.room), 0)
        return missing if self.running + ready < self.task.workers or ready <= ahead // 2 else 0

    @property
    def surplus(self) -> int:
        """How many of the ready jobs no worker will come to within a second: they were claimed when jobs were
        faster.
        """
        workers = self.task.workers if self.places is None else min(self.task.workers, self.places.most)
        return max(len(self.ready) - int(self._handling.rate * _LONGEST_WAIT) - workers, 0)

    @property
    def waits_for_place(self) -> bool:
        """Whether a worker is free, and no place for what it would do."""
        return self.running + len(self.ready) < self.task.workers and self.places is not None and not self.places.free

    @property
    def startable(self) -> bool:
        """Whether an attempt is ready and a worker free for it."""
        return bool(self.ready) and self.running < self.task.workers

    def add(self, attempt: Attempt) -> None:
        """Has an attempt wait for a worker."""
        if self.places is not None:
            attempt.in_line = self.places.add_to_line()
        self.ready.append(attempt)

    def start(self) -> Attempt | None:
        """Takes the next ready attempt for a free worker; None where there is neither, or no place."""
        if not self.ready or self.running >= self.task.workers:
            return None
        if self.places is not None:
            if not self.places.open:
                return None
            self.places.take()
        self.running += 1
        self._handling.begin()
        attempt = self.ready.popleft()
        attempt.worker_index = self._indexes.pop()
        return attempt

    def finish(self, attempt: Attempt) -> None:
        """Gives the worker of an attempt back."""
        self.running -= 1
        self._indexes.append(attempt.worker_index)
        self._handling.end()
        if self.places is not None:
            self.places.give_back()

    def settling(self) -> None:
        """Counts an outcome that is on its way to the store."""
        self.unsettled += 1
        self._settling.begin()

    def settled(self) -> None:
        """Counts an outcome that the store has taken, or has refused for good."""
        self.unsettled -= 1
        self._settling.end()
