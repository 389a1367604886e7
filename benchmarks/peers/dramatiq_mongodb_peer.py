"""dramatiq-mongodb: finished messages stay as documents; with its results backend or without."""

import sys
from typing import Any

import dramatiq
import harness
import pymongo
from dramatiq.middleware import default_middleware
from dramatiq.results import Results
from dramatiq_mongodb import MongoDBBackend, MongoDBBroker

OPTIONS = harness.options()


class StartMark(dramatiq.Middleware):
    def after_process_boot(self, broker: Any) -> None:
        harness.started()


# Prometheus works only in dramatiq's own command line, and this program enqueues outside of it.
middleware = [make() for make in default_middleware if make.__name__ != "Prometheus"]
database = pymongo.MongoClient(OPTIONS.url)[OPTIONS.database]
broker = MongoDBBroker(database=database, middleware=[*middleware, StartMark()])
if OPTIONS.results:
    broker.add_middleware(Results(backend=MongoDBBackend(database=database)))
dramatiq.set_broker(broker)


@dramatiq.actor(**({"store_results": True} if OPTIONS.results else {}))
def note(x: int, s: str) -> int | None:
    return harness.handle(x)


class DramatiqMongodbPeer(harness.Peer):
    package = "dramatiq-mongodb"
    settings = "--processes 1 --threads 10"

    def empty(self) -> None:
        database.client.drop_database(database.name)

    def enqueue(self, x: int) -> None:
        note.send(**harness.payload(x))

    def finished(self) -> bool:
        return database["default"].count_documents({"state": {"$ne": "DONE"}}, limit=1) == 0

    def command(self) -> list[str]:
        many = str(self.options.concurrency)
        return [sys.executable, "-m", "dramatiq", "dramatiq_mongodb_peer", "--processes", "1", "--threads", many]


if __name__ == "__main__":
    harness.main(DramatiqMongodbPeer)
