"""Django's middleware answers as the ones for ASGI and WSGI do, to sync and async views."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_idempotent import IdempotentTask
from celery_idempotent.http import Edge
from tests.support.djangos import set_up
from tests.support.sites import make_celery

set_up()

# Django has to be set up first.
from django.http import HttpResponse, StreamingHttpResponse  # noqa: E402
from django.test import RequestFactory  # noqa: E402

from celery_idempotent.django.middleware import IdempotencyMiddleware  # noqa: E402

View = Callable[[Any], Any]


class ByHeader(IdempotencyMiddleware):
    def identity(self, request: Any) -> str | None:
        user: str | None = request.headers.get("User")
        return user

    def required(self, request: Any) -> bool:
        return bool(request.path == "/pay")


class Site:
    """A view behind the middleware, called as Django calls it."""

    def __init__(self, view: View, is_async: bool, celery: Any = None) -> None:
        self.calls = 0

        def called(request: Any) -> Any:
            self.calls += 1
            return view(request)

        async def called_async(request: Any) -> Any:
            return called(request)

        self._is_async = is_async
        self._middleware = ByHeader(called_async if is_async else called)
        self._middleware.edge = Edge(  # type: ignore[misc]
            celery or make_celery(), keeps=self._middleware.keeps
        )

    def post(self, key: str | None = "a", body: str = "{}", path: str = "/orders") -> Any:
        headers = {"User": "ann"} | ({} if key is None else {"Idempotency-Key": f'"{key}"'})
        request = RequestFactory().post(
            path, body, content_type="application/json", headers=headers
        )
        answer = self._middleware(request)
        return asyncio.run(answer) if self._is_async else answer


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Callable[..., Site]:
    return lambda view, celery=None: Site(view, request.param, celery)


def test_the_first_answer_is_given_again(make: Callable[..., Site]) -> None:
    """With its status, its fields and its body, and without its cookies."""

    # Given
    def view(request: Any) -> HttpResponse:
        response = HttpResponse("made", status=201, headers={"Location": "/orders/1"})
        response.set_cookie("session", "1")
        return response

    site = make(view)
    # When
    first, second = site.post(), site.post()
    # Then
    assert site.calls == 1
    assert (second.status_code, second.content) == (201, b"made")
    assert (second["Location"], second["Idempotency-Replayed"]) == ("/orders/1", "true")
    assert "session" in first.cookies
    assert "session" not in second.cookies


def test_what_is_wrong_is_told(make: Callable[..., Site]) -> None:
    """400 for a missing or a malformed key, 422 for another body."""
    site = make(lambda request: HttpResponse())
    assert site.post(None, path="/pay").status_code == 400
    assert site.post('a"b').status_code == 400
    assert site.post("a").status_code == 200
    other = site.post("a", "[]")
    assert (other.status_code, other["Content-Type"]) == (422, "application/problem+json")
    assert site.calls == 1


def test_an_exception_frees_the_key(make: Callable[..., Site]) -> None:
    """And so does a 500 that Django has made of one."""
    answers = [ZeroDivisionError(), HttpResponse(status=500), HttpResponse("done")]

    def view(request: Any) -> HttpResponse:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    site = make(view)
    with pytest.raises(ZeroDivisionError):
        site.post()
    assert [site.post().status_code for _ in range(3)] == [500, 200, 200]
    assert site.calls == 3


def test_tasks_get_keys_from_the_request(make: Callable[..., Site]) -> None:
    """A view that is run again publishes duplicates."""
    # Given
    celery = make_celery()
    charged: list[str] = []

    @celery.task(base=IdempotentTask, name="shop.charge", shared=False)
    def charge(order_id: int) -> None:
        charged.append("charged")

    def view(request: Any) -> HttpResponse:
        charge.delay(1)
        return HttpResponse(request.idempotency.key_for("order"), status=500)

    site = make(view, celery)
    # Then
    assert site.post().content == site.post().content
    assert (site.calls, charged) == (2, ["charged"])


def test_a_stream_is_kept_where_it_fits(make: Callable[..., Site]) -> None:
    """One that doesn't is passed on; its retry learns that it was done."""

    def parts(number: int) -> Iterator[bytes]:
        for _ in range(number):
            yield b"x" * 100

    celery = make_celery(idempotency_max_result_size=1000)
    short = make(lambda request: StreamingHttpResponse(parts(3)), celery)
    long = make(lambda request: StreamingHttpResponse(parts(20)), celery)
    # When
    first, second = long.post("long"), long.post("long")
    # Then
    assert b"".join(first.streaming_content) == b"x" * 2000
    assert second.status_code == 409
    if not short._is_async:
        assert b"".join(short.post("short").streaming_content) == b"x" * 300
        assert short.post("short").content == b"x" * 300
    assert long.calls == 1


def test_whose_keys_they_are_has_to_be_said() -> None:
    """There is no default: it would make one caller of all."""
    middleware = IdempotencyMiddleware(lambda request: HttpResponse())
    middleware.edge = Edge(make_celery())  # type: ignore[misc]
    with pytest.raises(NotImplementedError, match="identity"):
        middleware(RequestFactory().post("/", headers={"Idempotency-Key": "a"}))
