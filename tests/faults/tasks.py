"""The jobs of the fault tests, and handlers that keep the ledger."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import axeq
from tests.faults.ledger import Ledger

__all__ = ["Crash", "Overrun", "Work", "crash", "overrun", "work"]


class Work(axeq.Model[int], name="work"):
    """A job that takes so many seconds, and fails in its first `failures` attempts."""

    number: int = 0
    seconds: float = 0.0
    failures: int = 0


class Crash(axeq.Model[None], name="crash"):
    """A job that ends the process that runs it."""

    how: Literal["kill", "exit", "segfault"]


class Overrun(axeq.Model[str], name="overrun"):
    """A job that takes longer than its timeout; `stubborn`, it goes on when it is told to stop, and returns late."""

    seconds: float
    stubborn: bool = False


def work(ledger: Ledger) -> Callable[[axeq.Context[Work, int]], Awaitable[int]]:
    async def work(ctx: axeq.Context[Work, int]) -> int:
        ledger.start(ctx.job)
        try:
            await asyncio.sleep(ctx.model.seconds)
        except asyncio.CancelledError:
            ledger.end(ctx.job, "stopped")
            raise
        if ctx.attempt <= ctx.model.failures:
            ledger.end(ctx.job, "raised")
            raise ValueError(f"attempt {ctx.attempt} fails")
        ledger.end(ctx.job)
        return ctx.model.number

    return work


def crash(ledger: Ledger) -> Callable[[axeq.Context[Crash, None]], Awaitable[None]]:
    async def crash(ctx: axeq.Context[Crash, None]) -> None:
        ledger.start(ctx.job)
        match ctx.model.how:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(137)
            case "segfault":
                ctypes.string_at(0)

    return crash


def overrun(ledger: Ledger) -> Callable[[axeq.Context[Overrun, str]], Awaitable[str]]:
    async def overrun(ctx: axeq.Context[Overrun, str]) -> str:
        ledger.start(ctx.job)
        until = time.monotonic() + ctx.model.seconds
        while (left := until - time.monotonic()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                if not ctx.model.stubborn:
                    ledger.end(ctx.job, "stopped")
                    raise
        ledger.end(ctx.job, "raised")
        return "late"

    return overrun
