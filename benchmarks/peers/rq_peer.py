"""rq: ten worker processes that run jobs themselves; its default, a fork per job, is several times slower.

Results are kept 500 s, its default.
"""

import harness
from redis import Redis
from rq import Queue, SimpleWorker
from rq.registry import FinishedJobRegistry
from rq.worker_pool import WorkerPool


class NotedWorker(SimpleWorker):
    def bootstrap(self, *arguments: object, **options: object) -> None:
        super().bootstrap(*arguments, **options)
        harness.started()


def note(x: int, s: str) -> int | None:
    return harness.handle(x)


class RqPeer(harness.Peer):
    package = "rq"
    settings = "WorkerPool of 10 SimpleWorkers (default: Worker, a fork per job)"

    def __init__(self, options: harness.Options) -> None:
        super().__init__(options)
        self.redis = Redis.from_url(options.url)
        self.queue = Queue(connection=self.redis)

    def empty(self) -> None:
        self.redis.flushdb()

    def enqueue(self, x: int) -> None:
        self.queue.enqueue("rq_peer.note", **harness.payload(x))

    def finished(self) -> bool:
        return FinishedJobRegistry(queue=self.queue).get_job_count(cleanup=False) >= self.options.n

    def work(self) -> None:
        many = self.options.concurrency
        pool = WorkerPool([self.queue], connection=self.redis, num_workers=many, worker_class=NotedWorker)
        pool.start(logging_level="WARNING")


if __name__ == "__main__":
    harness.main(RqPeer)
