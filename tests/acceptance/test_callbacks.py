"""Callbacks on every shape of route, behind real servers: what the client saw, and which jobs there are."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import flask
import httpx
import pymongo
import pytest
import uvicorn
import werkzeug.serving
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from motor.motor_asyncio import AsyncIOMotorClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import axeq
from tests.support.waiting import DEADLINE, eventually


class Thumbnail(axeq.Model, name="thumbnail"):
    image: str


Make = Callable[[str], Any]


def one(image: str) -> Thumbnail:
    return Thumbnail(image=image)


@dataclass
class Wanted:
    """What a test wants of the callback; `make` and `when` see the image that the request names."""

    make: Make = one
    when: Callable[[str], Any] = lambda image: True
    delay: float = 0
    max_payload: int = 1000

    def on(self, face: type[Any], store: axeq.Store, image_of: Callable[[Any], str]) -> Any:
        return face(store, max_payload=self.max_payload).callback(
            lambda request: self.make(image_of(request)),
            when=lambda request: self.when(image_of(request)),
            delay=self.delay,
        )


def in_query(request: Request) -> str:
    return request.query_params["image"]


def in_args(request: flask.Request) -> str:
    return request.args["image"]


def closing(store: axeq.Store) -> Any:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with store:
            yield

    return lifespan


def fastapi_dependency(store: axeq.Store, wanted: Wanted) -> Any:
    app = FastAPI(lifespan=closing(store))

    @app.post("/{outcome}", dependencies=[Depends(wanted.on(axeq.AsyncQueue, store, in_query))])
    async def upload(outcome: str, response: Response) -> str:
        if outcome == "raises":
            raise RuntimeError("the handler's own")
        if outcome == "refuses":
            raise HTTPException(422)
        if outcome == "marks":
            response.status_code = 422
        return "stored"

    return app


def fastapi_plain_dependency(store: axeq.Store, wanted: Wanted) -> Any:
    app = FastAPI(lifespan=closing(store))

    @app.post("/{outcome}", dependencies=[Depends(wanted.on(axeq.Queue, store, in_query))])
    def upload(outcome: str, response: Response) -> str:
        if outcome == "raises":
            raise RuntimeError("the handler's own")
        if outcome == "refuses":
            raise HTTPException(422)
        if outcome == "marks":
            response.status_code = 422
        return "stored"

    return app


async def starlette_endpoint(request: Request) -> PlainTextResponse:
    return starlette_plain_endpoint(request)


def starlette_plain_endpoint(request: Request) -> PlainTextResponse:
    if request.path_params["outcome"] == "raises":
        raise RuntimeError("the handler's own")
    return PlainTextResponse("stored", 200 if request.path_params["outcome"] == "succeeds" else 422)


def starlette_route(store: axeq.Store, wanted: Wanted) -> Any:
    callback = wanted.on(axeq.AsyncQueue, store, in_query)
    routes = [Route("/{outcome}", callback.route(starlette_endpoint), methods=["POST"])]
    return Starlette(routes=routes, lifespan=closing(store))


def starlette_plain_route(store: axeq.Store, wanted: Wanted) -> Any:
    callback = wanted.on(axeq.AsyncQueue, store, in_query)
    routes = [Route("/{outcome}", callback.route(starlette_plain_endpoint), methods=["POST"])]
    return Starlette(routes=routes, lifespan=closing(store))


def starlette_middleware(store: axeq.Store, wanted: Wanted) -> Any:
    routes = [Route("/{outcome}", starlette_endpoint, methods=["POST"])]
    app = Starlette(routes=routes, lifespan=closing(store))
    app.add_middleware(wanted.on(axeq.AsyncQueue, store, in_query).middleware)
    return app


def fastapi_middleware(store: axeq.Store, wanted: Wanted) -> Any:
    app = FastAPI(lifespan=closing(store))
    app.add_middleware(wanted.on(axeq.AsyncQueue, store, in_query).middleware)
    app.post("/{outcome}", response_class=PlainTextResponse)(starlette_endpoint)
    return app


def flask_view(outcome: str) -> tuple[str, int]:
    if outcome == "raises":
        raise RuntimeError("the handler's own")
    return "stored", 200 if outcome == "succeeds" else 422


def flask_after_request(store: axeq.Store, wanted: Wanted) -> Any:
    app = flask.Flask("shapes")
    app.post("/<outcome>")(flask_view)
    app.after_request(wanted.on(axeq.Queue, store, in_args))
    return app


def flask_route(store: axeq.Store, wanted: Wanted) -> Any:
    app = flask.Flask("shapes")
    app.post("/<outcome>")(wanted.on(axeq.Queue, store, in_args).route(flask_view))
    return app


ASYNC_SHAPES = [fastapi_dependency, starlette_route, starlette_plain_route, starlette_middleware, fastapi_middleware]
SHAPES = [*ASYNC_SHAPES, fastapi_plain_dependency, flask_after_request, flask_route]

on_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)


@contextmanager
def serving(app: Any) -> Iterator[httpx.Client]:
    """Serves `app` over HTTP, Flask's by werkzeug and the others by uvicorn, until the block ends."""
    server = _werkzeug(app) if isinstance(app, flask.Flask) else _uvicorn(app)
    with server as url, httpx.Client(base_url=url, timeout=DEADLINE) as client:
        yield client


