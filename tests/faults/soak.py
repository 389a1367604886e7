"""A soak: mixed load while workers are killed and frozen, replies cut, connections reset and the server restarted.

`python -m tests.faults.soak --seconds 300 --seed 1 --report docs/reliability.md`; it ends with 1 on any breach.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import axeq
from tests.faults import page
from tests.faults.arena import Arena, promise
from tests.faults.checker import LIVE, Enqueued, breaches
from tests.faults.own_server import OwnServer
from tests.faults.processes import Worker
from tests.faults.proxy import Proxy
from tests.faults.scale import own_server_is_slow
from tests.faults.seeds import rng
from tests.faults.soak_report import PART, Course, Figures, figures, render
from tests.faults.tasks import Work
from tests.faults.toxics import WRITES, BlackHole, Cut, NotPrimary

__all__ = ["Soak", "main"]

_PRODUCERS = 4
_CUT_RATE = 0.02
_LABELS = 50
_MOST_ATTEMPTS = 5
_RATE, _SLOW_RATE = 200.0, 20.0
_CROWD_SECONDS = 3.0
"""Producers wait while more jobs live than end in this time: else a slow machine shows but a growing queue."""
_FEWEST_A_SECOND = 5.0
_RESTART_EVERY = 40.0


class Soak:
    """One soak on a server of its own. `processes` workers run at any time; one of them is never harmed by itself."""

    def __init__(self, folder: Path, *, seconds: float, seed: int, rate: float, processes: int = 4) -> None:
        self._folder, self._seconds, self._seed, self._rate, self._processes = folder, seconds, seed, rate, processes
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._crowded = False
        self.refused: Counter[str] = Counter()
        """Enqueues that did not return, by error: nothing was promised of them."""

    def run(self) -> Figures:
        """Runs the soak and returns its figures."""
        workers = self._folder / "workers"
        workers.mkdir()
        with OwnServer(self._folder / "server") as server, Proxy(server.uri) as proxy:
            scene = Arena(
                server.uri, "soak", workers, through=proxy.uri("soak"), lease=3.0, timeout=2.0, max_attempts=5
            )
            try:
                return self._run(scene, server, proxy)
            finally:
                self._ending.set()
                scene.workers.close()
                scene.client.close()

    def _run(self, scene: Arena, server: OwnServer, proxy: Proxy) -> Figures:
        with scene.queue():
            pass
        veteran, *_ = scene.workers.ready(scene.workers.start(self._processes))
        began = time.monotonic()
        producers = [threading.Thread(target=self._produce, args=(scene, number)) for number in range(_PRODUCERS)]
        for producer in producers:
            producer.start()
        try:
            with proxy.toxic(Cut(_CUT_RATE, WRITES, rng("cut", self._seed))):
                self._harm(scene, server, proxy, veteran, until=began + self._seconds)
        finally:
            self._ending.set()
            for producer in producers:
                producer.join()
        self._drain(scene)  # what is left then is a breach
        evidence = scene.evidence(max_attempts=_MOST_ATTEMPTS)
        course = Course(
            server=server.program.name,
            seed=self._seed,
            seconds=time.monotonic() - began,
            processes=self._processes,
            workers=scene.workers.settings.workers,
            faults=proxy.faults(),
            refused=self.refused,
            veteran=veteran.pid,
        )
        return figures(evidence, course, found=breaches(evidence))

    def _produce(self, scene: Arena, number: int) -> None:
        random, pause = rng(f"producer {number}", self._seed), _PRODUCERS / self._rate
        next_at = time.monotonic()
        with axeq.Store(scene.through, timeout=2.0) as store:
            queue = axeq.Queue(store)
            while not self._ending.wait(max(next_at - time.monotonic(), 0)):
                next_at = max(next_at + pause, time.monotonic() - 1.0)
                if self._crowded:
                    continue
                try:
                    promised = _enqueue(queue, random)
                except axeq.AxeqError as error:
                    with self._lock:
                        self.refused[type(error).__name__] += 1
                else:
                    with self._lock:
                        scene.enqueued.append(promised)

    def _harm(self, scene: Arena, server: OwnServer, proxy: Proxy, veteran: Worker, *, until: float) -> None:
        random = rng("harm", self._seed)
        acts: list[Callable[[], None]] = [
            lambda: self._kill(scene, random, veteran),
            lambda: self._freeze(scene, random, veteran),
            lambda: self._end(scene, random, veteran),
            lambda: _reset(proxy),
            lambda: self._step_down(proxy),
            lambda: self._swallow(scene, proxy),
        ]
        began = time.monotonic()
        restart_at = began + min(_RESTART_EVERY, self._seconds / 3)
        while time.monotonic() < until:
            self._ending.wait(random.uniform(0.5, 2.0))
            scene.workers.measure()
            self._look(scene, began)
            if time.monotonic() >= restart_at:
                restart_at += _RESTART_EVERY
                killed = time.monotonic()
                server.restart()
                scene.workers.disturbed("server", killed)
                self._look(scene, began)
            else:
                random.choices(acts, weights=[5, 2, 1, 3, 2, 1])[0]()

    def _look(self, scene: Arena, began: float) -> None:
        """Has the producers wait while there is too much to do, at the pace of the run so far."""
        live = scene.count(*LIVE)
        pace = (len(scene.enqueued) - live) / (time.monotonic() - began)
        self._crowded = live > _CROWD_SECONDS * min(max(pace, _FEWEST_A_SECOND), self._rate)

    def _victim(self, scene: Arena, random: Random, veteran: Worker) -> Worker | None:
        victims = [worker for worker in scene.workers.idle_victims if worker is not veteran]
        return random.choice(victims) if victims else None

    def _kill(self, scene: Arena, random: Random, veteran: Worker) -> None:
        if victim := self._victim(scene, random, veteran):
            scene.workers.kill(victim)
            scene.workers.start()

    def _freeze(self, scene: Arena, random: Random, veteran: Worker) -> None:
        if victim := self._victim(scene, random, veteran):
            scene.workers.freeze(victim)
            self._ending.wait(random.uniform(0.5, 2.0) * scene.lease)
            scene.workers.thaw(victim)

    def _end(self, scene: Arena, random: Random, veteran: Worker) -> None:
        if victim := self._victim(scene, random, veteran):
            scene.workers.terminate([victim])
            scene.workers.start()

    def _step_down(self, proxy: Proxy) -> None:
        with proxy.toxic(NotPrimary(0.5, {*WRITES, "find"}, rng(f"step down {time.monotonic()}", self._seed))):
            self._ending.wait(1.0)

    def _swallow(self, scene: Arena, proxy: Proxy) -> None:
        began = time.monotonic()
        with proxy.toxic(BlackHole()):
            self._ending.wait(1.0)
        scene.workers.disturbed("black hole", began)

    def _drain(self, scene: Arena) -> None:
        """Waits until every job has ended, though not for ever."""
        deadline = time.monotonic() + 120.0 + self._seconds / 2
        while scene.count(*LIVE) and time.monotonic() < deadline:
            time.sleep(0.5)


def _reset(proxy: Proxy) -> None:
    proxy.reset()


def _enqueue(queue: axeq.Queue, random: Random) -> Enqueued:
    chance = random.random()
    payload = Work(seconds=random.uniform(0.005, 0.05), failures=int(chance < 0.05))
    if chance < 0.1:
        return promise(queue.enqueue(payload, delay=random.uniform(0, 2)))
    if chance < 0.15:
        return promise(queue.enqueue(payload, label=f"label {random.randrange(_LABELS)}"))
    return promise(queue.enqueue(payload, priority=random.choice([0, 0, 0, 1])))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, help=f"jobs a second ({_RATE:g}; {_SLOW_RATE:g} on a server in Python)")
    parser.add_argument("--report", type=Path, help="a Markdown file whose part between two markers is replaced")
    options = parser.parse_args(arguments)
    rate = options.rate or (_SLOW_RATE if own_server_is_slow() else _RATE)
    with tempfile.TemporaryDirectory() as folder:
        result = Soak(Path(folder), seconds=options.seconds, seed=options.seed, rate=rate).run()
    text = render(result)
    print(text)
    if options.report is not None:
        page.put(options.report, PART, text)
    return 1 if result.breaches else 0


if __name__ == "__main__":
    sys.exit(main())
