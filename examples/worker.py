"""The background process of the web examples: it runs their jobs.

Run it as often as you like, on any machine that reaches the database:

    cd examples
    export AXEQ_URI='mongodb://localhost:27017/shop'    # a replica set
    python worker.py                                    # until Ctrl-C or SIGTERM

Without a MongoDB of your own, `axeq dev ./data` runs a server and prints its URI.
"""

import asyncio
import logging

from models import Made, Thumbnail

import axeq

pool = axeq.Pool(axeq.Store())


@pool.task(Thumbnail, workers=4, max_attempts=5, timeout=60)
async def thumbnail(ctx: axeq.Context[Thumbnail, Made]) -> Made:
    """Stands in for the real work. Raising would have the job tried again, a little later each time."""
    ctx.log.info("scaling %s to %d pixels", ctx.model.image, ctx.model.width)
    await asyncio.sleep(0.01)
    return Made(path=f"{ctx.model.width}/{ctx.model.image}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    pool.run()
