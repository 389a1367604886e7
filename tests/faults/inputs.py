"""What the tests of inputs share: a model that takes anything, a queue in memory, and how much is tried at random."""

from __future__ import annotations

import os
from typing import Any

import mongomock
from hypothesis import HealthCheck, settings

import axeq

__all__ = ["KIB", "MIB", "Anything", "fuzzed", "on_mongomock"]

EXAMPLES = int(os.environ.get("AXEQ_EXAMPLES", "500"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="AXEQ_SEED" not in os.environ,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

KIB, MIB = 1024, 1024 * 1024


class Anything(axeq.Model[Any], name="anything"):
    value: Any = None


def on_mongomock() -> tuple[axeq.Queue, Any]:
    """Returns a queue of its own, and the collection behind it."""
    database = mongomock.MongoClient()["axeq"]
    return axeq.Queue(axeq.Store(database)), database["jobs"]
