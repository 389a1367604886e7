"""The rows: one function for each, which measures axeq beside the floor and returns what it found."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from statistics import median, quantiles
from typing import Any

import floor
from children import Child, children
from pools import Noop
from pymongo import MongoClient

import axeq
from axeq.rules.workers import HEARTBEAT

__all__ = ["FULL", "QUICK", "ROWS", "Bench", "Scale"]

Found = dict[str, float]

_CHUNK = 1000
_PATIENCE = 120.0


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    `heartbeat` in seconds is how often pools hear of each other, `lead` how long it may take to open them.
    """

    pairs: int
    enqueues: int
    batches: int
    process: int
    process_result: int
    latency: int
    backlog: int
    large_backlog: int
    pools: int
    herd: int
    idle: float
    heartbeat: float
    lead: float


FULL = Scale(
    pairs=3,
    enqueues=400,
    batches=5,
    process=10_000,
    process_result=5000,
    latency=200,
    backlog=10_000,
    large_backlog=200_000,
    pools=10_000,
    herd=50,
    idle=20.0,
    heartbeat=HEARTBEAT,
    lead=2.0,
)
QUICK = Scale(
    pairs=3,
    enqueues=150,
    batches=2,
    process=2500,
    process_result=600,
    latency=36,
    backlog=2000,
    large_backlog=15_000,
    pools=800,
    herd=20,
    idle=8.0,
    heartbeat=1.0,
    lead=0.8,
)


