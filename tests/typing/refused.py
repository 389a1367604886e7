"""Mistakes that both type checkers must find, each on the line that is marked, and nothing else."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

import axeq


class Made(BaseModel):
    path: str


class Thumbnail(axeq.Model[Made], name="thumbnail"):
    image: str
    width: int = 320


class Total(axeq.Model[int], name="total"):
    numbers: list[int]


class Plain(BaseModel):
    text: str


store = axeq.Store("mongodb://localhost:27017/shop")
queue = axeq.Queue(store)
pool = axeq.Pool(store)


async def thumbnail(ctx: axeq.Context[Thumbnail, Made]) -> Made:
    return Made(path=ctx.model.image)


async def of_another_model(ctx: axeq.Context[Total, int]) -> int:
    return sum(ctx.model.numbers)


async def returning_text(ctx: axeq.Context[Thumbnail, Made]) -> str:
    return ctx.model.image


def plainly_returning_text(ctx: axeq.Context[Thumbnail, Made]) -> str:
    return ctx.model.image


async def reading(ctx: axeq.Context[Thumbnail, Made]) -> Made:
    return Made(path=ctx.model.imagee)  # refuse: wrong field of the payload in a handler


def produce() -> None:
    queue.enqueue(Thumbnail(imagee="a.jpg"))  # refuse: wrong field name
    queue.enqueue(Thumbnail(image=3))  # refuse: wrong field type
    queue.enqueue(Plain(text="a"))  # refuse: plain model without a name
    queue.enqueue_many([Plain(text="a")])  # refuse: plain models without a name
    queue.enqueue(Thumbnail(image="a.jpg"), dealy=5)  # refuse: misspelt enqueue option
    queue.enqueue(Thumbnail(image="a.jpg"), delay="5 s")  # refuse: wrong type of an enqueue option
    queue.enqueue_many([Thumbnail(image="a.jpg")], label="a")  # refuse: label that is no function of the payload
    queue.enqueue_many([Thumbnail(image="a.jpg")], on_conflict="replace")  # refuse: what only enqueue does
    queue.enqueue_many([Thumbnail(image="a.jpg")], isolation=5)  # refuse: option that enqueue_many lacks
    queue.enqueue(Thumbnail(image="a.jpg"), on_conflict="skip")  # refuse: no such way to meet a conflict
    queue.enqueue(Thumbnail(image="a.jpg"), isolation="1 h")  # refuse: isolation that is no duration
    queue.enqueue(Thumbnail(image="a.jpg"), unique="yes")  # refuse: unique that is neither a bool nor a duration
    queue.callback(lambda request: None, isolation=5)  # refuse: option that a callback lacks
    number: int = queue.enqueue(Thumbnail(image="a.jpg")).wait()  # refuse: result of another type
    print(queue.enqueue(Thumbnail(image="a.jpg")).wait().name)  # refuse: wrong field of the result
    queue.take(Plain)  # refuse: plain model without a name when pulling
    queue.consume(Thumbnail, leese=30)  # refuse: misspelt option of consume
    for lease in queue.consume(Thumbnail):
        lease.complete(3)  # refuse: result of another type when pulling
    queue.find(state="done")  # refuse: a state that there is not
    queue.find(data="user_id")  # refuse: a search of payloads that names no field
    queue.enqueue(Total(numbers=[number])).wait(timeout="soon")  # refuse: timeout that is no duration


async def aproduce() -> None:
    jobs = axeq.AsyncQueue(store)
    await jobs.enqueue(Thumbnail(image="a.jpg"), dealy=5)  # refuse: misspelt enqueue option, async
    job = await jobs.enqueue(Thumbnail(image="a.jpg"))
    text: str = await job.wait()  # refuse: result of another type, async
    await jobs.enqueue(Thumbnail(image=text), retention=timedelta(days=1))


def declare() -> None:
    axeq.Task(Thumbnail, returning_text)  # refuse: handler returning another type
    axeq.Task(Thumbnail, plainly_returning_text)  # refuse: plain handler returning another type
    axeq.Task(Thumbnail, of_another_model)  # refuse: handler of another model's context
    axeq.Task(Plain, lambda ctx: None)  # refuse: plain model without a name in a task
    axeq.Task(Thumbnail, thumbnail, worker=4)  # refuse: misspelt task option
    axeq.Task(Thumbnail, thumbnail, workers="4")  # refuse: wrong type of a task option
    axeq.Task(Thumbnail, thumbnail, executor="fiber")  # refuse: executor that does not exist
    pool.task(Thumbnail)(returning_text)  # refuse: decorated handler returning another type
    pool.task(Thumbnail)(of_another_model)  # refuse: decorated handler of another model's context
    pool.task(Thumbnail, max_attempt=3)(thumbnail)  # refuse: misspelt option of the decorator
    pool.task(Plain)  # refuse: plain model without a name in the decorator
    axeq.Pool(store, leese=30)  # refuse: misspelt pool option
    axeq.Retry(delay="soon")  # refuse: delay that is no duration
