"""Web callbacks: the job that a handled request leaves behind, stored before its response is sent.

A framework is imported only inside the functions that this framework alone calls, so axeq depends on none.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

from pydantic import BaseModel

from axeq.faces.options import CALLBACK_OPTIONS, checked
from axeq.wire.wire import adrive, drive
from axeq.words.duration import Duration, seconds
from axeq.words.errors import ConfigurationError

__all__ = ["AsyncBuild", "AsyncCallback", "AsyncWhen", "Build", "Built", "Callback", "SessionOf", "When"]

Built = BaseModel | Sequence[BaseModel] | None
"""What a request leaves behind: a payload, several, or nothing."""

Build = Callable[[Any], Built]
"""Makes of a request what is to be enqueued."""

AsyncBuild = Callable[[Any], Built | Awaitable[Built]]
"""As `Build`, or an async function."""

When = Callable[[Any], bool]
"""Tells whether a request leaves anything behind."""

AsyncWhen = Callable[[Any], bool | Awaitable[bool]]
"""As `When`, or an async function."""

SessionOf = Callable[[Any], Any]
"""Finds the session of a request's transaction; None for a request without one."""

_FAILED = 400
_SESSIONS = frozenset({"ClientSession", "AsyncClientSession", "AgnosticClientSession"})


class _Producer(Protocol):
    def enqueue(self, *args: Any, **kwargs: Any) -> Any: ...
    def enqueue_many(self, *args: Any, **kwargs: Any) -> Any: ...


class _DependencySignature:
    """Shows FastAPI, and only an instance to it, a signature that makes a callback a dependency."""

    def __get__(self, instance: _Callback | None, owner: type) -> inspect.Signature:
        if instance is None or "fastapi" not in sys.modules:
            raise AttributeError("__signature__")  # Python then reads the one of `__call__`
        return instance._dependency


class _Callback:
    """What both callbacks know, and the steps from a handled request to a job."""

    __signature__ = _DependencySignature()

    def __init__(
        self,
        queue: _Producer,
        build: Callable[[Any], Any],
        *,
        delay: Duration,
        when: Callable[[Any], Any] | None,
        name: str | None,
        session: SessionOf | None,
        **options: Any,
    ) -> None:
        for option, function in (("build", build), ("when", when), ("session", session)):
            if not callable(function) and (function is not None or option == "build"):
                raise ConfigurationError(f"{option} must be a function of the request, not {function!r:.100}")
        self._queue = queue
        self._build = build
        self._when = when
        self._session = session
        checked("callback", {"delay": delay, **options}, CALLBACK_OPTIONS)
        self._label: Callable[[Any], str | None] | None = options.pop("label", None)
        self._options = {"delay": seconds(delay, "delay"), "name": name, **options}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {getattr(self._build, '__qualname__', self._build)} on {self._queue!r}>"

    @functools.cached_property
    def _dependency(self) -> inspect.Signature:
        from fastapi import Depends, Request, Response

        around = self._around()
        around.__annotations__ = {"request": Request, "response": Response}
        try:
            # The exit code of this scope runs before the response is sent, that of the default one after.
            handled = Depends(around, scope="function")
        except TypeError:
            raise ConfigurationError("a callback as a dependency needs FastAPI 0.121 or later") from None
        return inspect.Signature([inspect.Parameter("handled", inspect.Parameter.KEYWORD_ONLY, default=handled)])

    def _around(self) -> Callable[..., Any]:
        raise NotImplementedError

    def _steps(self, request: Any, holder: Any) -> Generator[Any, Any, None]:
        """Yields what may have to be awaited, and is sent what came of it. `holder` may hold the session."""
        if self._when is not None and not (yield self._when(request)):
            return
        built = yield self._build(request)
        if built is None:
            return
        if self._session is not None:
            session = yield self._session(request)
        else:
            session = _in_transaction(getattr(holder, "session", None))
        terms = {"session": session, **self._options}
        if isinstance(built, BaseModel):
            if self._label is not None:
                terms["label"] = self._label(built)
            yield self._queue.enqueue(built, **terms)
        else:
            if self._label is not None:
                terms["label"] = self._label
            yield self._queue.enqueue_many(built, **terms)


