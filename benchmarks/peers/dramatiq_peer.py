"""dramatiq on Redis, with its results middleware or, as is its default, without results."""

import sys
from typing import Any

import dramatiq
import harness
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

OPTIONS = harness.options()


class StartMark(dramatiq.Middleware):
    def after_process_boot(self, broker: Any) -> None:
        harness.started()


broker = RedisBroker(url=OPTIONS.url)
broker.add_middleware(StartMark())
if OPTIONS.results:
    broker.add_middleware(Results(backend=RedisBackend(url=OPTIONS.url)))
dramatiq.set_broker(broker)


@dramatiq.actor(**({"store_results": True} if OPTIONS.results else {}))
def note(x: int, s: str) -> int | None:
    return harness.handle(x)


class DramatiqPeer(harness.Peer):
    package = "dramatiq"
    settings = "--processes 1 --threads 10"

    def empty(self) -> None:
        broker.client.flushdb()

    def enqueue(self, x: int) -> None:
        note.send(**harness.payload(x))

    def finished(self) -> bool:
        return broker.client.hlen("dramatiq:default.msgs") == 0

    def command(self) -> list[str]:
        many = str(self.options.concurrency)
        return [sys.executable, "-m", "dramatiq", "dramatiq_peer", "--processes", "1", "--threads", many]


if __name__ == "__main__":
    harness.main(DramatiqPeer)
