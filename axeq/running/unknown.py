"""What a pool does about due jobs that none of its tasks understands: count, and leave, park or adopt them."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from axeq.documents.model import Binding, name_of
from axeq.faces.task import Task
from axeq.rules import manage
from axeq.rules.strangers import park, served
from axeq.running.plan import Plan, Whatever
from axeq.supply.hints import Hints
from axeq.supply.source import Source
from axeq.words.errors import ConfigurationError

__all__ = ["Unknown"]

_LOGGER = logging.getLogger("axeq.pool")
_CAP = 1000
_MOST_ADOPTED = 100
"""How many names are adopted at a time, over all queues."""
_ANY_VERSION = sys.maxsize


class Unknown:
    """Looks after due jobs in `sources` that are not of the pool's own tasks, in `versions`.

    `adopt` is told of a task for jobs of a name that no live pool serves, where the plan has a handler for those.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Mapping[str, Source],
        versions: Mapping[str, int],
        hints: Hints,
        adopt: Callable[[Task[Any, Any]], None],
    ) -> None:
        self._plan = plan
        self._store = plan.store
        self._sources = sources
        self._versions = versions
        self._hints = hints
        self._adopt = adopt
        self._adopted: dict[str, set[str]] = {}
        """The queues in which each name is adopted now."""

    @property
    def adopted(self) -> list[str]:
        """The names of other tasks whose jobs the pool runs."""
        return [name for name, queues in self._adopted.items() if queues]

    async def look(self, patience: float) -> None:
        """Counts such jobs, once the pool rests or at the latest after `patience` seconds, and does about them what
        the plan says.
        """
        with suppress(TimeoutError):  # its reads cost as much as a page or more: a busy pool has better to do
            await asyncio.wait_for(self._hints.resting(), patience)
        counts: Counter[str] = Counter()
        for queue, source in self._sources.items():
            counts.update(await self._look_after(queue, source))
        plan = self._plan
        for name in counts.keys() - plan.unknown.keys():
            done = "parked" if plan.strangers == "park" else "left alone"
            _LOGGER.warning("jobs of %r are due, and no task here understands them: %s", name, done)
            plan.hooks.tell("unknown", name, counts[name])
        plan.unknown.clear()
        plan.unknown.update(counts)

    async def _look_after(self, queue: str, source: Source) -> Mapping[str, int]:
        """Returns how many jobs of each name are still unknown in a queue."""
        clock, strangers = self._store.clock, self._plan.strangers
        if not isinstance(strangers, str):
            await self._withdraw(queue, source)
        versions = {**self._versions, **dict.fromkeys(self._adopted_in(queue), sys.maxsize)}
        counts = await self._store.arun(manage.count_unknown(queue, versions, clock, cap=_CAP))
        if strangers == "park" and counts.keys() - self._versions.keys():
            await self._store.arun(park(queue, self._versions, clock))
        if not isinstance(strangers, str):
            for name in await self._take_in(queue, source, counts):
                del counts[name]
        return counts

    async def _take_in(self, queue: str, source: Source, counts: Mapping[str, int]) -> list[str]:
        """Has the handler for strangers run the jobs of those names that no live pool serves, and returns those."""
        strange = [name for name in counts if name not in self._versions and _can_be_adopted(name)]
        if not strange:
            return []
        known = await self._store.arun(served(queue, self._store.clock))
        taken = [name for name in strange if name not in known]
        for name in taken:
            if not self._adopted.get(name) and len(self.adopted) >= _MOST_ADOPTED:
                continue
            if name not in self._adopted:
                self._adopted[name] = set()
                self._adopt(_whatever(name, self._plan.strangers))
            self._adopted[name].add(queue)
            source.feed.adopt(name, _ANY_VERSION)
        self._settle_doors()
        return [name for name in taken if queue in self._adopted.get(name, ())]

    async def _withdraw(self, queue: str, source: Source) -> None:
        """Leaves the jobs of adopted names to pools that have come to serve them."""
        mine = self._adopted_in(queue)
        known = await self._store.arun(served(queue, self._store.clock)) if mine else set()
        for name in known.intersection(mine):
            self._adopted[name].discard(queue)
            source.feed.give_up(name)
        self._settle_doors()

    def _adopted_in(self, queue: str) -> list[str]:
        return [name for name, queues in self._adopted.items() if queue in queues]

    def _settle_doors(self) -> None:
        """Has each queue give jobs only of names that are adopted there."""
        for queue, source in self._sources.items():
            source.foreign = frozenset(name for name, queues in self._adopted.items() if queue not in queues)


def _whatever(name: str, handler: Any) -> Task[Any, Any]:
    """Returns the task of a handler for jobs of a name, of whatever fields and version."""
    task: Task[Any, Any] = Task(Whatever, handler, name=name)
    task.binding = Binding(Whatever, name=name, version=_ANY_VERSION)
    return task


def _can_be_adopted(name: str) -> bool:
    try:
        return bool(name_of(name))
    except ConfigurationError:
        return False
