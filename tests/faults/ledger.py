"""What handlers really did, written down outside axeq: an append-only SQLite file per process, merged when read."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Execution", "Ledger", "by_job", "executions"]

_TABLE = """
CREATE TABLE IF NOT EXISTS entry (
    event TEXT, job TEXT, token TEXT, attempt INTEGER, pid INTEGER, monotonic REAL, wall REAL, outcome TEXT
)
"""
_INSERT = "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a handler. Moments are seconds: monotonic, which all processes share, and by the wall clock.

    `ended` and `outcome` are None where the process was gone, or is not so far yet; else the outcome is "done",
    "raised" or "stopped".
    """

    job: str
    token: str
    attempt: int
    pid: int
    started: float
    started_wall: float
    ended: float | None = None
    outcome: str | None = None


class Ledger:
    """Writes the ledger of this process into `folder`. Each line is on its own; a killed process loses none."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(
            folder / f"{os.getpid()}-{time.monotonic_ns()}.ledger", isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=OFF")  # a killed process keeps what it wrote; power is not cut
        self._connection.execute(_TABLE)
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def start(self, record: Any) -> None:
        """Notes that the handler of the job `record` has started."""
        self._write("start", record, None)

    def end(self, record: Any, outcome: str = "done") -> None:
        """Notes that it has stopped."""
        self._write("end", record, outcome)

    def close(self) -> None:
        self._connection.close()

    def _write(self, event: str, record: Any, outcome: str | None) -> None:
        # Not `time.time`, which the worker may have been told to falsify.
        wall = time.clock_gettime(time.CLOCK_REALTIME)
        entry = (
            event,
            str(record.id),
            str(record.token),
            record.attempts,
            self._pid,
            time.monotonic(),
            wall,
            outcome,
        )
        with self._lock:
            self._connection.execute(_INSERT, entry)


def executions(folder: Path) -> list[Execution]:
    """Returns every execution in the ledgers of `folder`, in the order of their starts."""
    found: list[Execution] = []
    for path in folder.glob("*.ledger"):
        found.extend(_paired(_entries(path)))
    return sorted(found, key=lambda execution: execution.started)


def by_job(found: Sequence[Execution]) -> Mapping[str, list[Execution]]:
    """Returns the executions of each job, in the order of their starts."""
    grouped: dict[str, list[Execution]] = defaultdict(list)
    for execution in found:
        grouped[execution.job].append(execution)
    return grouped


def _entries(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entry'").fetchone():
            return []  # killed before its first word
        return connection.execute("SELECT * FROM entry ORDER BY rowid").fetchall()


def _paired(entries: Sequence[tuple[Any, ...]]) -> list[Execution]:
    """Returns the executions behind the entries of one process: an end belongs to the last open start of its claim."""
    found: list[Execution] = []
    open_at: dict[tuple[str, str], int] = {}
    for event, job, token, attempt, pid, monotonic, wall, outcome in entries:
        if event == "start":
            open_at[job, token] = len(found)
            found.append(Execution(job, token, attempt, pid, monotonic, wall))
        else:
            at = open_at.pop((job, token))
            started = found[at]
            found[at] = Execution(
                job, token, attempt, pid, started.started, started.started_wall, ended=monotonic, outcome=outcome
            )
    return found