@contextmanager
def _uvicorn(app: Any) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", ws="none", log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            eventually(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(DEADLINE)


@contextmanager
def _werkzeug(app: flask.Flask) -> Iterator[str]:
    server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join(DEADLINE)
        server.server_close()


@pytest.fixture
def stored(server: pymongo.MongoClient[dict[str, Any]], database: str) -> Callable[[], list[str]]:
    """Tells the images of all stored jobs, sorted."""
    return lambda: sorted(job["data"]["image"] for job in server[database].jobs.find())


Stored = Callable[[], list[str]]


@on_every_shape
def test_a_client_that_saw_success_has_its_job(shape: Any, uri: str, stored: Stored) -> None:
    with axeq.Store(uri) as store, serving(shape(store, Wanted())) as client:
        response = client.post("/succeeds?image=a.jpg")
        jobs = stored()

    assert response.status_code == 200
    assert jobs == ["a.jpg"]


@on_every_shape
def test_each_request_leaves_its_own_job(shape: Any, uri: str, stored: Stored) -> None:
    with axeq.Store(uri) as store, serving(shape(store, Wanted())) as client:
        for image in ("a.jpg", "b.jpg", "c.jpg"):
            client.post(f"/succeeds?image={image}")

    assert stored() == ["a.jpg", "b.jpg", "c.jpg"]


@on_every_shape
@pytest.mark.parametrize(("outcome", "status"), [("raises", 500), ("refuses", 422)])
def test_a_request_that_failed_leaves_no_job(shape: Any, outcome: str, status: int, uri: str, stored: Stored) -> None:
    with axeq.Store(uri) as store, serving(shape(store, Wanted())) as client:
        response = client.post(f"/{outcome}?image=a.jpg")

    assert response.status_code == status
    assert stored() == []


@pytest.mark.parametrize("shape", [fastapi_dependency, fastapi_plain_dependency])
def test_a_status_set_on_fastapis_response_parameter_counts(shape: Any, uri: str, stored: Stored) -> None:
    with axeq.Store(uri) as store, serving(shape(store, Wanted())) as client:
        response = client.post("/marks?image=a.jpg")

    assert response.status_code == 422
    assert stored() == []


@on_every_shape
def test_when_decides_which_requests_leave_a_job(shape: Any, uri: str, stored: Stored) -> None:
    wanted = Wanted(when=lambda image: image.endswith(".jpg"))

    with axeq.Store(uri) as store, serving(shape(store, wanted)) as client:
        statuses = [client.post(f"/succeeds?image={image}").status_code for image in ("a.jpg", "b.txt")]

    assert statuses == [200, 200]
    assert stored() == ["a.jpg"]


@on_every_shape
def test_a_build_of_none_leaves_no_job(shape: Any, uri: str, stored: Stored) -> None:
    with axeq.Store(uri) as store, serving(shape(store, Wanted(make=lambda image: None))) as client:
        response = client.post("/succeeds?image=a.jpg")

    assert response.status_code == 200
    assert stored() == []


@on_every_shape
def test_a_build_of_a_list_leaves_a_job_for_each(shape: Any, uri: str, stored: Stored) -> None:
    wanted = Wanted(make=lambda image: [one(f"small-{image}"), one(f"large-{image}")])

    with axeq.Store(uri) as store, serving(shape(store, wanted)) as client:
        client.post("/succeeds?image=a.jpg")

    assert stored() == ["large-a.jpg", "small-a.jpg"]


