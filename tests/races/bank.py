"""A worker process that moves money in transactions, and walks with checkpoints: `bank URI LEDGER LEASE WORKERS`.

`AXEQ_BANK_LIMIT` in its environment is for how many seconds its transactions may be open.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import pydantic

import axeq
from axeq.faces import atomic
from axeq.rules import transaction
from tests.races.serving import Ledger, serve

ACCOUNTS = 3
LIMIT = "AXEQ_BANK_LIMIT"

Moment = Literal["", "written", "completed", "committed"]


class Transfer(axeq.Model[int], name="transfer"):
    """Moves an `amount` in a transaction; a process is killed at `dies`, once in the job's life."""

    source: int
    target: int
    amount: int
    dies: Moment = ""


class PlainTransfer(Transfer, name="plain-transfer"):
    """The same by a plain function."""


class Receipt(axeq.Model[None], name="receipt"):
    """What follows a transfer."""

    transfer: str


class Walk(axeq.Model[list[str]], name="walk"):
    """Goes on where an earlier attempt has come to; the first is killed on the way."""


class Place(pydantic.BaseModel):
    page: int
    at: datetime


def build(store: axeq.Store, _ledger: Ledger, lease: float, workers: int) -> axeq.Pool:
    pool = axeq.Pool(store, lease=lease, drain=1, max_lag=0)

    @pool.task(Transfer, workers=workers, max_attempts=1)
    async def transfer(ctx: axeq.Context[Transfer, int]) -> int:
        async def move(session: Any) -> int:
            database, model = session.client.get_default_database(), ctx.model
            _check_alone(await database["moves"].count_documents({"transfer": str(ctx.job.id)}, session=session))
            for account, amount in ((model.source, -model.amount), (model.target, model.amount)):
                await database["accounts"].update_one({"_id": account}, {"$inc": {"has": amount}}, session=session)
            await database["moves"].insert_one({"transfer": str(ctx.job.id)}, session=session)
            await ctx.queue.enqueue(Receipt(transfer=str(ctx.job.id)), session=session)
            _perhaps_die(ctx, "written")
            return model.amount

        if ctx.model.amount % 2:
            return await ctx.transact(move)
        async with ctx.transaction() as session:
            ctx.result = await move(session)
        return 0

    @pool.task(PlainTransfer, workers=workers, max_attempts=1)
    def plain(ctx: axeq.Context[PlainTransfer, Any]) -> int:
        def move(session: Any) -> int:
            database, model = session.client.get_default_database(), ctx.model
            for account, amount in ((model.source, -model.amount), (model.target, model.amount)):
                database["accounts"].update_one({"_id": account}, {"$inc": {"has": amount}}, session=session)
            database["moves"].insert_one({"transfer": str(ctx.job.id)}, session=session)
            ctx.sync_queue.enqueue(Receipt(transfer=str(ctx.job.id)), session=session)
            return model.amount

        return ctx.sync_transact(move)

    @pool.task(Receipt, workers=workers)
    async def receipt(ctx: axeq.Context[Receipt, None]) -> None:
        database = (await ctx.store.async_wire()).client.get_default_database()
        await database["receipts"].insert_one({"transfer": ctx.model.transfer})

    @pool.task(Walk, workers=workers, max_attempts=1)
    async def walk(ctx: axeq.Context[Walk, list[str]]) -> list[str]:
        place = ctx.restore(Place)
        if place is None:
            await ctx.checkpoint(Place(page=3, at=datetime(2026, 1, 1, tzinfo=UTC)))
            os.kill(os.getpid(), signal.SIGKILL)
        return [repr(place)]

    return pool


def _check_alone(moves: int) -> None:
    assert moves == 0, "the transfer has happened already"


_dying: list[str] = []


def _perhaps_die(ctx: axeq.Context[Transfer, int], moment: Moment) -> None:
    if ctx.job.lost > 1:
        return  # it has died of this once
    if ctx.model.dies == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    _dying[:] = [ctx.model.dies]


def _mortal() -> None:
    """Has the process die around the commit of a job that says so."""
    commit = transaction._commit

    def mortal() -> Iterator[Any]:
        if _dying == ["completed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from commit()
        if _dying == ["committed"]:
            os.kill(os.getpid(), signal.SIGKILL)

    transaction._commit = mortal  # type: ignore[assignment]
    transaction.LIMIT = atomic.LIMIT = float(os.environ.get(LIMIT, transaction.LIMIT))


if __name__ == "__main__":
    _mortal()
    serve(build)
