"""FastAPI: a request stores an image and leaves a job behind, both in one transaction.

    cd examples
    export AXEQ_URI='mongodb://localhost:27017/shop'    # a replica set; or what `axeq dev ./data` prints
    WITH_WORKER=1 uvicorn fastapi_app:app               # or without WITH_WORKER, and `python worker.py` beside it
    curl -X POST localhost:8000/images -H 'content-type: application/json' -d '{"name": "a.jpg"}'
    curl localhost:8000/jobs

Dependencies leave in the reverse order of their list: first the callback enqueues, then the transaction commits.
With `scope="function"` (FastAPI 0.121) both happen before the response is sent: whoever reads 202 has a job.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import background
from fastapi import Depends, FastAPI, Request
from models import Thumbnail
from pydantic import BaseModel
from pymongo import AsyncMongoClient

import axeq

store = axeq.Store()
queue = axeq.AsyncQueue(store)


class Image(BaseModel):
    name: str
    width: int = 320


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    client: AsyncMongoClient[Any]
    with background.worker() if os.environ.get("WITH_WORKER") else nullcontext():
        async with store, AsyncMongoClient(os.environ["AXEQ_URI"]) as client:
            app.state.database = client[store.place.database]
            yield


async def transaction(request: Request) -> AsyncIterator[None]:
    async with request.app.state.database.client.start_session() as session, await session.start_transaction():
        request.state.session = session  # where the handler and the callback find it
        yield


def thumbnail(request: Request) -> Thumbnail:
    image: Image = request.state.image
    return Thumbnail(image=image.name, width=image.width)


app = FastAPI(lifespan=lifespan)
in_transaction = Depends(transaction, scope="function")


@app.post("/images", status_code=202, dependencies=[in_transaction, Depends(queue.callback(thumbnail))])
async def upload(image: Image, request: Request) -> Image:
    await request.app.state.database.images.insert_one(image.model_dump(), session=request.state.session)
    request.state.image = image
    return image


@app.get("/jobs")
async def jobs() -> list[dict[str, Any]]:
    return [{"image": job.data["image"], "state": job.state, "result": job.result} for job in await queue.find()]