@on_every_shape
def test_an_enqueue_that_fails_fails_the_request(shape: Any, uri: str, stored: Stored) -> None:
    with axeq.Store(uri) as store, serving(shape(store, Wanted(max_payload=10))) as client:
        response = client.post("/succeeds?image=a.jpg")

    assert response.status_code == 500
    assert stored() == []


@on_every_shape
def test_a_delay_puts_the_job_off(
    shape: Any, uri: str, server: pymongo.MongoClient[dict[str, Any]], database: str
) -> None:
    with axeq.Store(uri) as store, serving(shape(store, Wanted(delay=3600))) as client:
        client.post("/succeeds?image=a.jpg")

    (job,) = server[database].jobs.find()
    assert job["available_at"] - job["created_at"] >= timedelta(hours=1)


@pytest.mark.parametrize("shape", ASYNC_SHAPES, ids=lambda shape: shape.__name__)
def test_build_and_when_may_be_async_on_an_async_queue(shape: Any, uri: str, stored: Stored) -> None:
    async def make(image: str) -> Thumbnail:
        return one(image)

    async def when(image: str) -> bool:
        return image == "a.jpg"

    with axeq.Store(uri) as store, serving(shape(store, Wanted(make=make, when=when))) as client:
        client.post("/succeeds?image=a.jpg")
        client.post("/succeeds?image=b.jpg")

    assert stored() == ["a.jpg"]


@pytest.mark.parametrize("shape", [fastapi_dependency, fastapi_plain_dependency])
def test_a_dependency_adds_nothing_to_what_fastapi_asks_of_the_client(shape: Any, uri: str) -> None:
    with axeq.Store(uri) as store, serving(shape(store, Wanted())) as client:
        operation = client.get("/openapi.json").json()["paths"]["/{outcome}"]["post"]

    assert [parameter["name"] for parameter in operation["parameters"]] == ["outcome"]
    assert "requestBody" not in operation


def test_a_callback_on_the_router_and_on_the_route_enqueues_once(uri: str, stored: Stored) -> None:
    with axeq.Store(uri) as store:
        callback = axeq.AsyncQueue(store).callback(lambda request: one(in_query(request)))
        app = FastAPI(lifespan=closing(store), dependencies=[Depends(callback)])

        @app.post("/", dependencies=[Depends(callback)])
        async def upload() -> None: ...

        with serving(app) as client:
            client.post("/?image=a.jpg")

    assert stored() == ["a.jpg"]


def test_build_reads_the_body_that_a_fastapi_handler_has_read_too(uri: str, stored: Stored) -> None:
    async def from_body(request: Request) -> Thumbnail:
        return Thumbnail.model_validate(await request.json())

    with axeq.Store(uri) as store:
        app = FastAPI(lifespan=closing(store))

        @app.post("/", dependencies=[Depends(axeq.AsyncQueue(store).callback(from_body))])
        async def upload(image: Thumbnail) -> None: ...

        with serving(app) as client:
            response = client.post("/", json={"image": "a.jpg"})

    assert response.status_code == 200
    assert stored() == ["a.jpg"]


def test_middleware_sees_what_the_handler_left_on_the_state_but_never_waits_for_a_body(
    uri: str, stored: Stored
) -> None:
    async def from_body(request: Request) -> Thumbnail:
        if request.state.image != "from the body":
            return one(request.state.image)
        return Thumbnail.model_validate(await request.json())

    with axeq.Store(uri) as store:
        app = FastAPI(lifespan=closing(store))
        app.add_middleware(axeq.AsyncQueue(store).callback(from_body).middleware)

        @app.post("/")
        async def upload(request: Request, image: Thumbnail) -> None:
            request.state.image = image.image

        with serving(app) as client:
            statuses = [client.post("/", json={"image": image}).status_code for image in ("a.jpg", "from the body")]

    assert statuses == [200, 500]
    assert stored() == ["a.jpg"]


