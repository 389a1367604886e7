"""A job and the caller's own documents in one transaction, in sync code and in async code.

cd examples
export AXEQ_URI='mongodb://localhost:27017/shop'    # a replica set; or what `axeq dev ./data` prints
python transactional.py
"""

import asyncio
import os
from typing import Any

from models import Thumbnail
from pymongo import AsyncMongoClient, MongoClient

import axeq


class TooWide(Exception):
    """Stands in for whatever may go wrong in a transaction."""


def upload(client: MongoClient[Any], queue: axeq.Queue, image: str, width: int) -> None:
    """Stores an image and its job: both or, where anything raises, neither."""
    images = client[queue.store.place.database].images
    with client.start_session() as session, session.start_transaction():
        images.insert_one({"image": image}, session=session)
        queue.enqueue(Thumbnail(image=image, width=width), session=session)
        if width > 1000:
            raise TooWide


async def aupload(client: AsyncMongoClient[Any], queue: axeq.AsyncQueue, image: str, width: int) -> None:
    """As `upload`, in async code."""
    images = client[queue.store.place.database].images
    async with client.start_session() as session, await session.start_transaction():
        await images.insert_one({"image": image}, session=session)
        await queue.enqueue(Thumbnail(image=image, width=width), session=session)
        if width > 1000:
            raise TooWide


def main(uri: str) -> None:
    client: MongoClient[Any]
    with MongoClient(uri) as client, axeq.Store(client) as store:
        queue = axeq.Queue(store, "sync")
        upload(client, queue, "a.jpg", 320)
        try:
            upload(client, queue, "b.jpg", 4000)
        except TooWide:
            print("sync: jobs for", [job.data["image"] for job in queue.find()])


async def amain(uri: str) -> None:
    client: AsyncMongoClient[Any]
    async with AsyncMongoClient(uri) as client, axeq.Store(client) as store:
        queue = axeq.AsyncQueue(store, "async")
        await aupload(client, queue, "a.jpg", 320)
        try:
            await aupload(client, queue, "b.jpg", 4000)
        except TooWide:
            print("async: jobs for", [job.data["image"] for job in await queue.find()])


if __name__ == "__main__":
    main(os.environ["AXEQ_URI"])
    asyncio.run(amain(os.environ["AXEQ_URI"]))

# sync: jobs for ['a.jpg']
# async: jobs for ['a.jpg']
