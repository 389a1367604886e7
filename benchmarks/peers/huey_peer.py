"""huey: it stores what a task returns unless that is None, its default; so both are measured without a setting."""

import harness
from huey import RedisHuey

OPTIONS = harness.options()

huey = RedisHuey("peer", url=OPTIONS.url)


@huey.on_startup()
def on_startup() -> None:
    harness.started()


@huey.task()
def note(x: int, s: str) -> int | None:
    return harness.handle(x)


class HueyPeer(harness.Peer):
    package = "huey"
    settings = "workers=10, threads"

    def empty(self) -> None:
        huey.storage.conn.flushdb()

    def enqueue(self, x: int) -> None:
        note(**harness.payload(x))

    def finished(self) -> bool:
        stored = huey.result_count() if self.options.results else self.options.n
        return huey.pending_count() == 0 and stored >= self.options.n

    def work(self) -> None:
        huey.create_consumer(workers=self.options.concurrency, worker_type="thread").run()


if __name__ == "__main__":
    harness.main(HueyPeer)
