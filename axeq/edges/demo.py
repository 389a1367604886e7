"""`axeq demo`: measures a tree of Python files, one job per file, on a server of its own, and shows what came of it.

It owns the run; `screen` shows it, and `measure` is the work. What the tables say is read back from the store.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from axeq.documents.record import Record
from axeq.edges.measure import Measure, measure_file
from axeq.edges.screen import Screen, Shown, count
from axeq.faces.queue import Queue
from axeq.faces.task import Task
from axeq.running.pool import Pool
from axeq.wire import servers
from axeq.wire.embedded import Home, open_embedded, take_lock
from axeq.wire.store import Store
from axeq.words.errors import ConfigurationError

__all__ = ["find_files", "run"]

_BATCH = 500
_STALLED = 120.0
"""For how many seconds no job may end before the demo gives up."""
_SERVER_END = 60.0
"""For how many seconds a server may end: one that was just being tried for longer than one that serves."""
_LOOK_AGAIN = 0.1


def run(tree: Path | None, *, workers: int, keep: Path | None) -> int:
    """Runs the demo on `tree`, by default the standard library, and returns 0 once every job has ended.

    The server's data lives in `keep`, which stays, or in a directory that is removed afterwards.
    Raises `ConfigurationError` where there is nothing to measure.
    """
    began = time.monotonic()
    root = Path(sysconfig.get_path("stdlib")) if tree is None else tree.expanduser().absolute()
    files = find_files(root)
    screen = Screen(sys.stdout)
    what = f"the standard library of Python {sys.version.split()[0]}" if tree is None else str(root)
    screen.say(f"axeq demo: {count(len(files), 'file')} of {what}, {count(workers, 'worker')}")
    with _directory(keep) as path:
        screen.say(f"data: {path}" + (", removed afterwards" if keep is None else ""))
        jobs = _measure(root, files, path, workers, screen)
        unfinished = sum(not job.final for job in jobs) + len(files) - len(jobs)
        screen.tables(jobs)
        if unfinished:
            screen.say(f"{count(unfinished, 'job')} did not end")
        if keep is not None and jobs:
            screen.say(f'kept: axeq.Queue(axeq.Store("embedded:{path}"), "{jobs[0].queue}").find()')
        screen.say(f"total {time.monotonic() - began:.1f} s")
    return 1 if unfinished else 0


def find_files(root: Path) -> list[str]:
    """Returns the Python files under `root`, relative to it and in order, but for hidden and installed ones.

    Raises `ConfigurationError` where `root` is no directory or has none.
    """
    if not root.is_dir():
        raise ConfigurationError(f"{root} is no directory")
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _PASSED_OVER]
        paths = (Path(folder, name) for name in names if name.endswith(".py") and not name.startswith("."))
        found += [path.relative_to(root).as_posix() for path in paths if path.is_file()]
    if not found:
        raise ConfigurationError(f"{root} has no Python files")
    return sorted(found)


_PASSED_OVER = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__"})


def _measure(root: Path, files: Sequence[str], path: Path, workers: int, screen: Screen) -> list[Record]:
    """Runs one job per file and returns the jobs as the store has them in the end."""
    with open_embedded(path) as server, Store(f"embedded:{path}") as store:
        screen.say(f"server: {server.server} at {server.uri.partition('?')[0]}")
        queue = Queue(store, f"demo-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}")  # noqa: DTZ005 - for who runs it
        pool = Pool(store, queue=queue.name, drain=5)
        pool.add(
            Task(
                Measure,
                measure_file,
                workers=workers,
                executor="process",  # parsing holds the GIL
                timeout=60,
                # A file may be half saved: it is tried once more before it is given up.
                max_attempts=2,
                min_delay=0.2,
            )
        )
        with _running(pool) as running, screen.progress(len(files)) as show:
            for start in range(0, len(files), _BATCH):
                queue.enqueue_many(Measure(root=str(root), file=file) for file in files[start : start + _BATCH])
                show.update(pool.counts)
            _follow(pool, running, len(files), show)
        running.result()
        return _read_back(queue)


@contextmanager
def _running(pool: Pool) -> Iterator[Future[None]]:
    """Runs a pool beside the block, and ends it with the block."""
    with ThreadPoolExecutor(1, "axeq-demo") as threads:
        running = threads.submit(pool.run)
        try:
            while not running.done() and not pool.ready.wait(0.1):
                pass
            yield running
        finally:
            # A pool that is still starting does not hear; one that is asked again hurries.
            while not running.done():
                pool.stop()
                wait([running], 0.5)


def _follow(pool: Pool, running: Future[None], total: int, show: Shown) -> None:
    """Shows the pool's progress until it has ended as many jobs, has failed, or gets nowhere."""
    ended, moved = 0, time.monotonic()
    while ended < total and not running.done() and time.monotonic() - moved < _STALLED:
        wait([running], 0.1)
        before, ended = ended, show.update(pool.counts)
        if ended > before:
            moved = time.monotonic()


def _read_back(queue: Queue) -> list[Record]:
    jobs: list[Record] = []
    while page := queue.find(limit=_BATCH, skip=len(jobs)):
        jobs += page
    return jobs


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep.expanduser().absolute()
        return
    path = Path(tempfile.mkdtemp(prefix="axeq-demo-"))
    try:
        yield path
    finally:
        if _end_server(Home(path)):
            shutil.rmtree(path, ignore_errors=True)


def _end_server(home: Home) -> bool:
    """Has the server of a directory that nobody else uses end now, and returns whether it has."""
    until = time.monotonic() + _SERVER_END
    # The keeper holds this lock until its server is gone. One that has just begun names itself only later.
    while take_lock(home.keeper_lock, exclusive=True, timeout=_LOOK_AGAIN) is None:
        if time.monotonic() >= until:
            return False
        serving = home.serving()
        if serving is not None and servers.is_running(serving.keeper, home.path):
            with suppress(ProcessLookupError):
                os.kill(serving.keeper, signal.SIGTERM)
    return True
