"""Real processes against one server, and a ledger of what they really did."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import axeq

ROOT = Path(__file__).resolve().parents[2]


class Event:
    def __init__(self, line: str) -> None:
        self.what, self.job, process, moment = line.split()
        self.process, self.moment = int(process), float(moment)


class Workers:
    """Worker processes of one test; all of them are gone when it ends."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        self.folder = folder
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.processes: list[subprocess.Popen[str]] = []

    def start(
        self, *, lease: float = 30, workers: int = 4, program: str = "worker", new_session: bool = False
    ) -> subprocess.Popen[str]:
        log = (self.folder / f"worker-{len(self.processes)}.log").open("w")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"tests.races.{program}", self.uri, str(self.ledger), str(lease), str(workers)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=new_session,
            )
        self.processes.append(process)
        return process

    def ready(self, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready", self.log(process)
        return process

    def log(self, process: subprocess.Popen[str]) -> str:
        return (self.folder / f"worker-{self.processes.index(process)}.log").read_text()

    def events(self, what: str | None = None) -> list[Event]:
        events = [Event(line) for line in self.ledger.read_text().splitlines()]
        return [event for event in events if what in (None, event.what)]

    def by_job(self, what: str) -> dict[str, list[Event]]:
        grouped: dict[str, list[Event]] = defaultdict(list)
        for event in self.events(what):
            grouped[event.job].append(event)
        return grouped

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def store(server_uri: str) -> Iterator[axeq.Store]:
    base, _, options = server_uri.partition("?")
    uri = f"{base.rstrip('/')}/race_{secrets.token_hex(4)}?{options}"
    with axeq.Store(uri, timeout=60) as store:  # a loaded server is slow to drop what was just written
        store.uri = uri  # type: ignore[attr-defined]
        yield store
        store.run(_dropped())


def _dropped() -> Iterator[object]:
    from axeq.wire.wire import JOBS, Call

    yield Call(JOBS, "drop")


@pytest.fixture
def queue(store: axeq.Store) -> axeq.Queue:
    queue = axeq.Queue(store)
    queue.ensure_indexes()
    return queue


@pytest.fixture
def workers(store: axeq.Store, tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(store.uri, tmp_path)  # type: ignore[attr-defined]
    yield workers
    workers.close()
