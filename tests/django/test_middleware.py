"""What only Django's middleware has to see to: its forms, its limits, its streams, its own base."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from celery_idempotent.errors import ConfigurationError
from celery_idempotent.http import Edge
from celery_idempotent.run.heartbeat import heartbeat
from tests.support.djangos import database_of
from tests.support.http_app import (
    DjangoApp,
    DjangoAsgiApp,
    DjangoAsyncApp,
    DjangoWsgiApp,
    HttpApp,
    Reply,
    make_celery,
)

# Django is set up by then.
from django.db import IntegrityError  # isort: skip
from django.http import HttpResponse, StreamingHttpResponse  # isort: skip
from django.test import RequestFactory, override_settings  # isort: skip

from celery_idempotent.django.middleware import IdempotencyMiddleware
from celery_idempotent.django.store import DjangoStore
from tests.django_project.shop.models import Account

MakeHttpApp = Callable[..., DjangoApp]

FORM = "multipart/form-data; boundary=b"


def form(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    """A form with files."""
    lines = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n"
        % (boundary.encode(), head.encode(), body)
        for head, body in parts
    )
    return lines + f"--{boundary}--\r\n".encode()


FILE = 'name="file"; filename="a.bin"'


@pytest.fixture(params=[DjangoWsgiApp, DjangoAsgiApp, DjangoAsyncApp])
def make_http_app(request: pytest.FixtureRequest) -> MakeHttpApp:
    """Make an application of each of Django's kinds."""
    made: MakeHttpApp = request.param
    return made


def with_view(make_http_app: MakeHttpApp, view: Callable[[Any], Any], **settings: Any) -> DjangoApp:
    """An application whose view is Django's, not a handler."""

    class Viewing(make_http_app):  # type: ignore[valid-type,misc]
        def view(self, request: Any) -> Any:
            self.calls.append(b"")
            return view(request)

        async def view_async(self, request: Any) -> Any:
            return self.view(request)

    return Viewing(lambda body, run: Reply(), make_celery(**settings))


def test_an_upload_beyond_djangos_limit_for_memory_is_the_views(make_http_app: MakeHttpApp) -> None:
    """A file may be of any size, and what the view does with the rest is its own."""

    # Given
    def view(request: Any) -> HttpResponse:
        file = request.FILES["file"]
        return HttpResponse(f"{request.POST['name']} {file.size}", status=201)

    http_app = with_view(make_http_app, view)
    body = form(('name="name"', b"ann"), (FILE, b"x" * 4_000_000))
    # When
    first, second = (http_app.post("a", body, content_type=FORM) for _ in range(2))
    # Then
    assert (first.status, first.body) == (second.status, second.body) == (201, b"ann 4000000")
    assert len(http_app.calls) == 1


def test_a_body_over_djangos_limit_is_refused_as_without_us(make_http_app: MakeHttpApp) -> None:
    """By the view's own look at it, with 400."""
    # Given
    http_app = with_view(make_http_app, lambda request: HttpResponse(request.body, status=201))
    body = b"x" * 100
    # When
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=10):
        replies = [http_app.post(key, body) for key in (None, "a")]
    # Then
    assert [reply.status for reply in replies] == [400, 400]


@pytest.mark.parametrize("kind", [FORM, "application/json"])
def test_a_middleware_outside_may_have_read_the_body(make_http_app: MakeHttpApp, kind: str) -> None:
    """Its form is compared by its fields and its files; the view reads both."""
    # Given
    looked: list[bool] = []

    class Reads:
        sync_capable = True
        async_capable = False

        def __init__(self, get_response: Any) -> None:
            self._get_response = get_response

        def __call__(self, request: Any) -> Any:
            looked.append("name" in request.POST)
            return self._get_response(request)

    def view(request: Any) -> HttpResponse:
        if kind == FORM:
            return HttpResponse(request.FILES["file"].read(), status=201)
        return HttpResponse(request.body, status=201)

    http_app = with_view(make_http_app, view)
    http_app.middleware.insert(0, http_app.listed(Reads))
    # When
    sent = [
        form(('name="name"', b"ann"), (FILE, content)) for content in (b"same", b"same", b"other")
    ]
    replies = [http_app.post("a", body, content_type=kind) for body in sent]
    # Then
    assert [reply.status for reply in replies] == [201, 201, 422]
    assert replies[0].body == replies[1].body
    assert replies[1].header("Idempotency-Replayed") == "true"
    assert len(http_app.calls) == 1
    assert looked == [kind == FORM] * 3


def test_half_a_form_that_a_middleware_outside_has_read_is_no_request() -> None:
    """Django makes a file of as much as came."""

    # Given
    class Reads:
        def __init__(self, get_response: Any) -> None:
            self._get_response = get_response

        def __call__(self, request: Any) -> Any:
            _ = request.POST
            return self._get_response(request)

    http_app = with_view(DjangoWsgiApp, lambda request: HttpResponse(status=201))
    http_app.middleware.insert(0, http_app.listed(Reads))
    body = form((FILE, b"x" * 1000))
    # When
    half = http_app.post("a", body, content_type=FORM, cut_at=500)
    # Then
    assert half.status == 400
    assert http_app.calls == []
    assert http_app.post("a", body, content_type=FORM).status == 201


class Chunked(BytesIO):
    """A body in chunks, as a server gives it that ends it itself; or breaks off."""

    def __init__(self, body: bytes, is_whole: bool = True) -> None:
        super().__init__(body)
        self._is_whole = is_whole

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        if not part and not self._is_whole:
            raise OSError("the client has gone")
        return part


