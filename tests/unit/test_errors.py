"""Errors: no credentials in any text, and the whole of them in another process."""

from __future__ import annotations

import copy
import pickle
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axeq.words import errors
from axeq.words.errors import AxeqError, StoreUnavailable, redact


def subclasses(error: type[AxeqError]) -> set[type[AxeqError]]:
    """Returns the errors of the tree: those that axeq declares."""
    found = {error}.union(*(subclasses(each) for each in error.__subclasses__()))
    return {each for each in found if each in vars(errors).values()}


PLAIN = [errors.ConfigurationError("timeout must be longer than 0 s"), errors.DuplicateKey([1, 4])]
WITH_ATTRIBUTES: list[AxeqError] = [
    errors.PayloadTooLarge("thumbnail", 300_000, 262_144),
    errors.LabelTaken("thumbnail", "a.jpg", existing_id=17, aborted=True),
    errors.Isolated("thumbnail", None, until=datetime(2026, 5, 4, tzinfo=UTC), existing_id=17, aborted=True),
    errors.EnqueueUnknown([1, 2, 3, 4], "timed out"),
    errors.JobNotFound(17),
    errors.JobGone(17),
    errors.JobCancelled(17, "exhausted", {"type": "ValueError", "message": "x"}),
    errors.WaitTimeout(17, 30.0, "enqueued"),
    errors.LeaseLost(17, "another worker has it"),
    errors.StoreUnavailable("h:1", "refused", sent=False),
    errors.AccessDenied("h:1", "not authorized"),
    errors.IndexMissing("label", "jobs", "keeps labels unique"),
]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("mongodb://ann:s3cret@h/db", "mongodb://***@h/db"),
        ("mongodb+srv://ann:s3cret@cluster.example/db", "mongodb+srv://***@cluster.example/db"),
        ("MongoDB://ann:s3cret@h", "MongoDB://***@h"),
        ("mongodb://ann@h/db", "mongodb://***@h/db"),
        ("mongodb://ann:s3%2Fcr%40e%3At@h/db", "mongodb://***@h/db"),
        ("mongodb://ann:s3@cret@h/db", "mongodb://***@h/db"),
        ("mongodb://ann:s3cret@a:1,b:2,c:3/db?replicaSet=rs", "mongodb://***@a:1,b:2,c:3/db?replicaSet=rs"),
        ("from mongodb://u:s3cret@a/x to mongodb://v:s3cret@b/y.", "from mongodb://***@a/x to mongodb://***@b/y."),
        ("redis://:s3cret@h/0", "redis://***@h/0"),
        ("{'host': 'mongodb://ann:s3cret@h/db'}", "{'host': 'mongodb://***@h/db'}"),
        ("line one\nmongodb://ann:s3cret@h/db\n", "line one\nmongodb://***@h/db\n"),
        ("mongodb://h:27017/db", "mongodb://h:27017/db"),
        ("ask ann@example.org", "ask ann@example.org"),
    ],
)
def test_credentials_are_taken_out_of_every_uri_in_a_text(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_credentials_of_uris_without_a_space_between_them_are_taken_out() -> None:
    clean = redact("mongodb://u:s3cret@a/x,mongodb+srv://v:s3cret@b/y")

    assert "s3cret" not in clean
    assert clean.endswith("@b/y")


@pytest.mark.parametrize("uri", ["mongodb://ann:s3/cret@h/db", "mongodb+srv://ann:/s3cret@h/db"])
def test_a_password_that_should_have_been_encoded_is_taken_out_as_well(uri: str) -> None:
    assert "cret" not in redact(uri)


@given(st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1))
def test_no_password_without_a_space_survives(password: str) -> None:
    secret = f"s3{password}cret"

    assert secret not in redact(f"cannot reach mongodb://ann:{secret}@h/db: refused")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("y" * 20_000, id="a long word"),
        pytest.param("a://" * 20_000, id="many schemes"),
        pytest.param("mongodb://u:p@h/ " * 5_000, id="many URIs"),
    ],
)
def test_a_long_text_does_not_hold_up_the_loop(text: str) -> None:
    started = time.thread_time()

    redact(text)

    assert time.thread_time() - started < 0.5


def test_no_error_of_axeq_shows_credentials() -> None:
    cause = ValueError("mongodb://ann:s3cret@h/db")

    assert "s3cret" not in str(StoreUnavailable("h", cause))
    assert "s3cret" not in repr(errors.ConfigurationError(str(cause)))


def test_every_error_has_a_text_even_when_raised_bare() -> None:
    bare = [error for error in subclasses(AxeqError) if error.__init__ is AxeqError.__init__]

    assert errors.StoreError in bare
    assert [error for error in bare if not str(error())] == []


def test_every_error_with_attributes_is_tried_below() -> None:
    custom = {error for error in subclasses(AxeqError) if "__init__" in vars(error)} - {AxeqError}

    assert custom == {type(error) for error in [*WITH_ATTRIBUTES, errors.DuplicateKey()]}


@pytest.mark.parametrize("error", PLAIN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "through", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_an_error_reaches_another_process_as_it_was(error: Exception, through: Any) -> None:
    _assert_same(through(error), error)


@pytest.mark.parametrize("error", WITH_ATTRIBUTES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "through", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_an_error_with_attributes_reaches_another_process_as_it_was(error: Exception, through: Any) -> None:
    _assert_same(through(error), error)


@pytest.mark.parametrize(
    "outcome",
    [
        errors.Retry("busy", delay=5),
        errors.Retry(at=datetime(2027, 1, 1, tzinfo=UTC)),
        errors.Cancel("not wanted"),
        errors.Snooze(delay=60),
    ],
    ids=repr,
)
def test_an_outcome_reaches_another_process_as_it_was(outcome: Exception) -> None:
    _assert_same(pickle.loads(pickle.dumps(outcome)), outcome)


def _assert_same(found: Exception, error: Exception) -> None:
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_the_tree_in_the_module_shows_every_error_under_its_base() -> None:
    assert errors.__doc__ is not None
    shown: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if "+- " not in line:
            continue
        depth, name = line.index("+- ") // 4, line.split("+- ")[1].split()[0]
        path = [*path[:depth], name]
        shown[name] = path[depth - 1] if depth else "AxeqError"

    assert shown == {error.__name__: error.__mro__[1].__name__ for error in subclasses(AxeqError) - {AxeqError}}
