"""Jobs that report, keep checkpoints and complete in transactions, with handlers of every kind for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pydantic
import pytest

import axeq

__all__ = ["FACES", "Cursor", "Mail", "Order", "Step", "orders", "steps"]

FACES = ("loop", "thread", pytest.param("process", marks=pytest.mark.needs("processes")))
"""Where handlers run, to parametrize a test by."""


class Cursor(pydantic.BaseModel):
    page: int
    seen: set[str] = set()


class Step(axeq.Model[list[int] | None], name="step"):
    """A job in two attempts: what its `first` does, and its second."""

    first: Literal["ok", "fail", "report", "hang"] = "ok"


class Mail(axeq.Model[None], name="mail"):
    item: str


class Order(axeq.Model[str], name="order"):
    """A job that completes in a transaction with an order in `database` and a `Mail`."""

    database: str
    item: str = "tea"
    fails: Literal["", "inside", "after", "collides", "hangs", "overruns", "result", "nests", "again", "keeps"] = ""
    transacts: bool = False


def steps(face: str) -> Callable[[axeq.Context[Step, list[int] | None]], Any]:
    """Returns the handler of `Step`: its first attempt reports and keeps a checkpoint, its second tells of it."""
    return _step if face == "loop" else _sync_step


def orders(face: str) -> Callable[[axeq.Context[Order, str]], Any]:
    """Returns the handler of `Order`."""
    return _order if face == "loop" else _sync_order


async def _step(ctx: axeq.Context[Step, list[int] | None]) -> list[int] | None:
    cursor = ctx.restore(Cursor)
    if cursor is not None:
        return [cursor.page, *(len(seen) for seen in cursor.seen)]
    ctx.progress(0.5, "half way", partial=[1])
    if ctx.model.first == "fail":
        await ctx.checkpoint(Cursor(page=6))
        await ctx.checkpoint(Cursor(page=7, seen={"seven"}))
        raise ValueError("first")
    if ctx.model.first == "hang":
        await asyncio.sleep(3600)
    return None if ctx.model.first == "report" else [2]


def _sync_step(ctx: axeq.Context[Step, list[int] | None]) -> list[int] | None:
    cursor = ctx.restore(Cursor)
    if cursor is not None:
        return [cursor.page, *(len(seen) for seen in cursor.seen)]
    ctx.progress(0.5, "half way", partial=[1])
    if ctx.model.first == "fail":
        ctx.sync_checkpoint(Cursor(page=6))
        ctx.sync_checkpoint(Cursor(page=7, seen={"seven"}))
        raise ValueError("first")
    if ctx.model.first == "hang":
        ctx.wait_cancelled(3600)
        ctx.check()
    return None if ctx.model.first == "report" else [2]


async def _order(ctx: axeq.Context[Order, str]) -> str:
    if ctx.model.transacts:
        return await ctx.transact(lambda session: _place(ctx, session))
    async with ctx.transaction() as session:
        ctx.result = await _place(ctx, session)
        if ctx.model.fails == "nests":
            async with ctx.transaction():
                pass
        if ctx.model.fails == "keeps":
            await ctx.checkpoint(1)
    if ctx.model.fails == "again":
        async with ctx.transaction():
            pass
    if ctx.model.fails == "after":
        raise ValueError("after")
    return "too late"


async def _place(ctx: axeq.Context[Order, str], session: Any) -> str:
    model = ctx.model
    database = session.client[model.database]
    if model.fails == "collides" and not (await database["tries"].insert_one({})).acknowledged:
        raise AssertionError
    stock = await database["stock"].find_one({"_id": model.item}, session=session)
    if model.fails == "collides" and await database["tries"].count_documents({}) == 1:
        await database["stock"].update_one({"_id": model.item}, {"$inc": {"left": -1}})
    await database["stock"].update_one({"_id": model.item}, {"$inc": {"left": -1}}, session=session)
    await database["orders"].insert_one({"item": model.item, "left": stock["left"]}, session=session)
    await ctx.queue.enqueue(Mail(item=model.item), session=session)
    if model.fails == "inside":
        raise ValueError("inside")
    if model.fails in ("hangs", "overruns"):
        await database["hanging"].insert_one({})
        if model.fails == "overruns":
            ctx.extend(0.1)
        await asyncio.sleep(3600)
    return _result(model)


def _sync_order(ctx: axeq.Context[Order, str]) -> str:
    if ctx.model.transacts:
        return ctx.sync_transact(lambda session: _sync_place(ctx, session))
    with ctx.sync_transaction() as session:
        ctx.result = _sync_place(ctx, session)
        if ctx.model.fails == "nests":
            with ctx.sync_transaction():
                pass
        if ctx.model.fails == "keeps":
            ctx.sync_checkpoint(1)
    if ctx.model.fails == "again":
        with ctx.sync_transaction():
            pass
    if ctx.model.fails == "after":
        raise ValueError("after")
    return "too late"


def _sync_place(ctx: axeq.Context[Order, str], session: Any) -> str:
    model = ctx.model
    database = session.client[model.database]
    if model.fails == "collides":
        database["tries"].insert_one({})
    stock: Mapping[str, Any] = database["stock"].find_one({"_id": model.item}, session=session)
    if model.fails == "collides" and database["tries"].count_documents({}) == 1:
        database["stock"].update_one({"_id": model.item}, {"$inc": {"left": -1}})
    database["stock"].update_one({"_id": model.item}, {"$inc": {"left": -1}}, session=session)
    database["orders"].insert_one({"item": model.item, "left": stock["left"]}, session=session)
    ctx.sync_queue.enqueue(Mail(item=model.item), session=session)
    if model.fails == "inside":
        raise ValueError("inside")
    if model.fails in ("hangs", "overruns"):
        database["hanging"].insert_one({})
        if model.fails == "overruns":
            ctx.extend(0.1)
        while not ctx.cancelled:
            time.sleep(0.01)
        ctx.check()
    return _result(model)


def _result(model: Order) -> Any:
    return 7 if model.fails == "result" else model.item.upper()
