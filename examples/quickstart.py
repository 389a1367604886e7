"""A job from its enqueue to its result, in one file.

    python quickstart.py

It uses the MongoDB of AXEQ_URI; without one, a server of its own on ./quickstart-data
(`pip install 'axeq[embedded]'`).
"""

import multiprocessing
import os

from pydantic import BaseModel

import axeq

store = axeq.Store(os.environ.get("AXEQ_URI") or "embedded:quickstart-data")
queue = axeq.Queue(store)
pool = axeq.Pool(store)


class Made(BaseModel):
    path: str


class Thumbnail(axeq.Model[Made], name="thumbnail"):
    image: str
    width: int = 320


@pool.task(Thumbnail, max_attempts=5)
async def thumbnail(ctx: axeq.Context[Thumbnail, Made]) -> Made:
    if ctx.attempt == 1:
        raise axeq.Retry("the disk was busy", delay=0.1)
    return Made(path=f"{ctx.model.width}/{ctx.model.image}")


def work() -> None:
    pool.run()


def main() -> None:
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start()
    try:
        job = queue.enqueue(Thumbnail(image="a.jpg"))
        print("enqueued", job.name, "in state", job.state)
        made = job.wait(timeout=60)
        print("made", made.path, "at attempt", job.attempts)
    finally:
        worker.terminate()
        worker.join()
        store.close()


if __name__ == "__main__":
    main()

# enqueued thumbnail in state enqueued
# made 320/a.jpg at attempt 2
