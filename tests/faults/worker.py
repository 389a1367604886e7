"""A worker process of the fault tests: `worker.py SETTINGS`, a JSON object of `processes.Settings`.

It keeps the ledger, and tells what the harness waits for by files beside it: `ready`, `held`, `counts`; and by
`stalls` when the machine has kept it from running.
"""

from __future__ import annotations

import asyncio
import datetime
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]

SETTINGS: dict[str, Any] = json.loads(sys.argv[1]) if __name__ == "__main__" else {}
_TICK = 0.05


def falsify(offset: float) -> None:
    """Has this process believe a wall clock that is off by `offset` seconds."""
    true_time, true_datetime = time.time, datetime.datetime

    class Kind(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, true_datetime)

    class Skewed(true_datetime, metaclass=Kind):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return true_datetime.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return true_datetime.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

    time.time = lambda: true_time() + offset
    time.time_ns = lambda: int(time.time() * 1e9)
    datetime.datetime = Skewed  # type: ignore[misc]


if SETTINGS.get("skew"):
    falsify(SETTINGS["skew"])

import axeq  # noqa: E402 - after the clock was falsified
from axeq.attempts.settler import Settler  # noqa: E402
from axeq.running.crew import Crew  # noqa: E402
from tests.faults.ledger import Ledger  # noqa: E402
from tests.faults.tasks import Crash, Overrun, Work, crash, overrun, work  # noqa: E402


def tell(what: str, content: str = "") -> None:
    """Leaves a word for the harness."""
    path = Path(f"{SETTINGS['name']}.{what}")
    draft = path.with_suffix(".draft")
    draft.write_text(content)
    draft.replace(path)


def freeze_at(hook: str) -> None:
    """Has this process stop itself once it gets to a point: "claimed" before any handler, "ended" before any settle."""
    owner, method = {"claimed": (Crew, "take_on"), "ended": (Settler, "add")}[hook]
    original = getattr(owner, method)

    def frozen(self: Any, given: Any, **options: Any) -> Any:
        if given:
            setattr(owner, method, original)
            tell("held")
            os.kill(os.getpid(), signal.SIGSTOP)
        return original(self, given, **options)

    setattr(owner, method, frozen)


def dump(number: int, frame: object) -> None:
    """Logs where every task and thread stands: for whoever wonders why nothing happens (SIGUSR1)."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    faulthandler.dump_traceback()


def note_stalls(longest: float) -> None:
    """Notes each time for which this process did not run and lost more than `longest` seconds, from when until when.

    What it spent itself (code that holds the GIL) is its own fault, and not noted.
    """
    path = Path(f"{SETTINGS['name']}.stalls")
    seen, spent = time.monotonic(), time.process_time()
    while True:
        time.sleep(_TICK)
        now, used = time.monotonic(), time.process_time()
        if now - seen > longest and used - spent < (now - seen) / 2:
            with path.open("a") as stalls:
                stalls.write(f"{seen} {now}\n")
        seen, spent = now, used


def build(store: axeq.Store, ledger: Ledger) -> axeq.Pool:
    pool = axeq.Pool(store, lease=SETTINGS["lease"], drain=SETTINGS["drain"], max_lag=SETTINGS["max_lag"])
    workers = SETTINGS["workers"]
    limits: Any = {"min_delay": 0.05, "max_delay": 0.5, "max_attempts": SETTINGS["max_attempts"]}
    pool.add(axeq.Task(Work, work(ledger), workers=workers, max_lost=SETTINGS["max_lost"], **limits))
    pool.add(axeq.Task(Crash, crash(ledger), workers=1, max_lost=2))
    pool.add(axeq.Task(Overrun, overrun(ledger), workers=workers, timeout=0.4, **{**limits, "max_attempts": 2}))
    return pool


def run(pool: axeq.Pool) -> None:
    """Runs the pool; where the server is away at the start, tries again as a supervisor would."""
    deadline = time.monotonic() + 60
    while True:
        try:
            pool.run()
        except axeq.StoreError as error:
            if pool.ready.is_set() or time.monotonic() > deadline:
                raise
            logging.warning("not started: %s", error)
        else:
            return


def main() -> None:
    signal.signal(signal.SIGUSR1, dump)
    threading.Thread(target=note_stalls, args=(SETTINGS["lease"] / 3,), name="stalls", daemon=True).start()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(relativeCreated)d %(name)s %(message)s")
    if SETTINGS["freeze_at"]:
        freeze_at(SETTINGS["freeze_at"])
    with axeq.Store(SETTINGS["uri"], timeout=SETTINGS["timeout"]) as store:
        ledger = Ledger(Path(SETTINGS["folder"]))
        pool = build(store, ledger)
        original = pool.ready.set

        def ready() -> None:
            original()
            tell("ready", str(time.time()))

        pool.ready.set = ready  # type: ignore[method-assign]
        run(pool)
        ledger.close()
    tell("counts", json.dumps(dict(pool.counts)))


if __name__ == "__main__":
    main()