def test_middleware_of_one_starlette_route_serves_a_class_endpoint(uri: str, stored: Stored) -> None:
    from starlette.endpoints import HTTPEndpoint

    class Upload(HTTPEndpoint):
        async def post(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("stored")

    with axeq.Store(uri) as store:
        callback = axeq.AsyncQueue(store).callback(lambda request: one(in_query(request)))
        routes = [Route("/", Upload, middleware=[Middleware(callback.middleware)])]

        with serving(Starlette(routes=routes, lifespan=closing(store))) as client:
            client.post("/?image=a.jpg")

    assert stored() == ["a.jpg"]


class Undecided(Exception):
    """Raised where a test lets the transaction fail at its end."""


def fastapi_async_transaction(store: axeq.Store, uri: str, *, max_payload: int) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with store, pymongo.AsyncMongoClient(uri) as app.state.client:
            yield

    async def transaction(request: Request) -> AsyncIterator[None]:
        async with request.app.state.client.start_session() as session, await session.start_transaction():
            request.state.session = session
            yield
            if request.query_params["end"] == "aborts":
                raise Undecided

    app = FastAPI(lifespan=lifespan)
    callback = axeq.AsyncQueue(store, max_payload=max_payload).callback(lambda request: one(in_query(request)))

    @app.post("/", dependencies=[Depends(transaction, scope="function"), Depends(callback)])
    async def upload(request: Request, image: str, end: str) -> None:
        images = request.app.state.client.get_default_database().images
        await images.insert_one({"image": image}, session=request.state.session)
        if end == "raises":
            raise RuntimeError("the handler's own")

    return app


def fastapi_sync_transaction(store: axeq.Store, uri: str, *, max_payload: int) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with pymongo.MongoClient(uri) as app.state.client:
            async with store:
                yield

    def transaction(request: Request) -> Iterator[None]:
        with request.app.state.client.start_session() as session, session.start_transaction():
            request.state.session = session
            yield
            if request.query_params["end"] == "aborts":
                raise Undecided

    app = FastAPI(lifespan=lifespan)
    callback = axeq.Queue(store, max_payload=max_payload).callback(lambda request: one(in_query(request)))

    @app.post("/", dependencies=[Depends(transaction, scope="function"), Depends(callback)])
    def upload(request: Request, image: str, end: str) -> None:
        images = request.app.state.client.get_default_database().images
        images.insert_one({"image": image}, session=request.state.session)
        if end == "raises":
            raise RuntimeError("the handler's own")

    return app


def starlette_transaction(store: axeq.Store, uri: str, *, max_payload: int) -> Any:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with store, pymongo.AsyncMongoClient(uri) as app.state.client:
            yield

    async def transaction(request: Request, call_next: Any) -> Any:
        async with request.app.state.client.start_session() as session, await session.start_transaction():
            request.state.session = session
            response = await call_next(request)
            if request.query_params["end"] == "aborts":
                raise Undecided
            return response

    async def upload(request: Request) -> PlainTextResponse:
        images = request.app.state.client.get_default_database().images
        await images.insert_one({"image": in_query(request)}, session=request.state.session)
        if request.query_params["end"] == "raises":
            raise RuntimeError("the handler's own")
        return PlainTextResponse("stored")

    callback = axeq.AsyncQueue(store, max_payload=max_payload).callback(lambda request: one(in_query(request)))
    return Starlette(
        routes=[Route("/", callback.route(upload), methods=["POST"])],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=transaction)],
        lifespan=lifespan,
    )


def motor_transaction(store: axeq.Store, uri: str, *, max_payload: int) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.client = AsyncIOMotorClient(uri)
        async with store:
            yield
        app.state.client.close()

    async def transaction(request: Request) -> AsyncIterator[None]:
        async with await request.app.state.client.start_session() as session, session.start_transaction():
            request.state.session = session
            yield
            if request.query_params["end"] == "aborts":
                raise Undecided

    app = FastAPI(lifespan=lifespan)
    callback = axeq.AsyncQueue(store, max_payload=max_payload).callback(lambda request: one(in_query(request)))

    @app.post("/", dependencies=[Depends(transaction, scope="function"), Depends(callback)])
    async def upload(request: Request, image: str, end: str) -> None:
        images = request.app.state.client.get_default_database().images
        await images.insert_one({"image": image}, session=request.state.session)
        if end == "raises":
            raise RuntimeError("the handler's own")

    return app


