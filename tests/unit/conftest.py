"""What the unit tests share: none of them needs a server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import mongomock
import pytest
from hypothesis import settings

import axeq

from .playing import ScriptedClock

settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True, database=None)
settings.register_profile("local", max_examples=50, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock()


@pytest.fixture
def database() -> Any:
    return mongomock.MongoClient(tz_aware=True)["axeq"]


@pytest.fixture
async def store(database: Any) -> AsyncIterator[axeq.Store]:
    async with axeq.Store(database) as store:
        yield store
