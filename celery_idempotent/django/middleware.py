"""Django middleware that answers a repeated request with the response to the first one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, ClassVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpResponse

from celery_idempotent.django import streams
from celery_idempotent.django.bodies import read_body
from celery_idempotent.django.project import celery_app
from celery_idempotent.django.tenants import identity_of_tenant
from celery_idempotent.http.answer import Answer
from celery_idempotent.http.edge import Edge, HeldRequest, check_function, keeps_by_default
from celery_idempotent.http.hangups import despite_hang_up
from celery_idempotent.http.messages import Request, Response
from celery_idempotent.run.context import RunContext

__all__ = ["IdempotencyMiddleware"]


class IdempotencyMiddleware:
    """Reads ``Idempotency-Key``. List a subclass of it that identifies the callers.

    ::

        class Idempotency(IdempotencyMiddleware):
            def identity(self, request):
                return str(request.user.pk) if request.user.is_authenticated else None

    List it after the middleware that it uses (``AuthenticationMiddleware``) and before middleware
    that compresses. In a view ``request.idempotency`` is the same object as ``self.idempotency`` in
    tasks, and each task that is published gets a key that is derived from the request's.
    """

    sync_capable = True
    async_capable = True

    #: The name of this service; without it the Celery app's name is used. Two services with one
    #: store need two names.
    service: ClassVar[str | None] = None
    #: The methods of requests that may have a key.
    methods: ClassVar[Collection[str]] = ("POST", "PATCH")
    #: How long a response is kept, in seconds; without it the app's ``idempotency_ttl``.
    ttl: ClassVar[float | None] = None
    #: The largest body, in bytes, of a request with a key.
    max_request_size: ClassVar[int] = 16 * 1024 * 1024
    #: The page of your API's documentation about the key.
    docs_url: ClassVar[str | None] = None

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        for name, of in (
            ("identity", "the request that returns the caller as a text"),
            ("required", "the request that returns True or False"),
            ("keeps", "a status, such as 201, that returns True or False"),
        ):
            check_function(getattr(self, name), f"{type(self).__name__}.{name}", of)
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def identity(self, request: Any) -> str | None:
        """Return a text that is different for each caller; ``None`` if the view will refuse it."""
        raise NotImplementedError(
            f"{type(self).__name__} does not identify its callers: define identity(request)"
        )

    def required(self, request: Any) -> bool:
        """Return whether a request must have a key."""
        return False

    def keeps(self, status: int) -> bool:
        """Return whether a response with this status is kept."""
        return keeps_by_default(status)

    @cached_property
    def edge(self) -> Edge:
        """The keys of the project's requests, in the store of its Celery app."""
        return Edge(
            celery_app(),
            service=self.service,
            methods=self.methods,
            keeps=self.keeps,
            ttl=self.ttl,
            max_request_size=self.max_request_size,
            docs_url=self.docs_url,
        )

    def __call__(self, request: Any) -> Any:
        if not self.edge.covers(request.method) or _is_protected(request):
            return self.get_response(request)
        if self._is_async:
            return self._answer_async(request)
        key = self._key(request)
        held = key if key is None or isinstance(key, Response) else self._begin(request, key)
        if held is None:
            return self.get_response(request)
        if isinstance(held, Response):
            return _response(held)
        answer = Answer(held)
        try:
            with held.working():
                response = self.get_response(request)
                instead = streams.take(answer, response)
                if answer.passes and response.streaming:
                    return streams.pass_on(answer, response)
        except BaseException as exc:
            answer.fail(exc)
            raise
        return response if instead is None else _response(instead)

    async def _answer_async(self, request: Any) -> Any:
        key = await sync_to_async(self._key)(request)
        if key is None:
            return await self.get_response(request)
        if isinstance(key, Response):
            return _response(key)
        gone = asyncio.Event()
        return await despite_hang_up(self._work(request, key, gone), gone)

    async def _work(self, request: Any, key: str, gone: asyncio.Event) -> Any:
        held = await sync_to_async(self._begin)(request, key)
        if held is None:
            return await self.get_response(request)
        if isinstance(held, Response):
            return _response(held)
        answer = Answer(held)
        try:
            with held.working():
                response = await self.get_response(request)
                if response.streaming:
                    instead = await streams.take_async(answer, response, gone)
                else:
                    instead = await sync_to_async(streams.take)(answer, response)
        except BaseException as exc:
            await sync_to_async(answer.fail)(exc)
            raise
        return response if instead is None else _response(instead)

    def _key(self, request: Any) -> str | Response | None:
        value = request.META.get("HTTP_IDEMPOTENCY_KEY")
        return self.edge.key_of([] if value is None else [value], self.required(request))

    def _begin(self, request: Any, key: str) -> Response | HeldRequest | None:
        identity = self.identity(request)
        if identity is None:
            return None
        body = read_body(request, self.edge)
        if isinstance(body, Response):
            return body
        asked = Request(
            request.method,
            request.path,
            request.META.get("QUERY_STRING", ""),
            body,
            request.META.get("CONTENT_TYPE", ""),
        )
        held = self.edge.begin(asked, identity_of_tenant(identity), key)
        if isinstance(held, HeldRequest):
            request.idempotency = held.run
        return held


def _is_protected(request: Any) -> bool:
    """Whether another middleware outside, of Django or of the server, has read the key."""
    around = getattr(request, "scope", None) or request.META
    runs = getattr(request, "idempotency", None), around.get("idempotency")
    run = next((run for run in runs if isinstance(run, RunContext)), None)
    if run is not None:
        request.idempotency = run
    return run is not None


def _response(answer: Response) -> HttpResponse:
    response = HttpResponse(answer.body, status=answer.status)
    del response["Content-Type"]
    for name, value in answer.headers:
        response[name] = value
    return response
