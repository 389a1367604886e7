"""pynenc on MongoDB, all five of its parts, with its thread runner; results are always stored."""

import harness
import pymongo
from pynenc.invocation.status import InvocationStatus
from pynenc_tasks import app, note


class PynencPeer(harness.Peer):
    package = "pynenc-mongo"
    settings = "thread_runner of 10, runner_loop_sleep_time_sec=0.01"

    def empty(self) -> None:
        pymongo.MongoClient(self.options.url).drop_database(self.options.database)

    def enqueue(self, x: int) -> None:
        note(**harness.payload(x))

    def finished(self) -> bool:
        return app.orchestrator.count_invocations(statuses=[InvocationStatus.SUCCESS]) >= self.options.n

    def work(self) -> None:
        harness.started()
        app.runner.run()


if __name__ == "__main__":
    harness.main(PynencPeer)
