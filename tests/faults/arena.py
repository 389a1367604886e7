"""A scenario's own database: the jobs in it, the workers on it, and the evidence that both leave."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pymongo

import axeq
from axeq.documents.codec import CODEC_OPTIONS
from tests.faults.checker import Breach, Enqueued, Evidence, breaches
from tests.faults.history import History
from tests.faults.processes import Settings, Workers
from tests.support.waiting import until

__all__ = ["Arena"]


class Arena:
    """A database of the server at `uri`. Workers reach it through `through` (a proxy's URI) where that is given."""

    def __init__(self, uri: str, database: str, folder: Path, *, through: str = "", **settings: Any) -> None:
        self.database = database
        self.uri = urlunsplit(urlsplit(uri)._replace(path=f"/{database}"))
        self.through = through or self.uri
        self.client = pymongo.MongoClient[dict[str, Any]](self.uri)
        self.jobs = self.client.get_database(database, codec_options=CODEC_OPTIONS)["jobs"]
        self.workers = Workers(folder, Settings(**{"uri": self.through, **settings}))
        self.lease = settings.get("lease", Settings("").lease)
        self.enqueued: list[Enqueued] = []

    @contextmanager
    def queue(self, *, through: bool = False, timeout: float = 10.0) -> Iterator[axeq.Queue]:
        """Opens a queue, with its indexes, on the server itself or by way of the proxy."""
        with axeq.Store(self.through if through else self.uri, timeout=timeout) as store:
            queue = axeq.Queue(store)
            queue.ensure_indexes()
            yield queue

    def history(self) -> History:
        """Returns a record of every change from its entry on."""
        return History(self.uri, self.database)

    def promised(self, jobs: Iterable[axeq.Job[Any, Any]], *, prompt: bool = True) -> None:
        """Notes enqueues that have returned."""
        self.enqueued.extend(promise(job, prompt=prompt) for job in jobs)

    def count(self, *states: str) -> int:
        """Returns how many jobs are in one of `states`."""
        return self.jobs.count_documents({"state": {"$in": list(states)}})

    def ended(self) -> int:
        """Returns how many jobs have completed or were cancelled."""
        return self.count("completed", "cancelled")

    def drained(self, total: int, *, seconds: float) -> None:
        """Waits until `total` jobs have ended."""
        until(lambda: self.ended() >= total, seconds=seconds, what=lambda: f"{total} jobs ended: {self.states()}")

    def states(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for document in self.jobs.find({}, {"state": 1}):
            counts[document["state"]] = counts.get(document["state"], 0) + 1
        return counts

    def documents(self) -> dict[str, dict[str, Any]]:
        return {str(document["_id"]): document for document in self.jobs.find()}

    def evidence(self, history: History | None = None, **facts: Any) -> Evidence:
        """Returns all that is known of the run."""
        ahead, doubt = self._server_ahead()
        return Evidence(
            documents=self.documents(),
            executions=self.workers.executions(),
            enqueued=self.enqueued,
            history=history.complete() if history is not None else (),
            harms=self.workers.harms,
            usage=self.workers.usage,
            leaks=self.workers.deserters(),
            server_ahead=ahead,
            **{"lease": self.lease, "clock_tolerance": Evidence.clock_tolerance + doubt, **facts},
        )

    def breaches(self, history: History | None = None, **facts: Any) -> Sequence[Breach]:
        """Returns what the checker finds in the evidence."""
        return breaches(self.evidence(history, **facts))

    def _server_ahead(self) -> tuple[float, float]:
        """Returns the server's clock less this machine's, and by how much that may be wrong: of ten looks the quickest
        one.
        """
        looks: list[tuple[float, float]] = []
        for _ in range(10):
            sent = time.time()
            moment: datetime = self.client.admin.command("hello")["localTime"]
            received = time.time()
            ahead = moment.replace(tzinfo=UTC).timestamp() - (sent + received) / 2
            looks.append(((received - sent) / 2, ahead))
        doubt, ahead = min(looks)
        return ahead, doubt

    def close(self) -> None:
        self.workers.close()
        self.client.drop_database(self.database)
        self.client.close()


def promise(job: axeq.Job[Any, Any], *, prompt: bool = True) -> Enqueued:
    """Returns what the enqueue of `job` has promised.

    An enqueue that was sent twice returns the job as it is by then: running, or ended.
    """
    due = job.available_at if job.state == "enqueued" and job.available_at is not None else job.created_at
    return Enqueued(str(job.id), due=due.timestamp(), prompt=prompt)