@dataclass
class Bench:
    """A server, how much to measure on it, and databases that are used once."""

    uri: str
    scale: Scale
    say: Callable[[str], None]
    client: MongoClient[Any] = field(init=False)
    numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.client = MongoClient(self.uri)

    @contextmanager
    def database(self, jobs: int = 0) -> Iterator[str]:
        """Yields the name of a fresh database with axeq's indexes, and with so many jobs that are due."""
        name = f"axeq_bench_core_{next(self.numbers)}"
        self.client.drop_database(name)
        try:
            with axeq.Store(self.uri, database=name) as store:
                axeq.Queue(store).ensure_indexes()
            self.fill(name, jobs)
            yield name
        finally:
            self.client.drop_database(name)

    def fill(self, database: str, jobs: int, *, due: datetime | None = None) -> None:
        """Stores jobs; those of a thousand share a due time, as `enqueue_many` has it."""
        collection = floor.jobs_of(self.client, database)
        for first in range(0, jobs, _CHUNK):
            moment = due + timedelta(milliseconds=first // _CHUNK) if due else datetime.now().astimezone()
            numbers = range(first, min(first + _CHUNK, jobs))
            collection.insert_many([floor.document(x, available_at=moment) for x in numbers], ordered=False)

    def close(self) -> None:
        self.client.close()


# Enqueue


def enqueue_one(bench: Bench) -> Found:
    payloads = [Noop(x=x, s=floor.TEXT) for x in range(bench.scale.enqueues)]

    def ours(queue: axeq.Queue, x: int) -> None:
        queue.enqueue(payloads[x])

    def theirs(collection: Any, x: int) -> None:
        collection.insert_one(floor.document(x))

    pairs = [_in_turns(bench, bench.scale.enqueues, ours, theirs) for _ in range(bench.scale.pairs + 2)]
    bench.say(_shown(pairs, bench.scale.enqueues))
    return {"enqueue_one_ratio": _ratio(pairs)}


def enqueue_many(bench: Bench) -> Found:
    payloads = [Noop(x=x, s=floor.TEXT) for x in range(_CHUNK)]

    def ours(queue: axeq.Queue, x: int) -> None:
        queue.enqueue_many(payloads)

    def theirs(collection: Any, x: int) -> None:
        collection.insert_many([floor.document(x) for x in range(_CHUNK)], ordered=False)

    pairs = [_in_turns(bench, bench.scale.batches, ours, theirs) for _ in range(bench.scale.pairs + 2)]
    bench.say(_shown(pairs, bench.scale.batches * _CHUNK))
    return {"enqueue_many_ratio": _ratio(pairs)}


def _in_turns(
    bench: Bench, times: int, ours: Callable[[axeq.Queue, int], None], theirs: Callable[[Any, int], None]
) -> tuple[float, float]:
    """Returns the seconds of axeq and of the floor for the same jobs, call by call in turns."""
    with bench.database() as one, bench.database() as two, axeq.Store(bench.uri, database=one) as store:
        queue, collection = axeq.Queue(store), floor.jobs_of(bench.client, two)
        queue.enqueue(Noop(x=0, s=floor.TEXT))  # connects, and measures the server's clock
        collection.insert_one(floor.document(0))
        spent = [0.0, 0.0]
        for x in range(times):
            began = time.perf_counter()
            ours(queue, x)
            middle = time.perf_counter()
            theirs(collection, x)
            spent[0] += middle - began
            spent[1] += time.perf_counter() - middle
        _refuse_difference(floor.jobs_of(bench.client, one), collection)
    return spent[0], spent[1]


# Process


def process(bench: Bench) -> Found:
    rates = _processed(bench, bench.scale.process, results=False)
    return {"process_ratio": rates[0], "process_per_s": rates[1], "floor_per_s": rates[2]}


def process_result(bench: Bench) -> Found:
    rates = _processed(bench, bench.scale.process_result, results=True)
    return {"process_result_ratio": rates[0], "process_result_per_s": rates[1], "floor_result_per_s": rates[2]}


def _processed(bench: Bench, total: int, *, results: bool) -> tuple[float, float, float]:
    """Returns the ratio, and jobs a second of axeq and of the floor."""
    with children("floor.py") as (raw,):
        best = _best_floor(bench, raw, max(total // 3, 500), results=results)
        pairs = []
        for _ in range(bench.scale.pairs):
            with bench.database(total) as one, bench.database(total) as two, children("pools.py") as (pool,):
                ours = pool.ask(do="drain", uri=bench.uri, database=one, total=total, results=results)
                theirs = raw.ask(do="process", uri=bench.uri, database=two, total=total, results=results, **best)
                _refuse_difference(floor.jobs_of(bench.client, one), floor.jobs_of(bench.client, two))
            pairs.append((ours["seconds"], theirs["seconds"]))
    bench.say(f"floor: {best['driver']} driver, {best['batch']} at a time; {_shown(pairs, total)}")
    return _ratio(pairs), total / median(pair[0] for pair in pairs), total / median(pair[1] for pair in pairs)


def _best_floor(bench: Bench, raw: Child, total: int, *, results: bool) -> dict[str, Any]:
    """Tries drivers and batch sizes and returns the best for the floor."""
    tried: dict[tuple[str, int], float] = {}

    def rank(driver: str, batch: int) -> float:
        if (driver, batch) not in tried:
            how = {"driver": driver, "batch": batch, "results": results, "total": total}
            with bench.database(total) as name:
                tried[driver, batch] = raw.ask(do="process", uri=bench.uri, database=name, **how)["seconds"]
        return tried[driver, batch]

    driver = min(("sync", "async"), key=lambda driver: rank(driver, 500))
    batch = min((200, 500, 1000), key=lambda batch: rank(driver, batch))
    return {"driver": driver, "batch": batch}


# Latency


def latency(bench: Bench) -> Found:
    total = bench.scale.latency
    with (
        bench.database() as one,
        bench.database() as two,
        children("pools.py") as (pool,),
        children("floor.py") as (raw,),
        axeq.Store(bench.uri, database=one) as store,
    ):
        pool.ask(do="open", uri=bench.uri, database=one)
        raw.ask(do="follow", uri=bench.uri, database=two, total=total)
        time.sleep(0.5)  # the pool's own change stream opens in the background
        sent = _sent_in_turns(axeq.Queue(store), floor.jobs_of(bench.client, two), total)
        theirs = _delays(sent[1], raw.hear())
        ours = _delays(sent[0], pool.ask(do="starts"))
    bench.say(f"p50 {_p(ours, 50):.2f} / {_p(theirs, 50):.2f} ms, p95 {_p(ours, 95):.2f} / {_p(theirs, 95):.2f} ms")
    return {
        "latency_p50_ms": _p(ours, 50),
        "latency_p50_ratio": _p(ours, 50) / _p(theirs, 50),
        "latency_p95_ratio": _p(ours, 95) / _p(theirs, 95),
    }


def _sent_in_turns(queue: axeq.Queue, collection: Any, total: int) -> tuple[list[float], list[float]]:
    """Sends one job to each side in turn, every 30 ms, and returns when."""
    ours, theirs = [], []
    for x in range(total):
        payload = Noop(x=x, s=floor.TEXT)
        ours.append(time.monotonic())
        queue.enqueue(payload)
        time.sleep(0.015)
        theirs.append(time.monotonic())
        collection.insert_one(floor.document(x))
        time.sleep(0.015)
    return ours, theirs


def _delays(sent: Sequence[float], starts: Mapping[str, float]) -> list[float]:
    """Returns each job's milliseconds from enqueue to start; the first few warm connections up."""
    return [(starts[str(x)] - moment) * 1000 for x, moment in enumerate(sent)][3:]


# Backlog


def backlog(bench: Bench) -> Found:
    small, large, pairs = bench.scale.backlog, bench.scale.large_backlog, bench.scale.pairs
    drained: list[tuple[Any, Any]] = []
    # Filled once, with as many more as will be run, so that `large` are waiting to the last.
    with bench.database(large + pairs * small) as crowded:
        for _ in range(pairs):
            with bench.database(small) as quiet:
                drained.append((_drained(bench, crowded, small), _drained(bench, quiet, small)))
    # From the first claim on: some servers look at all that is due to find the first page.
    seconds = [(many["since_first"], few["since_first"]) for many, few in drained]
    bench.say(f"before the first claim: {drained[0][0]['seconds'] - drained[0][0]['since_first']:.2f} s")
    bench.say(f"{large:,} waiting / {small:,}: {_shown(seconds, small)}")
    return {
        "backlog_ratio": _ratio(seconds),
        "rss_growth_mb": median(many["peak_mb"] - few["peak_mb"] for many, few in drained),
    }


def _drained(bench: Bench, database: str, total: int) -> Any:
    with children("pools.py") as (pool,):
        return pool.ask(do="drain", uri=bench.uri, database=database, total=total, results=False)


# Several pools


def pools4(bench: Bench) -> Found:
    total = bench.scale.pools
    pairs: list[tuple[float, float]] = []
    attempted = raced = 0
    with children("pools.py", 4) as four:
        for _ in range(bench.scale.pairs):
            seconds, counts = _together(bench, four, total)
            alone, _ = _together(bench, four[:1], total)
            pairs.append((seconds, alone))
            attempted += sum(count.get("attempted", 0) for count in counts)
            raced += sum(count.get("raced", 0) for count in counts)
    bench.say(f"four / one: {_shown(pairs, total)}; {raced} of {attempted} claims lost")
    return {"pools4_ratio": _ratio(pairs), "lost_claim_share": raced / attempted}


def _together(bench: Bench, pools: Sequence[Child], total: int) -> tuple[float, list[dict[str, int]]]:
    """Returns the seconds from the moment when `total` jobs fall due until all have completed, and the counts."""
    with bench.database() as name:
        wait = bench.scale.lead + total / 5000 + _acquaintance(bench, pools)
        began = time.monotonic() + wait
        bench.fill(name, total, due=datetime.now().astimezone() + timedelta(seconds=wait))
        for pool in pools:
            pool.tell(do="open", uri=bench.uri, database=name, heartbeat=bench.scale.heartbeat)
        for pool in pools:
            pool.hear()
        if time.monotonic() + _acquaintance(bench, pools) > began:
            bench.say("the jobs fell due before the pools knew each other: the machine is too busy for this row")
        time.sleep(max(began - time.monotonic(), 0))
        while sum(look["counts"].get("complete", 0) for look in _looks(pools)) < total:
            if time.monotonic() - began > _PATIENCE:
                raise TimeoutError(f"not all of {total} jobs completed: {_looks(pools)}")
            time.sleep(0.02)
        return time.monotonic() - began, _closed(pools)


def herd(bench: Bench) -> Found:
    with (
        bench.database() as name,
        children("pools.py", 8) as pools,
        axeq.Store(bench.uri, database=name) as store,
    ):
        for pool in pools:
            pool.tell(do="open", uri=bench.uri, database=name, heartbeat=bench.scale.heartbeat)
        for pool in pools:
            pool.hear()
        time.sleep(_acquaintance(bench, pools))
        queue = axeq.Queue(store)
        for x in range(bench.scale.herd):
            queue.enqueue(Noop(x=x, s=floor.TEXT)).wait(timeout=30)
            time.sleep(0.03)
        time.sleep(0.3)  # longer than any pool stands back
        attempted = sum(counts.get("attempted", 0) for counts in _closed(pools))
    return {"herd_claims_per_job": attempted / bench.scale.herd}


def _acquaintance(bench: Bench, pools: Sequence[Child]) -> float:
    """How many seconds pools need to hear of each other; none where one is alone."""
    return 1.1 * bench.scale.heartbeat if len(pools) > 1 else 0.0


def _looks(pools: Sequence[Child]) -> list[Any]:
    return [pool.ask(do="look") for pool in pools]


def _closed(pools: Sequence[Child]) -> list[dict[str, int]]:
    for pool in pools:
        pool.tell(do="close")
    return [pool.hear() for pool in pools]


# Idle


def idle(bench: Bench) -> Found:
    with bench.database() as name, children("pools.py") as (pool,):
        pool.ask(do="open", uri=bench.uri, database=name, tasks=50)
        time.sleep(3)
        before = pool.ask(do="look")
        time.sleep(bench.scale.idle)
        after = pool.ask(do="look")
    seconds = after["at"] - before["at"]
    return {
        "idle_commands_per_s": (after["commands"] - before["commands"]) / seconds,
        "idle_core_share": (after["cpu"] - before["cpu"]) / seconds,
    }


# Import


def imports(bench: Bench) -> Found:
    # `import pydantic` alone loads nothing of it: whoever defines a payload imports BaseModel.
    pairs = [
        _imported("import axeq", "import pymongo; from pydantic import BaseModel") for _ in range(bench.scale.pairs + 2)
    ]
    return {"import_ratio": median(ours / theirs for ours, theirs in pairs)}


def _imported(*programs: str) -> tuple[float, ...]:
    spent = []
    for program in programs:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", program], check=True)
        spent.append(time.monotonic() - began)
    return tuple(spent)


ROWS: dict[str, Callable[[Bench], Found]] = {
    "import": imports,
    "enqueue_one": enqueue_one,
    "enqueue_many": enqueue_many,
    "process": process,
    "process_result": process_result,
    "latency": latency,
    "backlog": backlog,
    "pools4": pools4,
    "herd": herd,
    "idle": idle,
}

# Arithmetic


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Returns the median of the ratios of rates, from pairs of seconds."""
    return median(theirs / ours for ours, theirs in pairs)


def _shown(pairs: Sequence[tuple[float, float]], total: int) -> str:
    return ", ".join(f"{total / ours:,.0f}/{total / theirs:,.0f}" for ours, theirs in pairs) + " per s"


def _p(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _refuse_difference(ours: Any, theirs: Any) -> None:
    """Raises `RuntimeError` where the floor's documents have other fields than axeq's: it would measure less work."""
    one, two = (_shape(collection.find_one()) for collection in (ours, theirs))
    if one != two:
        raise RuntimeError(f"the floor stores other fields than axeq: {two} and not {one}")


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shape(each) for key, each in sorted(value.items())}
    return type(value).__name__
