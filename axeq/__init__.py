"""axeq: a typed job queue for Python on the MongoDB you already run.

import axeq

class Thumbnail(axeq.Model, name="thumbnail"):
    image: str

store = axeq.Store("mongodb://localhost:27017/shop")
axeq.Queue(store).enqueue(Thumbnail(image="a.jpg"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from axeq.documents.model import Model
from axeq.documents.record import Record
from axeq.faces.asyncqueue import AsyncQueue
from axeq.faces.handle import AsyncJob, Job
from axeq.faces.queue import Queue
from axeq.wire.store import Store
from axeq.words import errors as errors
from axeq.words.errors import (
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
from axeq.words.priority import Priority
from axeq.words.states import Cancellation, Cause, Phase, State

if TYPE_CHECKING:
    from axeq.faces.context import Context
    from axeq.faces.lease import AsyncLease, Lease
    from axeq.faces.task import Task
    from axeq.rules.group import Group
    from axeq.running.pool import Pool
    from axeq.words import backoff

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
    "AsyncLease": "axeq.faces.lease",
    "Context": "axeq.faces.context",
    "Group": "axeq.rules.group",
    "Lease": "axeq.faces.lease",
    "Pool": "axeq.running.pool",
    "Task": "axeq.faces.task",
    "backoff": "axeq.words.backoff",
}


for _error in (vars(errors)[name] for name in errors.__all__ if name in __all__):
    _error.__module__ = __name__  # a traceback shows the name by which users catch it


def __getattr__(name: str) -> Any:
    """Loads what workers use when it is first asked for: a web process that enqueues does not pay for it."""
    if name not in _OF_WORKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_OF_WORKERS[name])
    return globals().setdefault(name, getattr(module, name, module))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
