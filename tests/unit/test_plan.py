"""What a pool may be told, and how it refuses the rest: at once, naming the option and what would do."""

from __future__ import annotations

from typing import Any

import pytest

import axeq

URI = "mongodb://localhost:27017/shop"


def pool(**options: Any) -> axeq.Pool:
    return axeq.Pool(axeq.Store(URI), **options)


@pytest.mark.parametrize(
    ("options", "queues"),
    [
        ({}, {"default": 1}),
        ({"queue": "mail"}, {"mail": 1}),
        ({"queues": {"critical": 6, "low": 1}}, {"critical": 6, "low": 1}),
        ({"queues": ["a", "b"]}, {"a": 1, "b": 1}),
        ({"queues": ("a",), "strict": True}, {"a": 1}),
    ],
)
def test_a_pool_serves_the_queues_it_is_told(options: dict[str, Any], queues: dict[str, int]) -> None:
    assert pool(**options).queues == queues


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queue": "a", "queues": ["b"]}, "give queue= or queues=, not both"),
        ({"queues": []}, "queues must have 1 to 100 queues, not 0"),
        ({"queues": {}}, "queues must have 1 to 100 queues, not 0"),
        ({"queues": "a,b"}, "queues must be a list of names, or names with weights, not 'a,b'"),
        ({"queues": 7}, "queues must be a list of names"),
        ({"queues": ["a", "b", "a"]}, "queues has one of a, b twice"),
        ({"queues": [["a"]]}, "name ['a'] must be"),
        ({"queues": {"a": 0}}, "queues: the weight of 'a' must be a whole number from 1 to 1,000, not 0"),
        ({"queues": {"a": 1.5}}, "queues: the weight of 'a' must be a whole number"),
        ({"queues": {"a": True}}, "queues: the weight of 'a' must be a whole number"),
        ({"queues": {"$where": 1}}, "name '$where' must be"),
        ({"strict": True}, "give queues= in place of queue="),
        ({"queues": ["a"], "strict": "yes"}, "strict must be True or False, not 'yes'"),
        ({"order": "newest"}, 'order must be "priority" or "due", not \'newest\''),
        ({"lag": "none"}, 'lag must be "ranked" or "random", not \'none\''),
        ({"concurrency": 0}, "concurrency must be a whole number from 1 to 100,000, not 0"),
        ({"concurrency": 2.0}, "concurrency must be a whole number"),
        ({"max_interval": 0}, "max_interval must be longer than 0 s"),
        ({"unknown": "drop"}, 'unknown must be "leave", "park" or a handler, not \'drop\''),
        ({"unknown": None}, 'unknown must be "leave", "park" or a handler, not None'),
        ({"unknown": lambda: None}, "must take one argument, the Context"),
        ({"workers": 3}, "a pool has no option workers: see help(axeq.Pool)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(axeq.AxeqError) as caught:
        pool(**options)

    assert said in str(caught.value)


def test_queues_and_concurrency_come_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXEQ_QUEUES", "critical=6,low=1")
    monkeypatch.setenv("AXEQ_CONCURRENCY", "7")

    said = pool(), pool(queue="mail", concurrency=3), pool(queues=["other"])

    assert [each.queues for each in said] == [{"critical": 6, "low": 1}, {"mail": 1}, {"other": 1}]
    assert [each._plan.concurrency for each in said] == [7, 3, 7]


@pytest.mark.parametrize(
    ("variable", "value"), [("AXEQ_QUEUES", "a=5000"), ("AXEQ_QUEUES", "a b=1"), ("AXEQ_CONCURRENCY", "0")]
)
def test_what_the_environment_says_amiss_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(axeq.ConfigurationError, match=variable if "b=" not in value else "name 'a b'"):
        pool()


def test_outside_of_a_pool_there_is_no_worker_number() -> None:
    context: Any = axeq.Context(model=None, job=None, result_type=None, store=None)  # type: ignore[arg-type]

    assert context.worker_index == -1
