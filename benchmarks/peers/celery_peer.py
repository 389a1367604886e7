"""Celery on Redis or on MongoDB, as the URL says; with a result backend there or, as is its default, without one."""

import celery
import harness
from celery.signals import worker_ready

OPTIONS = harness.options()
ON_MONGODB = OPTIONS.url.startswith("mongodb")

app = celery.Celery("peer", broker=OPTIONS.url, backend=OPTIONS.url if OPTIONS.results else None)
app.conf.task_ignore_result = not OPTIONS.results
app.conf.worker_enable_remote_control = False
if ON_MONGODB:
    app.conf.broker_transport_options = {"polling_interval": 0.01}
    app.conf.mongodb_backend_settings = {"database": OPTIONS.database}


@worker_ready.connect
def on_ready(**_: object) -> None:
    harness.started()


@app.task(name="note")
def note(x: int, s: str) -> int | None:
    return harness.handle(x)


class CeleryPeer(harness.Peer):
    package = "celery"
    settings = "--pool prefork --concurrency 10" + (", polling_interval=0.01 (default 1)" if ON_MONGODB else "")

    def empty(self) -> None:
        if ON_MONGODB:
            import pymongo

            self.database = pymongo.MongoClient(self.options.url)[self.options.database]
            self.database.client.drop_database(self.options.database)
        else:
            import redis

            self.redis = redis.Redis.from_url(self.options.url)
            self.redis.flushdb()

    def enqueue(self, x: int) -> None:
        note.apply_async(kwargs=harness.payload(x))

    def finished(self) -> bool:
        return self._left() == 0 and (not self.options.results or self._stored() >= self.options.n)

    def _left(self) -> int:
        if ON_MONGODB:
            return self.database["messages"].count_documents({}, limit=1)
        return self.redis.llen("celery") + self.redis.hlen("unacked")

    def _stored(self) -> int:
        if ON_MONGODB:
            return self.database["celery_taskmeta"].estimated_document_count()
        return sum(1 for _ in self.redis.scan_iter("celery-task-meta-*", count=10_000))

    def work(self) -> None:
        many = str(self.options.concurrency)
        app.worker_main(["worker", "--pool", "prefork", "--concurrency", many, "--loglevel", "warning"])


if __name__ == "__main__":
    harness.main(CeleryPeer)
