"""The application of `pynenc_peer.py`: pynenc refuses tasks of the main module."""

import harness
from pynenc import PynencBuilder

OPTIONS = harness.options()

app = (
    PynencBuilder()
    .app_id("peer")
    .mongo(url=OPTIONS.url)
    .thread_runner(min_threads=OPTIONS.concurrency, max_threads=OPTIONS.concurrency)
    .runner_tuning(runner_loop_sleep_time_sec=0.01, min_parallel_slots=OPTIONS.concurrency)
    .logging_level("warning")
    .build()
)


@app.task
def note(x: int, s: str) -> int | None:
    return harness.handle(x)
