"""axeq: a typed job queue for Python on the MongoDB you already run.

import axeq

class Thumbnail(axeq.Model, name="thumbnail"):
    image: str

store = axeq.Store("mongodb://localhost:27017/shop")
axeq.Queue(store).enqueue(Thumbnail(image="a.jpg"))
"""

from axeq.context import Context
from axeq.errors import (
    AccessDenied,
    AlreadyRunning,
    AxeqError,
    Cancel,
    ConfigurationError,
    EnqueueUnknown,
    HandlerInvalid,
    IndexMissing,
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
from axeq.manage import Cancellation
from axeq.model import Model
from axeq.pool import Pool
from axeq.queue import AsyncQueue, Queue
from axeq.record import Record
from axeq.states import Cause, State
from axeq.store import Store
from axeq.task import Task

__all__ = [
    "AccessDenied",
    "AlreadyRunning",
    "AsyncJob",
    "AsyncQueue",
    "AxeqError",
    "Cancel",
    "Cancellation",
    "Cause",
    "ConfigurationError",
    "Context",
    "EnqueueUnknown",
    "HandlerInvalid",
    "IndexMissing",
    "Job",
    "JobCancelled",
    "JobGone",
    "JobNotFound",
    "LabelTaken",
    "LeaseLost",
    "Model",
    "PayloadInvalid",
    "PayloadSealed",
    "PayloadTooLarge",
    "Pool",
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
]
