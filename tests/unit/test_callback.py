"""Callbacks without a server: what they refuse at declaration, which sessions they join, what they import."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import fastapi
import flask
import mongomock
import motor.motor_asyncio
import pymongo
import pytest

import axeq
from axeq.faces.callback import AsyncCallback, Callback
from tests.support.pools import python


class Thumbnail(axeq.Model, name="thumbnail"):
    image: str = "a.jpg"


class Recorder:
    """Stands for a queue, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def enqueue(self, payload: Any, **options: Any) -> None:
        self.asked.append({"payload": payload, **options})

    async def enqueue_later(self, payload: Any, **options: Any) -> None:
        self.enqueue(payload, **options)


def store() -> axeq.Store:
    return axeq.Store(mongomock.MongoClient())


def made(request: Any) -> Thumbnail:
    return Thumbnail()


async def amade(request: Any) -> Thumbnail:
    return Thumbnail()


async def always(request: Any) -> bool:
    return True


OPTIONS: dict[str, Any] = {"delay": 0, "when": None, "name": None, "session": None}


async def enqueued_by_async_route(held: Any) -> list[dict[str, Any]]:
    """Handles a request whose state holds `held` as its session, and returns what was asked of the queue."""
    recorder = Recorder()
    queue: Any = SimpleNamespace(enqueue=recorder.enqueue_later, enqueue_many=None)

    async def endpoint(request: Any) -> Any:
        return SimpleNamespace(status_code=200)

    route = AsyncCallback(queue, made, **OPTIONS).route(endpoint)
    await route(SimpleNamespace(state=SimpleNamespace(session=held)))
    return recorder.asked


def enqueued_by_flask(held: Any) -> list[dict[str, Any]]:
    """As `enqueued_by_async_route`, in Flask and sync."""
    recorder: Any = Recorder()
    with flask.Flask("unit").test_request_context():
        flask.g.session = held
        Callback(recorder, made, **OPTIONS)(flask.Response())
    return recorder.asked  # type: ignore[no-any-return]


@pytest.fixture
def client() -> Iterator[pymongo.MongoClient[Any]]:
    with pymongo.MongoClient(connect=False) as client:
        yield client


@pytest.mark.parametrize("face", [axeq.Queue, axeq.AsyncQueue])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"build": "made"}, "build"),
        ({"build": None}, "build"),
        ({"build": made, "when": True}, "when"),
        ({"build": made, "session": object()}, "session"),
        ({"build": made, "delay": -1}, "delay"),
        ({"build": made, "delay": "5"}, "delay"),
        ({"build": made, "priority": "high"}, "priority"),
        ({"build": made, "label": "a"}, "label"),
        ({"build": made, "unique": True, "on_conflict": "replace"}, "callback"),
        ({"build": made, "isolation": 5}, "callback"),
    ],
)
def test_a_callback_that_cannot_work_is_refused_where_it_is_declared(face: Any, options: Any, named: str) -> None:
    queue = face(store())

    with pytest.raises(axeq.ConfigurationError, match=rf"^{named} "):
        queue.callback(**options)


@pytest.mark.parametrize("options", [{"build": amade}, {"build": made, "when": always}])
def test_a_sync_queue_refuses_async_functions_where_they_are_declared(options: Any) -> None:
    queue = axeq.Queue(store())

    with pytest.raises(axeq.ConfigurationError, match="use AsyncQueue"):
        queue.callback(**options)


def test_an_awaitable_from_a_plain_when_is_refused_rather_than_taken_for_true() -> None:
    queue = axeq.Queue(store())
    callback = queue.callback(made, when=lambda request: always(request))  # type: ignore[arg-type, return-value]

    with flask.Flask("unit").test_request_context(), pytest.raises(axeq.ConfigurationError, match="awaitable"):
        callback(flask.Response())

    assert queue.find() == []


def test_flask_gets_its_own_response_back() -> None:
    callback = axeq.Queue(store()).callback(made)
    response = flask.Response("stored", 201)

    with flask.Flask("unit").test_request_context():
        returned = callback(response)

    assert returned is response


def test_plain_pydantic_models_go_under_the_name_given() -> None:
    from pydantic import BaseModel

    class Report(BaseModel):
        day: str = "monday"

    queue = axeq.Queue(store())

    with flask.Flask("unit").test_request_context():
        queue.callback(lambda request: Report(), name="report")(flask.Response())

    assert [job.name for job in queue.find()] == ["report"]


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_the_jobs_of_a_callback_take_options_and_a_label_made_of_their_payload(several: bool) -> None:
    queue = axeq.Queue(store())

    def build(request: Any) -> Any:
        return [Thumbnail(image="b.jpg")] if several else Thumbnail(image="b.jpg")

    callback = queue.callback(
        build, label=lambda payload: payload.image, on_conflict="ignore", priority=3, group="album-7"
    )
    with flask.Flask("unit").test_request_context():
        callback(flask.Response())
        callback(flask.Response())

    (job,) = queue.find()
    assert (job.label, job.priority, job.group) == ("b.jpg", 3, "album-7")