def flask_transaction(store: axeq.Store, uri: str, *, max_payload: int) -> Any:
    app = flask.Flask("transactions")

    @app.before_request
    def begin() -> None:
        flask.g.client = pymongo.MongoClient(uri)
        flask.g.session = flask.g.client.start_session()
        flask.g.session.start_transaction()

    @app.after_request
    def commit(response: flask.Response) -> flask.Response:
        if response.status_code < 400:
            if flask.request.args["end"] == "aborts":
                raise Undecided
            flask.g.session.commit_transaction()
        return response

    @app.teardown_request
    def end(error: BaseException | None) -> None:
        flask.g.session.end_session()  # aborts what was not committed
        flask.g.client.close()

    @app.post("/")
    def upload() -> str:
        images = flask.g.client.get_default_database().images
        images.insert_one({"image": flask.request.args["image"]}, session=flask.g.session)
        if flask.request.args["end"] == "raises":
            raise RuntimeError("the handler's own")
        return "stored"

    callback = axeq.Queue(store, max_payload=max_payload).callback(lambda request: one(in_args(request)))
    app.after_request(callback)  # Flask calls the last one first, so that it comes before the commit
    return app


TRANSACTIONS = [
    fastapi_async_transaction,
    fastapi_sync_transaction,
    starlette_transaction,
    motor_transaction,
    flask_transaction,
]

on_every_transaction = pytest.mark.parametrize("shape", TRANSACTIONS, ids=lambda shape: shape.__name__)


@pytest.fixture
def images(server: pymongo.MongoClient[dict[str, Any]], database: str) -> Callable[[], list[str]]:
    """Tells what the handlers' own writes have left, sorted."""
    return lambda: sorted(document["image"] for document in server[database].images.find())


@on_every_transaction
def test_the_job_commits_with_the_requests_own_writes(shape: Any, uri: str, stored: Stored, images: Stored) -> None:
    with axeq.Store(uri) as store, serving(shape(store, uri, max_payload=1000)) as client:
        response = client.post("/?image=a.jpg&end=commits")
        after = (stored(), images())

    assert response.status_code == 200
    assert after == (["a.jpg"], ["a.jpg"])


@on_every_transaction
@pytest.mark.parametrize("end", ["raises", "aborts"])
def test_a_transaction_that_does_not_commit_leaves_no_job(
    shape: Any, end: str, uri: str, stored: Stored, images: Stored
) -> None:
    with axeq.Store(uri) as store, serving(shape(store, uri, max_payload=1000)) as client:
        response = client.post(f"/?image=a.jpg&end={end}")

    assert response.status_code == 500
    assert (stored(), images()) == ([], [])


@on_every_transaction
def test_an_enqueue_that_fails_takes_the_transaction_with_it(
    shape: Any, uri: str, stored: Stored, images: Stored
) -> None:
    with axeq.Store(uri) as store, serving(shape(store, uri, max_payload=10)) as client:
        response = client.post("/?image=a.jpg&end=commits")

    assert response.status_code == 500
    assert (stored(), images()) == ([], [])


def test_a_callback_that_comes_after_the_commit_is_refused_and_says_how_to_list_it(uri: str, stored: Stored) -> None:
    refused: list[BaseException] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with store, pymongo.AsyncMongoClient(uri) as app.state.client:
            yield

    async def transaction(request: Request) -> AsyncIterator[None]:
        async with request.app.state.client.start_session() as session, await session.start_transaction():
            request.state.session = session
            yield

    async def note(request: Request, error: Exception) -> PlainTextResponse:
        refused.append(error)
        return PlainTextResponse("failed", 500)

    with axeq.Store(uri) as store:
        app = FastAPI(lifespan=lifespan, exception_handlers={axeq.ConfigurationError: note})
        callback = axeq.AsyncQueue(store).callback(lambda request: one(in_query(request)))

        @app.post("/", dependencies=[Depends(callback), Depends(transaction, scope="function")])
        async def upload() -> None: ...

        with serving(app) as client:
            response = client.post("/?image=a.jpg")

    assert response.status_code == 500
    assert "list it after the transaction" in str(refused)
    assert stored() == []


def test_a_session_function_finds_the_transaction_anywhere(uri: str, stored: Stored) -> None:
    with axeq.Store(uri) as store, pymongo.MongoClient(uri) as client, client.start_session() as session:
        app = flask.Flask("elsewhere")
        app.post("/")(lambda: "stored")
        queue = axeq.Queue(store)
        app.after_request(queue.callback(lambda request: one(in_args(request)), session=lambda request: session))

        with session.start_transaction(), serving(app) as browser:
            response = browser.post("/?image=a.jpg")
            before = stored()

    assert response.status_code == 200
    assert (before, stored()) == ([], ["a.jpg"])