class Callback(_Callback):
    """What `Queue.callback` returns; after a request that succeeded, before its response is sent, it enqueues.

    In Flask `app.after_request(callback)`, or `callback.route(view)`; in FastAPI, beside sync handlers,
    `Depends(callback)`.
    """

    def __init__(self, queue: _Producer, build: Build, **options: Any) -> None:
        super().__init__(queue, build, **options)
        for option, function in (("build", build), ("when", self._when), ("session", self._session)):
            if inspect.iscoroutinefunction(function):
                raise ConfigurationError(f"{option} is async, and a Queue is not: use AsyncQueue, or a plain function")

    def __call__(self, response: Any = None, *, handled: Any = None) -> Any:
        """Enqueues what the current Flask request leaves behind, unless `response` tells a failure; returns it."""
        if response is not None and response.status_code < _FAILED:
            from flask import g, request

            self._enqueue(request, g)
        return response

    def route(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the Flask `view` with this callback after it; also as a decorator, beneath `@app.post(...)`."""

        @functools.wraps(view)
        def handled(*args: Any, **kwargs: Any) -> Any:
            from flask import current_app

            return self(current_app.make_response(current_app.ensure_sync(view)(*args, **kwargs)))

        return handled

    def _around(self) -> Callable[..., Any]:
        def handled(request: Any = None, response: Any = None) -> Iterator[None]:
            yield
            if request is not None and not _failed(response):  # FastAPI has no request for a WebSocket
                self._enqueue(request, request.state)

        return handled

    def _enqueue(self, request: Any, holder: Any) -> None:
        drive(self._steps(request, holder), _at_hand)


class AsyncCallback(_Callback):
    """What `AsyncQueue.callback` returns; after a request that succeeded, before its response is sent, it enqueues.

    In FastAPI `Depends(callback)`; in Starlette `Route(path, callback.route(endpoint))`; in either
    `app.add_middleware(callback.middleware)`.
    """

    async def __call__(self, *, handled: Any = None) -> None:
        """Does nothing: FastAPI calls it, and what counts is the exit of the dependency that it depends on."""

    def route(self, endpoint: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
        """Returns the Starlette `endpoint`, an async or plain function, with this callback after it."""
        if inspect.isclass(endpoint):
            raise ConfigurationError(
                f"{endpoint.__name__} is a class: use Route(..., middleware=[Middleware(callback.middleware)])"
            )

        @functools.wraps(endpoint)
        async def handled(request: Any) -> Any:
            response = await _answer(endpoint, request)
            if not _failed(response):
                await self._enqueue(request, request.state)
            return response

        return handled

    def middleware(self, app: Any) -> Callable[[Any, Any, Any], Awaitable[None]]:
        """Returns the ASGI `app` with this callback after each of its requests.

        What `build` and `when` get has no body any more: the handler has read it, and hands over what they need
        on `request.state`.
        """

        async def handle(scope: Any, receive: Any, send: Any) -> None:
            from starlette.requests import Request

            async def send_on(message: Any) -> None:
                if message["type"] == "http.response.start" and message["status"] < _FAILED:
                    request = Request(scope)
                    await self._enqueue(request, request.state)
                await send(message)

            await app(scope, receive, send_on if scope["type"] == "http" else send)

        return handle

    def _around(self) -> Callable[..., Any]:
        async def handled(request: Any = None, response: Any = None) -> AsyncIterator[None]:
            yield
            if request is not None and not _failed(response):  # FastAPI has no request for a WebSocket
                await self._enqueue(request, request.state)

        return handled

    async def _enqueue(self, request: Any, holder: Any) -> None:
        await adrive(self._steps(request, holder), _awaited)


async def _answer(endpoint: Callable[[Any], Any], request: Any) -> Any:
    if inspect.iscoroutinefunction(endpoint):
        return await endpoint(request)
    from starlette.concurrency import run_in_threadpool

    response = await run_in_threadpool(endpoint, request)
    return await response if inspect.isawaitable(response) else response


def _failed(response: Any) -> bool:
    # FastAPI leaves the status of the response that it hands out at None until the handler sets one.
    return response.status_code is not None and response.status_code >= _FAILED


def _in_transaction(held: Any) -> Any:
    """Returns `held` where it is a MongoDB session with an open transaction; None where it is anything else."""
    if not any(_is_session(kind) for kind in type(held).__mro__):
        return None
    if held.has_ended:
        raise ConfigurationError(
            "the request's session has ended before the callback, so its job cannot join the transaction: have the "
            "callback run first (FastAPI: list it after the transaction; Flask: register it after the commit), or "
            "pass session=lambda request: None to enqueue outside of it"
        )
    return held if held.in_transaction else None


def _is_session(kind: type) -> bool:
    return kind.__name__ in _SESSIONS and kind.__module__.partition(".")[0] in ("pymongo", "motor")


def _at_hand(value: Any) -> Any:
    if not inspect.isawaitable(value):
        return value
    if inspect.iscoroutine(value):
        value.close()
    raise ConfigurationError("build, when and session of a Queue's callback must not return an awaitable")


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