def test_a_starlette_class_endpoint_is_refused_with_the_way_that_works() -> None:
    class Upload: ...

    callback = axeq.AsyncQueue(store()).callback(made)

    with pytest.raises(axeq.ConfigurationError, match=r"middleware=\[Middleware\(callback.middleware\)\]"):
        callback.route(Upload)


def test_a_wrapped_view_keeps_its_name_for_the_frameworks_url_map() -> None:
    def upload() -> str:
        return "stored"

    wrapped = axeq.Queue(store()).callback(made).route(upload)

    assert wrapped.__name__ == "upload"


def test_a_sync_session_is_joined_while_its_transaction_is_open(client: pymongo.MongoClient[Any]) -> None:
    with client.start_session() as session:
        before = enqueued_by_flask(session)
        session.start_transaction()
        during = enqueued_by_flask(session)

    assert before[0]["session"] is None
    assert during[0]["session"] is session


async def test_an_async_session_is_joined_while_its_transaction_is_open() -> None:
    async with pymongo.AsyncMongoClient(connect=False) as client, client.start_session() as session:
        before = await enqueued_by_async_route(session)
        await session.start_transaction()
        during = await enqueued_by_async_route(session)

    assert before[0]["session"] is None
    assert during[0]["session"] is session


async def test_a_motor_session_is_joined_while_its_transaction_is_open() -> None:
    with closing(motor.motor_asyncio.AsyncIOMotorClient(connect=False)) as client:
        async with await client.start_session() as session:
            before = await enqueued_by_async_route(session)
            session.start_transaction()
            during = await enqueued_by_async_route(session)

    assert before[0]["session"] is None
    assert during[0]["session"] is session


def test_a_session_of_another_library_is_left_alone() -> None:
    class Session:
        """As SQLAlchemy's: the same name for its state, another meaning."""

        def in_transaction(self) -> bool:
            return True

    asked = enqueued_by_flask(Session())

    assert asked[0]["session"] is None


def test_a_session_that_has_ended_is_refused_rather_than_the_job_put_outside(
    client: pymongo.MongoClient[Any],
) -> None:
    session = client.start_session()
    session.start_transaction()
    session.end_session()

    with pytest.raises(axeq.ConfigurationError, match="has ended before the callback"):
        enqueued_by_flask(session)


def test_fastapi_that_would_run_it_after_the_response_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def old_depends(dependency: Any = None, *, use_cache: bool = True) -> None: ...

    monkeypatch.setattr(fastapi, "Depends", old_depends)
    callback = axeq.AsyncQueue(store()).callback(made)

    with pytest.raises(axeq.ConfigurationError, match=r"0\.121"):
        inspect.signature(callback)


@pytest.mark.parametrize("face", [axeq.Queue, axeq.AsyncQueue])
def test_a_callback_has_its_own_signature_where_fastapi_is_not_in_use(
    face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "fastapi")
    callback = face(store()).callback(made)

    assert inspect.signature(callback) == inspect.signature(callback.__call__)
    assert "build" in inspect.signature(type(callback)).parameters


@pytest.mark.parametrize("face", [axeq.Queue, axeq.AsyncQueue])
async def test_a_callback_for_a_whole_fastapi_app_lets_its_websockets_be(face: Any) -> None:
    queue = face(store())
    app = fastapi.FastAPI(dependencies=[fastapi.Depends(queue.callback(made))])
    sent: list[str] = []

    @app.websocket("/")
    async def greet(socket: fastapi.WebSocket) -> None:
        await socket.accept()
        await socket.close()

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "websocket", "path": "/", "headers": [], "query_string": b""}, receive, send)

    assert sent == ["websocket.accept", "websocket.close"]
    assert axeq.Queue(queue.store).find() == []


def test_both_queues_take_the_same_options() -> None:
    faces = [inspect.signature(face.callback).parameters for face in (axeq.Queue, axeq.AsyncQueue)]

    assert [(each.name, each.kind, each.default) for each in faces[0].values()] == [
        (each.name, each.kind, each.default) for each in faces[1].values()
    ]


def test_a_callback_needs_no_web_framework_to_be_declared() -> None:
    program = """
import sys, axeq
queue = axeq.Queue(axeq.Store("mongodb://127.0.0.1/"))
queue.callback(lambda request: None)
print(sorted({"fastapi", "starlette", "flask", "werkzeug"} & set(sys.modules)))
"""

    with python("-c", program) as process:
        output, errors = process.communicate(timeout=60)

    assert (output, errors) == ("[]\n", "")
