"""axeq: a typed job queue for Python on the MongoDB you already run.

import axeq

class Thumbnail(axeq.Model, name="thumbnail"):
    image: str

store = axeq.Store("mongodb://localhost:27017/shop")
axeq.Queue(store).enqueue(Thumbnail(image="a.jpg"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from axeq.asyncqueue import AsyncQueue
from axeq.errors import (
    AccessDenied,
    AlreadyRunning,
    AxeqError,
    Cancel,
    ConfigurationError,
    EnqueueUnknown,
    HandlerInvalid,
    IndexMissing,
    Isolated,
    JobCancelled,
    JobGone,
    JobNotFound,
    LabelTaken,
    LeaseLost,
    PayloadInvalid,
    PayloadSealed,
    PayloadTooLarge,
    ResultInvalid,
    Retry,
    ServerUnsuitable,
    Snooze,
    StoreError,
    StoreUnavailable,
    TaskExists,
    WaitTimeout,
)
from axeq.handle import AsyncJob, Job
from axeq.model import Model
from axeq.priority import Priority
from axeq.queue import Queue
from axeq.record import Record
from axeq.states import Cancellation, Cause, Phase, State
from axeq.store import Store

if TYPE_CHECKING:
    from axeq import backoff
    from axeq.context import Context
    from axeq.group import Group
    from axeq.lease import AsyncLease, Lease
    from axeq.pool import Pool
    from axeq.task import Task

__all__ = [
    "AccessDenied",
    "AlreadyRunning",
    "AsyncJob",
    "AsyncLease",
    "AsyncQueue",
    "AxeqError",
    "Cancel",
    "Cancellation",
    "Cause",
    "ConfigurationError",
    "Context",
    "EnqueueUnknown",
    "Group",
    "HandlerInvalid",
    "IndexMissing",
    "Isolated",
    "Job",
    "JobCancelled",
    "JobGone",
    "JobNotFound",
    "LabelTaken",
    "Lease",
    "LeaseLost",
    "Model",
    "PayloadInvalid",
    "PayloadSealed",
    "PayloadTooLarge",
    "Phase",
    "Pool",
    "Priority",
    "Queue",
    "Record",
    "ResultInvalid",
    "Retry",
    "ServerUnsuitable",
    "Snooze",
    "State",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "Task",
    "TaskExists",
    "WaitTimeout",
    "backoff",
]

_OF_WORKERS = {
    "AsyncLease": "axeq.lease",
    "Context": "axeq.context",
    "Group": "axeq.group",
    "Lease": "axeq.lease",
    "Pool": "axeq.pool",
    "Task": "axeq.task",
    "backoff": "axeq.backoff",
}


def __getattr__(name: str) -> Any:
    """Loads what workers use when it is first asked for: a web process that enqueues does not pay for it."""
    if name not in _OF_WORKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_OF_WORKERS[name])
    return globals().setdefault(name, getattr(module, name, module))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
