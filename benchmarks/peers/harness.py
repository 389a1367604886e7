"""What every Python peer program shares: its options, what a handler writes, and how it is clocked.

A program is both halves of a run. Started by hand it enqueues and measures; it starts its worker as a process of
its own, which finds the options in the environment, because some peers' workers are command lines.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib.metadata
import inspect
import json
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CARRIED = "AXEQ_PEER_OPTIONS"
LOOK = 0.01
START_LIMIT = 60.0
LATENCY_EVERY = 0.1
WARM_UPS = 3
MARK = struct.Struct("<qq")


@dataclass(frozen=True)
class Options:
    url: str
    n: int
    concurrency: int
    latency: int
    results: bool
    limit: float
    folder: str

    @property
    def marks(self) -> Path:
        return Path(self.folder, "marks")

    @property
    def started(self) -> Path:
        return Path(self.folder, "started")

    @property
    def log(self) -> Path:
        return Path(self.folder, "worker.log")

    @property
    def database(self) -> str:
        return urlsplit(self.url).path.lstrip("/")


class Peer:
    """One queue: how it is emptied, filled, worked on and asked whether it has finished.

    `enqueue`, `empty` and `finished` may be coroutine functions; `session` is entered around all of them.
    """

    package = ""
    settings = ""

    def __init__(self, options: Options) -> None:
        self.options = options

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        yield

    def empty(self) -> Awaitable[None] | None:
        raise NotImplementedError

    def enqueue(self, x: int) -> Awaitable[Any] | Any:
        raise NotImplementedError

    def finished(self) -> Awaitable[bool] | bool:
        """Whether the backend shows that nothing is left to do."""
        raise NotImplementedError

    def work(self) -> None:
        """Runs the worker, in its own process, until it is ended by a signal."""
        raise NotImplementedError

    def command(self) -> list[str]:
        return [sys.executable, sys.argv[0], "--work"]


class NotMeasured(Exception):
    """The peer did not do what was asked of it."""


@functools.cache
def options() -> Options:
    """Returns the options: those of the command line, or in a worker those of the program that started it."""
    if carried := os.environ.get(CARRIED):
        return Options(**json.loads(carried))
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="the backend's, with a database of this peer's own: it is emptied")
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=10)
    parser.add_argument("--latency", type=int, default=50, help="how many jobs are timed one by one")
    parser.add_argument("--results", choices=["yes", "no"], default="yes", help="for peers that can do both")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for the worker to finish")
    given = parser.parse_args()
    made = Options(
        url=given.url,
        n=given.n,
        concurrency=given.concurrency,
        latency=given.latency,
        results=given.results == "yes",
        limit=given.limit,
        folder=tempfile.mkdtemp(prefix="axeq-peer-"),
    )
    os.environ[CARRIED] = json.dumps(asdict(made))
    return made


def payload(x: int) -> dict[str, Any]:
    """Returns the same payload for every peer: a number and 100 characters."""
    return {"x": x, "s": "s" * 100}


def handle(x: int) -> int | None:
    """Does the work of every handler: appends 16 bytes to a file. Returns what the peer is to store, if anything."""
    os.write(_marks(), MARK.pack(x, time.monotonic_ns()))
    return x if options().results else None


@functools.cache
def _marks() -> int:
    return os.open(options().marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def started() -> None:
    """Notes that a worker starts to work, after its imports; of several the first counts."""
    draft = options().started.with_suffix(f".{os.getpid()}")
    draft.write_text(str(time.monotonic_ns()))
    with suppress(FileExistsError):
        os.link(draft, options().started)
    draft.unlink(missing_ok=True)


def main(peer_class: type[Peer]) -> None:
    """Runs a peer program: its measuring half, or with `--work` its worker."""
    if sys.argv[1:] == ["--work"]:
        peer_class(options()).work()
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    peer = peer_class(options())
    try:
        report = asyncio.run(_measure(peer))
    except NotMeasured as error:
        sys.exit(f"{error}\n{_tail(peer.options.log)}")
    finally:
        shutil.rmtree(peer.options.folder, ignore_errors=True)
    print(json.dumps(report))


async def _measure(peer: Peer) -> dict[str, Any]:
    settings = peer.options
    async with peer.session():
        await _call(peer.empty)
        enqueued, how = await _enqueue_all(peer)
        with _Worker(peer) as worker:
            began = await worker.wait_for_start()
            await worker.wait_for_marks(settings.n)
            await _finish(peer, worker)
            seconds = (time.monotonic_ns() - began) / 1e9
            latencies = await _latencies(peer, worker)
    return {
        "version": importlib.metadata.version(peer.package),
        "n": settings.n,
        "results": settings.results,
        "enqueue_per_s": round(enqueued),
        "enqueue_mode": how,
        "process_per_s": round(settings.n / seconds, 1),
        "latency_p50_ms": _percentile(latencies, 50),
        "latency_p95_ms": _percentile(latencies, 95),
        "ran_twice": _ran_twice(settings),
        "settings": peer.settings,
    }


async def _enqueue_all(peer: Peer) -> tuple[float, str]:
    """Enqueues all jobs: one at a time, and where the peer has coroutines the second half ten at a time."""
    n = peer.options.n
    if not inspect.iscoroutinefunction(peer.enqueue):
        return await _enqueue_rate(peer, range(n), 1), "one at a time"
    alone = await _enqueue_rate(peer, range(n // 2), 1)
    together = await _enqueue_rate(peer, range(n // 2, n), peer.options.concurrency)
    return (alone, "one at a time") if alone > together else (together, f"{peer.options.concurrency} at a time")


async def _enqueue_rate(peer: Peer, numbers: range, at_once: int) -> float:
    waiting = iter(numbers)
    began = time.perf_counter()
    if at_once == 1:
        await _enqueue_each(peer, waiting)
    else:
        await asyncio.gather(*(_enqueue_each(peer, waiting) for _ in range(at_once)))
    return len(numbers) / (time.perf_counter() - began)


async def _enqueue_each(peer: Peer, numbers: Iterable[int]) -> None:
    for x in numbers:
        await _call(peer.enqueue, x)


async def _finish(peer: Peer, worker: _Worker) -> None:
    until = time.monotonic() + peer.options.limit
    while not await _call(peer.finished):
        worker.check(until, "all handlers ran, but the backend does not show the jobs as finished")
        await asyncio.sleep(LOOK)


async def _latencies(peer: Peer, worker: _Worker) -> list[float]:
    first, count = peer.options.n, peer.options.latency + WARM_UPS
    sent: dict[int, int] = {}
    if not peer.options.latency:
        return []
    due = time.monotonic()
    for x in range(first, first + count):
        due = max(due + LATENCY_EVERY, time.monotonic())
        await asyncio.sleep(due - time.monotonic())
        sent[x] = time.monotonic_ns()
        await _call(peer.enqueue, x)
    await worker.wait_for_marks(first + count)
    starts = dict(reversed(_read_marks(peer.options)))
    return [(starts[x] - sent[x]) / 1e6 for x in sorted(sent)[WARM_UPS:]]


class _Worker:
    """The worker's process, with all of its children in a group of their own."""

    def __init__(self, peer: Peer) -> None:
        self._options = peer.options
        self._command = peer.command()

    def __enter__(self) -> _Worker:
        with self._options.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parent,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(8)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    async def wait_for_start(self) -> int:
        until = time.monotonic() + START_LIMIT
        while not self._options.started.exists():
            self.check(until, "the worker did not start")
            await asyncio.sleep(LOOK)
        return int(self._options.started.read_text())

    async def wait_for_marks(self, count: int) -> None:
        """Waits until handlers 0 to `count` have all run; looks at the file, which costs the backend nothing."""
        until = time.monotonic() + self._options.limit
        while True:
            written = self._options.marks.stat().st_size // MARK.size if self._options.marks.exists() else 0
            if written >= count and len({x for x, _ in _read_marks(self._options)}) >= count:
                return
            self.check(until, f"{written} of {count} handlers ran")
            await asyncio.sleep(LOOK)

    def check(self, until: float, complaint: str) -> None:
        if self._process.poll() is not None:
            raise NotMeasured(f"the worker ended by itself; {complaint}")
        if time.monotonic() > until:
            raise NotMeasured(f"out of time: {complaint}")


async def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    answer = function(*arguments)
    return await answer if inspect.isawaitable(answer) else answer


def _read_marks(settings: Options) -> list[tuple[int, int]]:
    content = settings.marks.read_bytes()
    return list(MARK.iter_unpack(content[: len(content) // MARK.size * MARK.size]))


def _ran_twice(settings: Options) -> int:
    marks = _read_marks(settings)
    return len(marks) - len({x for x, _ in marks})


def _percentile(values: list[float], percent: int) -> float | None:
    if len(values) < 2:
        return None
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 2)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else ""