def test_half_a_body_in_chunks_is_no_request() -> None:
    """Django's views see nothing of such a body; it is compared all the same."""
    # Given
    middleware = Middleware(lambda request: HttpResponse(request.body, status=201))

    def send(body: Chunked) -> Any:
        request = RequestFactory().post("/", headers={"Idempotency-Key": "a"})
        del request.META["CONTENT_LENGTH"]
        request.environ.update({"wsgi.input": body, "wsgi.input_terminated": True})
        return middleware(request)

    # Then
    assert send(Chunked(b'{"a"', is_whole=False)).status_code == 400
    assert [send(Chunked(body)).status_code for body in (b"{}", b"{}", b"[]")] == [201, 201, 422]


def test_a_stream_that_somebody_outside_has_read_is_an_error_that_says_so() -> None:
    """Nobody can compare a body that is gone."""
    # Given
    middleware = Middleware(lambda request: HttpResponse())
    request = RequestFactory().post(
        "/", b"{}", content_type="application/json", headers={"Idempotency-Key": "a"}
    )
    request.read()
    # Then
    with pytest.raises(ConfigurationError, match="list it after"):
        middleware(request)


class Middleware(IdempotencyMiddleware):
    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        self.edge = Edge(make_celery())  # type: ignore[misc]

    def identity(self, request: Any) -> str | None:
        return "ann"


def test_whose_keys_they_are_has_to_be_said() -> None:
    """There is no default: it would make one caller of all."""
    middleware = IdempotencyMiddleware(lambda request: HttpResponse())
    middleware.edge = Edge(make_celery())  # type: ignore[misc]
    with pytest.raises(NotImplementedError, match="identity"):
        middleware(RequestFactory().post("/", headers={"Idempotency-Key": "a"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("identity", "x"),
        ("identity", lambda self: "ann"),
        ("required", True),
        ("keeps", 3),
        ("keeps", lambda self: True),
    ],
)
def test_a_wrong_method_is_refused_when_the_middleware_is_made(name: str, value: Any) -> None:
    """A request would have failed with an error from within."""
    kind = type("Keys", (Middleware,), {name: value})
    with pytest.raises(ConfigurationError, match=f"Keys.{name} is .*, and must be a function of"):
        kind(lambda request: HttpResponse())


def test_cookies_are_the_first_ones(make_http_app: MakeHttpApp) -> None:
    """A cookie is for one session."""

    # Given
    def view(request: Any) -> HttpResponse:
        response = HttpResponse("made", status=201)
        response.set_cookie("session", "1")
        return response

    http_app = with_view(make_http_app, view)
    # Then
    first, second = http_app.post("a"), http_app.post("a")
    assert first.header("Set-Cookie") is not None
    assert (second.body, second.header("Set-Cookie")) == (b"made", None)


@pytest.mark.parametrize("number", [3, 20])
def test_an_async_stream_is_taken_as_any_other(number: int) -> None:
    """It is kept where it fits, and else passed on as it is made."""

    # Given
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(number):
            yield b"x" * 100
            await asyncio.sleep(0)

    http_app: HttpApp = with_view(
        DjangoAsyncApp,
        lambda request: StreamingHttpResponse(parts()),
        idempotency_max_result_size=1000,
    )
    # When
    first, second = http_app.post("a"), http_app.post("a")
    # Then
    assert (first.body, first.is_whole) == (b"x" * 100 * number, True)
    if number == 3:
        assert (second.status, second.body) == (200, first.body)
    else:
        assert second.code == "answer-not-kept"
    assert len(http_app.calls) == 1


# --- with records in the project's own database ---------------------------------------------------


@pytest.fixture(params=[DjangoWsgiApp, DjangoAsgiApp])
def banking(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[MakeHttpApp, str]]:
    """Make an application whose records are beside its accounts; and the database's alias."""
    with database_of("sqlite", tmp_path) as alias:

        def make(view: Callable[[Any], Any]) -> DjangoApp:
            http_app = with_view(request.param, view)
            http_app.celery.conf.idempotency_store_url = f"django://{alias}"
            return http_app

        yield make, alias


def opening(alias: str, *statuses: int) -> Callable[[Any], HttpResponse]:
    """A view that opens an account in its session's transaction, with a name that is there once."""
    left = list(statuses)

    def view(request: Any) -> HttpResponse:
        assert request.idempotency.session.in_atomic_block
        Account.objects.using(alias).create(name=f"account {len(left)}")
        return HttpResponse(status=left.pop(0))

    return view


def test_what_a_view_writes_is_committed_with_its_answer(banking: tuple[MakeHttpApp, str]) -> None:
    """Or not at all, where the answer is not kept."""
    # Given
    make, alias = banking
    http_app = make(opening(alias, 500, 201))
    # Then
    assert [http_app.post("a").status for _ in range(3)] == [500, 201, 201]
    assert [account.name for account in Account.objects.using(alias).all()] == ["account 1"]
    assert len(http_app.calls) == 2


def test_a_commit_that_fails_frees_the_key(
    banking: tuple[MakeHttpApp, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets the failure, and may try again."""
    # Given
    make, alias = banking
    http_app = make(opening(alias, 201, 202))
    settle = DjangoStore.settle_in
    failures = [IntegrityError("a constraint that is deferred")]

    def settle_in(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return settle(*args)

    monkeypatch.setattr(DjangoStore, "settle_in", settle_in)
    of_others = heartbeat.leases()
    # Then
    assert http_app.post("a").status == 500
    assert [lease for lease in heartbeat.leases() if lease not in of_others] == []
    assert [http_app.post("a").status for _ in range(2)] == [202, 202]
    assert [account.name for account in Account.objects.using(alias).all()] == ["account 1"]
