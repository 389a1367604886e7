"""What the unit tests share: none of them needs a server."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from .playing import ScriptedClock

settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True, database=None)
settings.register_profile("local", max_examples=50, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock()
