"""Django middleware that answers a request which is sent again with the first one's response."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from typing import Any, ClassVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpResponse

from celery_idempotent.django.project import celery_app
from celery_idempotent.http.edge import Edge, Held, keeps_by_default
from celery_idempotent.http.messages import Request, Response, is_open_ended

__all__ = ["IdempotencyMiddleware"]


class IdempotencyMiddleware:
    """Reads ``Idempotency-Key``; make a subclass that says whose keys they are, and list that.

    ::

        class Idempotency(IdempotencyMiddleware):
            def identity(self, request):
                return str(request.user.pk) if request.user.is_authenticated else None

    It stands after what it asks for (``AuthenticationMiddleware``) and before what compresses. In a
    view ``request.idempotency`` is what tasks have as ``self.idempotency``, and each task that is
    published gets a key derived from the request's.
    """

    sync_capable = True
    async_capable = True

    #: Which requests may have a key.
    methods: ClassVar[Collection[str]] = ("POST", "PATCH")
    #: The largest body, in bytes, of a request with a key.
    max_request_size: ClassVar[int] = 16 * 1024 * 1024
    #: Where your API's documentation tells of the key.
    docs_url: ClassVar[str | None] = None

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def identity(self, request: Any) -> str | None:
        """Give a text that tells callers apart; ``None``: nobody, whom the view will refuse."""
        raise NotImplementedError(
            f"{type(self).__name__} has to say whose keys they are: define identity(request)"
        )

    def required(self, request: Any) -> bool:
        """Say whether a request must have a key."""
        return False

    def keeps(self, status: int) -> bool:
        """Say whether a response of this status is kept."""
        return keeps_by_default(status)

    @cached_property
    def edge(self) -> Edge:
        """The keys of the project's requests, in the store of its Celery app."""
        return Edge(
            celery_app(),
            methods=self.methods,
            keeps=self.keeps,
            max_request_size=self.max_request_size,
            docs_url=self.docs_url,
        )

    def __call__(self, request: Any) -> Any:
        if self._is_async:
            return self._answer_async(request)
        held = self._begin(request)
        if held is None:
            return self.get_response(request)
        if isinstance(held, Response):
            return _response(held)
        try:
            with held.for_tasks():
                response = self.get_response(request)
                if not response.streaming:
                    return self._finish(held, response)
                return self._finish_streaming(held, response)
        except BaseException as exc:
            _fail(held, exc)
            raise

    async def _answer_async(self, request: Any) -> Any:
        held = await sync_to_async(self._begin)(request)
        if held is None:
            return await self.get_response(request)
        if isinstance(held, Response):
            return _response(held)
        try:
            with held.for_tasks():
                response = await self.get_response(request)
                if not response.streaming:
                    return await sync_to_async(self._finish)(held, response)
                # It is passed on as it comes, and not kept.
                without = Response(response.status_code, list(response.items()), dropped=True)
                await sync_to_async(held.finish)(without)
                return response
        except BaseException as exc:
            await sync_to_async(_fail)(held, exc)
            raise

    def _begin(self, request: Any) -> Response | Held | None:
        edge = self.edge
        if not edge.covers(request.method):
            return None
        value = request.META.get("HTTP_IDEMPOTENCY_KEY")
        key = edge.key_of([] if value is None else [value], self.required(request))
        if key is None or isinstance(key, Response):
            return key
        identity = self.identity(request)
        if identity is None:
            return None
        length = request.META.get("CONTENT_LENGTH") or "0"
        if length.isdigit() and int(length) > self.max_request_size:
            return edge.problems.too_large(self.max_request_size)
        asked = Request(
            request.method,
            request.path,
            request.META.get("QUERY_STRING", ""),
            request.body,
            request.META.get("CONTENT_TYPE", ""),
        )
        held = edge.begin(asked, identity, key)
        if isinstance(held, Held):
            request.idempotency = held.run
        return held

    def _finish(self, held: Held, response: Any) -> Any:
        if hasattr(response, "render") and not getattr(response, "is_rendered", True):
            response.render()
        first = Response(response.status_code, list(response.items()), response.content)
        answer = held.finish(first)
        return response if answer is first else _response(answer)

    def _finish_streaming(self, held: Held, response: Any) -> Any:
        """Keep a stream that fits; give one that doesn't as it comes."""
        headers = list(response.items())
        without = Response(response.status_code, headers, dropped=True)
        if response.is_async or is_open_ended(headers):
            held.finish(without)
            return response
        parts = iter(response.streaming_content)
        begun: list[bytes] = []
        size = 0
        for part in parts:
            begun.append(part)
            size += len(part)
            if size > self.edge.max_response_size:
                held.finish(without)
                response.streaming_content = _joined(begun, parts)
                return response
        first = Response(response.status_code, headers, b"".join(begun))
        answer = held.finish(first)
        response.streaming_content = begun
        return response if answer is first else _response(answer)


def _joined(begun: list[bytes], rest: Iterable[bytes]) -> Iterator[bytes]:
    yield from begun
    yield from rest


def _fail(held: Held, exc: BaseException) -> None:
    if isinstance(exc, Exception):
        held.release()
    else:
        held.interrupt()


def _response(answer: Response) -> HttpResponse:
    response = HttpResponse(answer.body, status=answer.status)
    del response["Content-Type"]
    for name, value in answer.headers:
        response[name] = value
    return response
