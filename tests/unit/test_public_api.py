"""What `import axeq` gives: the names are pinned, each says what it is, and no extra is loaded."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import axeq

PUBLIC = [
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

UNITS = {
    "delay": r"timedelta|seconds",
    "timeout": r"seconds|default 10 min",
    "retention": r"days|how long",
    "cancelled_retention": r"days",
    "lease": r"default 30 s",
    "drain": r"default 25 s",
    "max_lag": r"100 ms",
    "interval": r"100 ms",
    "min_delay": r"1 s",
    "max_delay": r"10 min|or seconds",
    "max_payload": r"bytes",
    "max_result": r"bytes",
    "size": r"bytes",
}
ELSEWHERE = r"as for|[Oo]therwise as"


def public_callables() -> Iterator[tuple[str, Any]]:
    """Yields every public class, and every public method and property of its own or a base of axeq's."""
    for name in axeq.__all__:
        value = getattr(axeq, name)
        yield name, value
        members = vars(value) if inspect.isclass(value) else {}
        for base in value.__mro__ if inspect.isclass(value) else ():
            if base.__module__.startswith("axeq"):
                members = {**vars(base), **members}
        for member, attribute in members.items():
            if not member.startswith("_") and (callable(attribute) or isinstance(attribute, _MEMBERS)):
                yield f"{name}.{member}", attribute


_MEMBERS = (property, classmethod, staticmethod)
CALLABLES = dict(public_callables())


def parameters(name: str, value: Any) -> list[str]:
    if isinstance(value, property | ModuleType) or (inspect.isclass(value) and value.__init__ is object.__init__):
        return []
    called: Callable[..., Any] = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    try:
        return list(inspect.signature(called).parameters)
    except ValueError:
        return []


def test_the_public_names_are_these_and_no_others() -> None:
    assert axeq.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC


def test_every_public_name_is_there() -> None:
    assert [name for name in PUBLIC if not hasattr(axeq, name)] == []


@pytest.mark.parametrize("name", CALLABLES)
def test_everything_public_says_what_it_is_for(name: str) -> None:
    assert inspect.getdoc(CALLABLES[name])


@pytest.mark.parametrize(
    "name", [name for name, value in CALLABLES.items() if UNITS.keys() & set(parameters(name, value))]
)
def test_durations_and_sizes_say_their_unit(name: str) -> None:
    documented = inspect.getdoc(CALLABLES[name]) or ""

    unitless = [
        parameter
        for parameter in parameters(name, CALLABLES[name])
        if parameter in UNITS and not re.search(f"{UNITS[parameter]}|{ELSEWHERE}", documented)
    ]
    assert unitless == []


def test_a_task_says_the_unit_and_default_of_every_option() -> None:
    documented = inspect.getdoc(axeq.Task) or ""

    options = importlib.import_module("axeq.faces.task").TaskOptions.__annotations__
    assert [option for option in options if f"`{option}`" not in documented] == []
    assert "timedelta" in documented


def test_a_pool_says_what_every_option_means_and_its_default() -> None:
    documented = inspect.getdoc(axeq.Pool) or ""

    options = importlib.import_module("axeq.running.plan").PoolOptions.__annotations__
    assert [option for option in options if f"- `{option}`: " not in documented] == []
    assert "timedelta" in documented


def test_enqueue_says_what_every_option_means() -> None:
    documented = inspect.getdoc(axeq.Queue.enqueue) or ""

    options = importlib.import_module("axeq.faces.queue").EnqueueOptions.__annotations__
    assert [option for option in options if f"`{option}`" not in documented] == []


def test_both_faces_of_a_queue_have_the_same_verbs_and_options() -> None:
    for sync, asynchronous in ((axeq.Queue, axeq.AsyncQueue), (axeq.Job, axeq.AsyncJob)):
        verbs = [
            {name for name, _ in inspect.getmembers(face, inspect.isfunction) if not name.startswith("_")}
            for face in (sync, asynchronous)
        ]
        assert verbs[0] == verbs[1]
        for verb in verbs[0]:
            options = [inspect.signature(getattr(face, verb)).parameters for face in (sync, asynchronous)]
            assert list(options[0]) == list(options[1]), verb
            defaults = [[parameter.default for parameter in taken.values()] for taken in options]
            assert defaults[0] == defaults[1], verb


def test_every_error_is_caught_as_one_of_axeqs() -> None:
    errors = [getattr(axeq, name) for name in PUBLIC if isinstance(getattr(axeq, name), type)]
    raised_by_axeq = [error for error in errors if issubclass(error, Exception)]

    outcomes = {axeq.Retry, axeq.Cancel, axeq.Snooze}
    assert {error for error in raised_by_axeq if not issubclass(error, axeq.AxeqError)} == outcomes


def test_importing_axeq_loads_no_extra() -> None:
    program = "import sys, axeq; print(*sorted({name.partition('.')[0] for name in sys.modules}))"

    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()

    extras = {
        "click",
        "rich",
        "motor",
        "mongomock",
        "secantus",
        "flask",
        "fastapi",
        "starlette",
        "hypothesis",
        "pytest",
    }
    assert "pymongo" in loaded
    assert extras.isdisjoint(loaded)


def test_every_module_names_what_it_exports_and_has_it() -> None:
    for found in pkgutil.walk_packages(axeq.__path__, "axeq."):
        module = importlib.import_module(found.name)

        assert found.ispkg or module.__all__, found.name
        assert [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)] == []
