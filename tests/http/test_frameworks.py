"""The middleware among others: FastAPI's dependencies, redirects, CORS, compression."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from celery_idempotent.http import IdempotencyASGIMiddleware
from tests.support.http_app import AsgiApp, make_celery

KEY = {"Idempotency-Key": '"7f3a"', "User": "ann"}


def keyed(api: FastAPI) -> None:
    """Add the middleware: what is added later stands outside of it."""
    api.add_middleware(IdempotencyASGIMiddleware, celery=make_celery(), identity=AsgiApp.identity)


def client_of(api: FastAPI) -> TestClient:
    return TestClient(api, headers=KEY, raise_server_exceptions=False)


def test_a_commit_in_a_dependency_comes_before_the_record() -> None:
    """Where it fails there is no row, and no answer that says so."""
    # Given
    api, rows, commits = FastAPI(), [], [ZeroDivisionError(), None]

    def session() -> Iterator[list[str]]:
        written: list[str] = []
        yield written
        failure = commits.pop(0)
        if failure is not None:
            raise failure
        rows.extend(written)

    @api.post("/orders", status_code=201)
    def order(session: list[str] = Depends(session)) -> dict[str, int]:  # noqa: B008
        session.append("order")
        return {"order": 1}

    keyed(api)
    client = client_of(api)
    # When
    replies = [client.post("/orders") for _ in range(3)]
    # Then
    assert [reply.status_code for reply in replies] == [500, 201, 201]
    assert replies[2].headers["Idempotency-Replayed"] == "true"
    assert rows == ["order"]


def test_background_tasks_are_part_of_the_request() -> None:
    """The answer comes after them, and where one fails it is a failure."""
    # Given
    api, sent, failures = FastAPI(), [], [ZeroDivisionError(), None]

    def mail() -> None:
        failure = failures.pop(0)
        if failure is not None:
            raise failure
        sent.append("mail")

    @api.post("/orders", status_code=201)
    def order(tasks: BackgroundTasks) -> None:
        tasks.add_task(mail)

    keyed(api)
    client = client_of(api)
    # Then
    assert [client.post("/orders").status_code for _ in range(3)] == [500, 201, 201]
    assert sent == ["mail"]


def test_a_redirect_to_the_trailing_slash_is_followed_with_the_same_key() -> None:
    """Whoever follows it is carried out, once; whoever asks again is redirected again."""
    # Given
    api, orders = FastAPI(), []

    @api.post("/orders/", status_code=201)
    def order() -> None:
        orders.append("order")

    keyed(api)
    client = client_of(api)
    # When
    replies = [client.post("/orders") for _ in range(2)]
    # Then
    assert [[step.status_code for step in reply.history] for reply in replies] == [[307], [307]]
    assert [reply.status_code for reply in replies] == [201, 201]
    assert orders == ["order"]


def test_cors_stands_outside() -> None:
    """Each answer has the header of its own origin, a replay's and a refusal's too."""
    # Given
    api = FastAPI()

    @api.post("/orders", status_code=201)
    def order(order: dict[str, int]) -> None: ...

    keyed(api)
    api.add_middleware(CORSMiddleware, allow_origins=["https://a.example", "https://b.example"])
    client = client_of(api)

    def origin(number: int, http_app: str) -> tuple[int, str | None]:
        headers = {"Origin": f"https://{http_app}.example"}
        reply = client.post("/orders", json={"number": number}, headers=headers)
        return reply.status_code, reply.headers.get("Access-Control-Allow-Origin")

    # Then
    assert origin(1, "a") == (201, "https://a.example")
    assert origin(1, "b") == (201, "https://b.example")
    assert origin(2, "b") == (422, "https://b.example")


def test_cors_inside_answers_with_the_first_origin() -> None:
    """What the documentation warns of."""
    # Given
    api = FastAPI()

    @api.post("/orders", status_code=201)
    def order(order: dict[str, int]) -> None: ...

    api.add_middleware(CORSMiddleware, allow_origins=["https://a.example", "https://b.example"])
    keyed(api)
    client = client_of(api)
    # When
    replies = [
        client.post(
            "/orders", json={"number": n}, headers={"Origin": f"https://{http_app}.example"}
        )
        for n, http_app in ((1, "a"), (1, "b"), (2, "b"))
    ]
    # Then
    assert [reply.headers.get("Access-Control-Allow-Origin") for reply in replies] == [
        "https://a.example",
        "https://a.example",
        None,
    ]


@pytest.mark.parametrize("outside", [True, False])
def test_compression_stands_outside(outside: bool) -> None:
    """Then a replay is compressed for who asks; inside, as the first one wanted it."""
    # Given
    api = FastAPI()

    @api.post("/orders")
    def order() -> str:
        return "x" * 1000

    steps: list[Any] = [lambda: api.add_middleware(GZipMiddleware), lambda: keyed(api)]
    for step in reversed(steps) if outside else steps:
        step()
    client = client_of(api)
    # When
    client.post("/orders", headers={"Accept-Encoding": "gzip"})
    with client.stream("POST", "/orders", headers={"Accept-Encoding": "identity"}) as second:
        body = b"".join(second.iter_raw())
    # Then
    assert second.headers["Idempotency-Replayed"] == "true"
    assert body == (b'"' + b"x" * 1000 + b'"') or not outside
    assert outside or gzip.decompress(body) == b'"' + b"x" * 1000 + b'"'


@pytest.mark.parametrize("outside", [True, False])
def test_a_middleware_of_starlettes_base_may_stand_on_either_side(outside: bool) -> None:
    """It passes on what is sent, and sees a disconnect when the answer is complete."""
    # Given
    api = FastAPI()

    @api.post("/orders", status_code=201)
    def order() -> dict[str, int]:
        return {"order": 1}

    class Passes(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            return await call_next(request)

    steps: list[Any] = [lambda: api.add_middleware(Passes), lambda: keyed(api)]
    for step in reversed(steps) if outside else steps:
        step()
    client = client_of(api)
    # Then
    replies = [client.post("/orders") for _ in range(2)]
    assert [(reply.status_code, reply.json()) for reply in replies] == [(201, {"order": 1})] * 2
    assert replies[1].headers["Idempotency-Replayed"] == "true"
