"""A request that is sent again gets the first answer: the same through each adapter."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery

from celery_idempotent import IdempotentTask, State, observers
from celery_idempotent.core.record import Record
from celery_idempotent.core.verdicts import Resolve
from celery_idempotent.errors import ConfigurationError, StoreUnavailable
from celery_idempotent.http import Edge
from celery_idempotent.http.asgi import IdempotencyASGIMiddleware
from celery_idempotent.http.messages import Request
from celery_idempotent.http.wsgi import IdempotencyWSGIMiddleware
from celery_idempotent.ops.lookup import look_up
from celery_idempotent.ops.settle import resolve
from celery_idempotent.run.context import RunContext
from celery_idempotent.settings import environment_of
from tests.support.http_app import (
    HTTP_APPS,
    AsgiApp,
    Handler,
    HttpApp,
    OverAsgi,
    Reply,
    make_celery,
)
from tests.support.waiting import eventually

MakeHttpApp = Callable[..., HttpApp]

#: Django 4.2 under ASGI never looks for its client: there a stream without end has none.
ENDING = [kind for kind in HTTP_APPS.values() if kind.ends_streams]

JSON = ("Content-Type", "application/json")


@pytest.fixture(params=HTTP_APPS.values(), ids=HTTP_APPS.keys())
def make_http_app(request: pytest.FixtureRequest) -> MakeHttpApp:
    """Make an application of each kind: ``make_http_app(handler, **options of the middleware)``."""
    made: MakeHttpApp = request.param
    return made


def created(body: bytes, run: RunContext | None) -> Reply:
    return Reply(201, [JSON, ("Location", "/orders/1")], [b'{"order": ', b"1}"])


def answering(*replies: Reply | Exception) -> Handler:
    """A handler with an answer for each call."""
    left = list(replies)

    def handler(body: bytes, run: RunContext | None) -> Reply:
        reply = left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return handler


def records(http_app: HttpApp) -> dict[str, Record]:
    store = environment_of(http_app.celery).store
    return {name: record for name in store.scan("*") if (record := store.get(name)) is not None}


# --- replays -------------------------------------------------------------------------------------


def test_the_first_answer_is_given_again(make_http_app: MakeHttpApp) -> None:
    """Status, header fields and body are those of the first; a field says that it is a replay."""
    # Given
    http_app = make_http_app(created)
    # When
    first, second = http_app.post("7f3a"), http_app.post("7f3a")
    # Then
    assert len(http_app.calls) == 1
    assert (first.status, first.body, first.header("Idempotency-Replayed")) == (
        201,
        b'{"order": 1}',
        None,
    )
    assert (second.status, second.body) == (first.status, first.body)
    assert second.header("Location") == "/orders/1"
    assert second.header("Content-Type") == "application/json"
    assert second.header("Content-Length") == "12"
    assert second.header("Idempotency-Replayed") == "true"


def test_what_belongs_to_a_connection_or_a_session_is_not_given_again(
    make_http_app: MakeHttpApp,
) -> None:
    """Hop-by-hop fields, those that Connection names, Date and Set-Cookie are the first one's."""
    # Given
    gone = [
        ("Connection", "close, X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Date", "Tue, 24 Nov 2026 05:00:00 GMT"),
        ("Set-Cookie", "session=1"),
    ]
    http_app = make_http_app(
        answering(Reply(200, [*gone, ("X-Kept", "1"), ("X-Kept", "2")], [b"ok"]))
    )
    # When
    first, second = http_app.post("7f3a"), http_app.post("7f3a")
    # Then
    assert all(first.header(name) == value for name, value in gone)
    kept = [value for name, value in first.headers if name.lower() == "x-kept"]
    assert kept[-1] == "2"  # Django has one value for a name
    assert [value for name, value in second.headers if name.lower() == "x-kept"] == kept
    assert not [name for name, _ in gone if second.header(name) is not None]


def test_what_another_service_said_of_its_own_answer_is_not_given_again(
    make_http_app: MakeHttpApp,
) -> None:
    """An application may pass on an answer that was a replay elsewhere."""
    http_app = make_http_app(answering(Reply(201, [("Idempotency-Replayed", "true")])))
    _, second = http_app.post("a"), http_app.post("a")
    names = [name for name, _ in second.headers if name.lower() == "idempotency-replayed"]
    assert len(names) == 1


def test_another_key_is_another_request(make_http_app: MakeHttpApp) -> None:
    """And so is one without a key, each time."""
    http_app = make_http_app(created)
    for key in ("a", "b", None, None):
        http_app.post(key)
    assert len(http_app.calls) == 4


def test_other_methods_go_through(make_http_app: MakeHttpApp) -> None:
    """A key on PUT says nothing: PUT is idempotent by itself. The list of methods is yours."""
    http_app, other = make_http_app(created), make_http_app(created, methods=["PUT"])
    for one in (http_app, other):
        one.post("a", method="PUT")
        one.post("a", method="PUT")
    assert (len(http_app.calls), len(other.calls)) == (2, 1)


def test_nobody_gets_anothers_answer(make_http_app: MakeHttpApp) -> None:
    """The same key of two callers is two requests; no choice of names makes them one."""
    # Given
    http_app = make_http_app(created)
    # When
    for user, key in (("ann", "k"), ("bob", "k"), ("an", "nk"), ("1:an", "nk")):
        assert http_app.post(key, user=user).header("Idempotency-Replayed") is None
    # Then
    assert len(http_app.calls) == 4
    assert not any("ann" in name for name in records(http_app))


def test_a_request_of_nobody_is_the_applications(make_http_app: MakeHttpApp) -> None:
    """Where identity gives None nothing is kept: the application refuses it as it always did."""
    http_app = make_http_app(answering(Reply(401), Reply(401)))
    assert [http_app.post("a", user=None).status for _ in range(2)] == [401, 401]
    assert not records(http_app)


def test_an_empty_identity_is_a_mistake(make_http_app: MakeHttpApp) -> None:
    """It would make one caller of many."""
    http_app = make_http_app(created)
    assert http_app.post("a", user="").status == 500
    assert http_app.calls == []
    with pytest.raises(TypeError, match="identity returned an empty text, and must"):
        Edge(make_celery()).begin(Request("POST", "/", "", b"", ""), "", "a")


# --- refusals ------------------------------------------------------------------------------------


def test_a_required_key_that_is_missing_is_400(make_http_app: MakeHttpApp) -> None:
    """As problem+json, with a link where the documentation is."""
    # Given
    http_app = make_http_app(created, required=True, docs_url="https://api.example/keys")
    # When
    reply = http_app.post(None)
    # Then
    assert (reply.status, http_app.calls) == (400, [])
    assert reply.header("Content-Type") == "application/problem+json"
    assert (reply.json["code"], reply.json["type"]) == ("missing-key", "https://api.example/keys")
    assert http_app.post("a").status == 201


def test_whether_a_key_is_required_may_depend_on_the_request(make_http_app: MakeHttpApp) -> None:
    """A function of the scope, the environ or the request says so."""
    http_app = make_http_app(created, required="/pay")
    assert [http_app.post(None, path=path).status for path in ("/pay", "/orders")] == [400, 201]


@pytest.mark.parametrize("fields", [['"a'], ['"a"', '"b"'], [""]])
def test_a_malformed_key_is_400(make_http_app: MakeHttpApp, fields: list[str]) -> None:
    """Whether a key is required or not: a client that sent one counts on it."""
    http_app = make_http_app(created)
    reply = http_app.post(fields=fields)
    assert (reply.status, reply.json["code"], http_app.calls) == (400, "malformed-key", [])


@pytest.mark.parametrize("other", [{"body": b"[]"}, {"query": "a=2"}], ids=["body", "query"])
def test_the_same_key_for_something_else_is_422(
    make_http_app: MakeHttpApp, other: dict[str, Any]
) -> None:
    """Query and body are compared; nothing is done."""
    # Given
    http_app = make_http_app(created)
    http_app.post("a", query="a=1")
    # When
    reply = http_app.post("a", **{"query": "a=1", **other})
    # Then
    assert (reply.status, reply.json["code"], len(http_app.calls)) == (422, "other-payload", 1)


def test_a_key_belongs_to_a_method_and_a_path(make_http_app: MakeHttpApp) -> None:
    """A request that follows a redirect brings the same key, and is another request."""
    http_app = make_http_app(created)
    for other in ({}, {"path": "/orders/"}, {"method": "PATCH"}):
        assert http_app.post("a", **other).header("Idempotency-Replayed") is None  # type: ignore[arg-type]
    assert len(http_app.calls) == 3
    assert len(set(records(http_app))) == 3


def test_a_form_with_another_boundary_is_the_same_form(make_http_app: MakeHttpApp) -> None:
    """A client that builds its multipart body anew means the same request."""
    # Given
    http_app = make_http_app(created)

    def send(boundary: str, value: str) -> int:
        body = f'--{boundary}\r\nContent-Disposition: form-data; name="a"\r\n\r\n{value}\r\n'
        body += f"--{boundary}--\r\n"
        kind = f'multipart/form-data; boundary="{boundary}"'
        return http_app.post("a", body.encode(), content_type=kind).status

    # Then
    assert [send("one", "1"), send("two", "1"), send("two", "2")] == [201, 201, 422]
    assert len(http_app.calls) == 1


def test_a_body_too_large_to_be_compared_is_413(make_http_app: MakeHttpApp) -> None:
    """It isn't read to its end."""
    http_app = make_http_app(created, max_request_size=10)
    assert http_app.post("a", b"x" * 11).status == 413
    assert http_app.post("a", b"x" * 10).status == 201
    assert http_app.post(None, b"x" * 11).status == 201


def test_while_the_first_one_runs_it_is_409(make_http_app: MakeHttpApp) -> None:
    """With Retry-After; once the first is answered, the retry gets that answer."""
    # Given
    entered, leave = threading.Event(), threading.Event()

    def slow(body: bytes, run: RunContext | None) -> Reply:
        entered.set()
        assert leave.wait(30)
        return Reply(201, [], [b"done"])

    http_app = make_http_app(slow)
    first = threading.Thread(target=http_app.post, args=("a",))
    first.start()
    assert entered.wait(30)
    # When
    during = http_app.post("a")
    leave.set()
    first.join()
    # Then
    assert (during.status, during.json["code"]) == (409, "in-progress")
    assert during.header("Retry-After") == "1"
    assert http_app.post("a").body == b"done"
    assert len(http_app.calls) == 1


# --- what is not kept ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 503, 401, 409, 429])
def test_an_answer_that_may_be_better_later_is_not_kept(
    make_http_app: MakeHttpApp, status: int
) -> None:
    """The key is free again, and the next request is carried out."""
    http_app = make_http_app(answering(Reply(status), Reply(201)))
    assert [http_app.post("a").status for _ in range(3)] == [status, 201, 201]
    assert len(http_app.calls) == 2


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_is_not_kept(make_http_app: MakeHttpApp, status: int) -> None:
    """A client that follows it, or asks again, isn't held to it; a key has many places."""
    # Given
    elsewhere = Reply(status, [("Location", "/orders/")])
    http_app = make_http_app(answering(elsewhere, elsewhere, Reply(201)))
    # Then
    assert [http_app.post("a").status for _ in range(2)] == [status, status]
    assert http_app.post("a", path="/orders/").status == 201


@pytest.mark.parametrize("status", [200, 204, 303, 400, 404, 422])
def test_any_other_answer_is_kept(make_http_app: MakeHttpApp, status: int) -> None:
    """A refusal is an answer too."""
    http_app = make_http_app(answering(Reply(status)))
    assert [http_app.post("a").status for _ in range(2)] == [status, status]


def test_which_answers_are_kept_is_yours_to_say(make_http_app: MakeHttpApp) -> None:
    """By their status."""
    http_app = make_http_app(answering(Reply(404), Reply(200)), keeps=lambda status: status == 200)
    assert [http_app.post("a").status for _ in range(3)] == [404, 200, 200]


def test_an_exception_frees_the_key(make_http_app: MakeHttpApp) -> None:
    """It goes on to the server as it is."""
    http_app = make_http_app(answering(ZeroDivisionError(), Reply(201)))
    assert [http_app.post("a").status for _ in range(3)] == [500, 201, 201]
    assert len(http_app.calls) == 2


def test_a_run_that_was_cut_off_may_be_tried_again_at_once(make_http_app: MakeHttpApp) -> None:
    """The application then knows that its work may have been done already."""
    # Given
    seen: list[bool] = []

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        seen.append(run.interrupted)
        if len(seen) == 1:
            raise SystemExit
        return Reply(201)

    http_app = make_http_app(handler)
    with pytest.raises(SystemExit):
        http_app.post("a")
    # Then
    assert eventually(lambda: http_app.post("a").status == 201)
    assert seen == [False, True]


def test_a_key_cut_off_too_often_is_nobodys_to_try(make_http_app: MakeHttpApp) -> None:
    """Under the policy "unknown" once is too often; it stays so until somebody resolves it."""

    # Given
    def handler(body: bytes, run: RunContext | None) -> Reply:
        if len(http_app.calls) == 1:
            raise KeyboardInterrupt
        return Reply(201)

    http_app = make_http_app(handler, make_celery(idempotency_on_interrupted="unknown"))
    with pytest.raises(KeyboardInterrupt):
        http_app.post("a")
    # When
    eventually(lambda: http_app.post("a").json["code"] == "outcome-unknown")
    reply = http_app.post("a")
    # Then
    assert (reply.status, reply.header("Retry-After"), len(http_app.calls)) == (409, None, 1)
    # And when a person says that it didn't happen
    ((name, _),) = records(http_app).items()
    assert environment_of(http_app.celery).store.resolve(name, Resolve(State.RELEASED, b"", 60_000))
    assert http_app.post("a").status == 201


# --- long answers --------------------------------------------------------------------------------


def test_a_stream_within_the_limit_is_kept(make_http_app: MakeHttpApp) -> None:
    """It is sent when it is whole."""
    http_app = make_http_app(lambda body, run: Reply(200, [], (bytes([65 + n]) for n in range(26))))
    assert http_app.post("a").body == http_app.post("a").body == bytes(range(65, 91))
    assert len(http_app.calls) == 1


def test_an_answer_over_the_limit_is_sent_and_not_kept(make_http_app: MakeHttpApp) -> None:
    """The client gets all of it; a retry learns that it was done, and where to look."""
    # Given
    celery = make_celery(idempotency_max_result_size=1000)
    chunks = [b"x" * 400] * 5
    http_app = make_http_app(
        lambda body, run: Reply(201, [("Location", "/orders/1")], iter(chunks)), celery
    )
    # When
    first, second = http_app.post("a"), http_app.post("a")
    # Then
    assert (first.status, first.body) == (201, b"".join(chunks))
    assert (second.status, second.json["code"]) == (409, "answer-not-kept")
    assert (second.json["first_status"], second.header("Content-Location")) == (201, "/orders/1")
    assert second.header("Retry-After") is None
    assert len(http_app.calls) == 1


def test_a_stream_of_events_is_not_waited_for(make_http_app: MakeHttpApp) -> None:
    """Its first part reaches the client before the second is made."""
    # Given
    reached: list[bytes] = []

    def events() -> Iterator[bytes]:
        yield b"one"
        yield b"two"
        yield b"three"

    http_app = make_http_app(
        lambda body, run: Reply(200, [("Content-Type", "text/event-stream")], events())
    )
    # When
    reply = http_app.post("a")
    reached.extend(reply.chunks)
    # Then
    assert [chunk for chunk in reached if chunk] == [b"one", b"two", b"three"]
    assert http_app.post("a").json["code"] == "answer-not-kept"


def test_a_stream_whose_client_hung_up_is_made_to_its_end(make_http_app: MakeHttpApp) -> None:
    """It is work that was asked for: its retry learns that it was done."""
    # Given
    celery = make_celery(idempotency_max_result_size=1000)
    made: list[int] = []

    def parts() -> Iterator[bytes]:
        for number in range(5):
            made.append(number)
            yield b"x" * 300

    http_app = make_http_app(lambda body, run: Reply(201, [], parts()), celery)
    # When
    first = http_app.post("a", hang_up_after=4)
    # Then
    assert not first.is_whole
    assert http_app.post("a").code == "answer-not-kept"
    assert made == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("make_http_app", ENDING)
def test_a_stream_without_end_is_closed_after_its_client(make_http_app: MakeHttpApp) -> None:
    """Up to a limit it goes on; then it was interrupted, never carried out."""
    # Given
    celery = make_celery(idempotency_max_result_size=1000)
    seen: list[bool] = []

    def without_end() -> Iterator[bytes]:
        while True:
            yield b"x" * 300

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        seen.append(run.interrupted)
        return Reply(201, [], iter([b"done"]) if run.interrupted else without_end())

    http_app = make_http_app(handler, celery)
    # When
    first, second = http_app.post("a", hang_up_after=4), http_app.post("a")
    # Then
    assert not first.is_whole
    assert (second.body, seen) == (b"done", [False, True])


@pytest.mark.parametrize("make_http_app", ENDING)
def test_a_stream_is_given_up_at_its_limit(make_http_app: MakeHttpApp) -> None:
    """As much is made for nobody as could have been kept, and no more."""
    # Given
    celery = make_celery(idempotency_max_result_size=1000)
    made: list[int] = []

    def parts() -> Iterator[bytes]:
        for number in range(100):
            made.append(number)
            yield b"x" * 300

    http_app = make_http_app(lambda body, run: Reply(201, [], parts()), celery)
    # When
    http_app.post("a", hang_up_after=4)
    # Then
    assert 4 < len(made) < 20
    assert [record.state for record in records(http_app).values()] == [State.RUNNING]


@pytest.mark.parametrize(
    "kind", [kind for kind in HTTP_APPS.values() if issubclass(kind, OverAsgi)]
)
def test_a_request_that_is_cancelled_runs_to_its_end(kind: type[OverAsgi]) -> None:
    """Some servers cancel what they have no client for."""
    # Given
    begun, may_end = threading.Event(), threading.Event()

    def work(body: bytes, run: RunContext | None) -> Reply:
        begun.set()
        assert may_end.wait(30)
        return Reply(201, [], [b"made"])

    http_app = kind(work)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/orders",
        "headers": [(b"idempotency-key", b"a"), (b"user", b"ann"), (b"content-type", b"a/b")],
    }

    async def receive() -> Any:
        sent.append(b"")
        if len(sent) == 1:
            return {"type": "http.request", "body": b"{}", "more_body": False}
        await told.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None: ...

    async def cut_short() -> None:
        task = asyncio.ensure_future(http_app.app(scope, receive, send))
        await asyncio.to_thread(begun.wait, 30)
        if kind is AsgiApp:
            task.cancel()
        else:
            told.set()  # Django cancels its view itself
        for _ in range(20):
            await asyncio.sleep(0)
        may_end.set()
        with suppress(asyncio.CancelledError):
            await task
        while not any(r.state is State.SUCCEEDED for r in records(http_app).values()):
            await asyncio.sleep(0.01)

    sent: list[bytes] = []
    told = asyncio.Event()
    # When
    asyncio.run(asyncio.wait_for(cut_short(), 20))
    # Then
    assert http_app.post("a", content_type="a/b").body == b"made"
    assert len(http_app.calls) == 1


def test_a_stream_that_breaks_is_an_interruption(make_http_app: MakeHttpApp) -> None:
    """A part of it was sent; the next request runs, and knows that there was one before."""
    # Given
    seen: list[bool] = []

    def failing() -> Iterator[bytes]:
        yield b"x" * 2000
        raise ZeroDivisionError

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        seen.append(run.interrupted)
        return Reply(201) if run.interrupted else Reply(200, [], failing())

    http_app = make_http_app(handler, make_celery(idempotency_max_result_size=1000))
    # When
    first, second = http_app.post("a"), http_app.post("a")
    # Then
    assert (first.status, first.is_whole) == (200, False)
    assert (second.status, seen) == (201, [False, True])


def test_a_stream_that_breaks_unseen_frees_the_key(make_http_app: MakeHttpApp) -> None:
    """Nothing of it was sent: it fails as any other request."""

    # Given
    def failing() -> Iterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    http_app = make_http_app(answering(Reply(200, [], failing()), Reply(201)))
    # Then
    assert [http_app.post("a").status for _ in range(2)] == [500, 201]


# --- what a server would not have sent -----------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        ("Content-Disposition", 'attachment; filename="a\r\nSet-Cookie: stolen=1"'),
        ("X-Name", "a\nb"),
        ("X-Name", "a\rb"),
        ("X-Name", "a\0b"),
        ("X-Name", "a\r\n\r\n<script>"),
    ],
)
@pytest.mark.parametrize("long", [False, True], ids=["kept", "passed on"])
def test_a_field_with_a_line_break_is_never_stored(
    make_http_app: MakeHttpApp, field: tuple[str, str], long: bool
) -> None:
    """It fails as without us, and frees the key."""
    # Given
    bad = Reply(200, [field, ("Location", "/1")], iter([b"x" * 2000 * long]))
    http_app = make_http_app(
        answering(bad, Reply(201, [JSON], [b"{}"])), make_celery(idempotency_max_result_size=1000)
    )
    # When
    first, second = http_app.post("a"), http_app.post("a")
    # Then
    assert first.status == 500
    assert (second.status, second.body) == (201, b"{}")
    assert all(b"stolen" not in record.outcome for record in records(http_app).values())


def test_half_a_body_is_no_request(make_http_app: MakeHttpApp) -> None:
    """The client died in the middle of its upload: nothing is run, no key is taken."""
    # Given
    http_app = make_http_app(created)
    # When
    half = http_app.post("a", b'{"amount": 100}', cut_at=9)
    # Then
    assert half.code in (None, "incomplete-body")
    assert (half.status in (0, 400), http_app.calls, records(http_app)) == (True, [], {})
    # And
    assert http_app.post("a", b'{"amount": 100}').status == 201


# --- what comes after the answer was made --------------------------------------------------------


def test_a_commit_that_fails_after_the_answer_was_made_is_a_failure(
    make_http_app: MakeHttpApp,
) -> None:
    """Nobody has seen the answer yet: the client gets the failure, and may try again."""
    # Given
    commits: list[str] = []

    def commit() -> None:
        commits.append("tried")
        if len(commits) == 1:
            raise ZeroDivisionError("the database refused")

    http_app = make_http_app(lambda body, run: Reply(201, [JSON], [b"{}"], after=commit))
    # Then
    assert [http_app.post("a").status for _ in range(3)] == [500, 201, 201]
    assert (len(http_app.calls), len(commits)) == (2, 2)


# --- steps and the session -----------------------------------------------------------------------


def test_steps_are_recorded_in_a_request(make_http_app: MakeHttpApp) -> None:
    """The try after a failure goes on after the last step that was done."""
    # Given
    charged: list[str] = []

    def charge(order: str) -> dict[str, str]:
        charged.append(order)
        return {"charge": order}

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        done = run.step("charge", charge, "order-1")
        assert done == {"charge": "order-1"}
        return Reply(500 if len(http_app.calls) == 1 else 201)

    http_app = make_http_app(handler)
    # Then
    assert [http_app.post("a").status for _ in range(2)] == [500, 201]
    assert (len(http_app.calls), charged) == (2, ["order-1"])


def test_nobody_would_undo_a_step_of_a_request(make_http_app: MakeHttpApp) -> None:
    """A request that failed may always be sent again: compensate= is an error that says so."""
    # Given
    celery = make_celery()

    @celery.task(name="shop.refund", shared=False)
    def refund(result: int) -> None: ...

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        with pytest.raises(ConfigurationError, match="publish a task"):
            run.step("charge", lambda: 1, compensate=refund.s())
        return Reply(201)

    # Then
    assert make_http_app(handler, celery).post("a").status == 201


@pytest.mark.parametrize("mode", ["enforce", "off"])
def test_a_request_does_not_release_its_key(make_http_app: MakeHttpApp, mode: str) -> None:
    """It is an error that says so; the answer is kept, and the client's retry gets it."""
    # Given
    celery = make_celery(idempotency_mode=mode)

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        with pytest.raises(ConfigurationError, match="its key is the client's"):
            run.release()
        return Reply(201)

    http_app = make_http_app(handler, celery)
    # Then
    assert [http_app.post("a").status for _ in range(2)] == [201, 201]
    assert len(http_app.calls) == (1 if mode == "enforce" else 2)


# --- two of them ---------------------------------------------------------------------------------


def test_two_services_with_one_store_never_meet(make_http_app: MakeHttpApp) -> None:
    """The same user, key, path and body: each service does its own work."""
    # Given
    first, second = (make_http_app(created, make_celery()) for _ in range(2))
    second.celery.conf.idempotency_store_url = first.celery.conf.idempotency_store_url
    third = make_http_app(created, second.celery, service="third")
    # Then
    for http_app in (first, second, third):
        assert http_app.post("a").header("Idempotency-Replayed") is None
        assert http_app.post("a").header("Idempotency-Replayed") == "true"
        assert len(http_app.calls) == 1


def test_a_service_has_a_name() -> None:
    """An app without one would share its records with every other app without one."""
    with pytest.raises(ConfigurationError, match="service="):
        Edge(Celery(set_as_current=False))
    assert Edge(Celery(set_as_current=False), service="shop").covers("POST")


def test_a_middleware_that_is_listed_twice_acts_once(make_http_app: MakeHttpApp) -> None:
    """The outer one holds the key; the inner one lets its request through."""
    # Given
    http_app = make_http_app(created)
    http_app.wrap_again()
    # Then
    assert [http_app.post("a").status for _ in range(2)] == [201, 201]
    assert (len(http_app.calls), len(records(http_app))) == (1, 1)


# --- tasks, and what a handler knows -------------------------------------------------------------


def test_tasks_get_keys_from_the_request(make_http_app: MakeHttpApp) -> None:
    """A handler that is run again publishes duplicates, which are answered, not run."""
    # Given
    celery = make_celery()
    charged: list[int] = []

    @celery.task(base=IdempotentTask, name="shop.charge", shared=False)
    def charge(order_id: int) -> None:
        charged.append(order_id)

    def handler(body: bytes, run: RunContext | None) -> Reply:
        charge.delay(1)
        charge.delay(2)
        return Reply(500 if len(http_app.calls) == 1 else 201)

    http_app = make_http_app(handler, celery)
    # When
    statuses = [
        http_app.post("a").status,
        http_app.post("a").status,
        http_app.post("a", user="bob").status,
    ]
    # Then
    assert statuses == [500, 201, 201]
    assert charged == [1, 2, 1, 2]  # ann's two, and bob's


def test_a_body_that_is_read_late_still_publishes_with_the_key(make_http_app: MakeHttpApp) -> None:
    """A generator's tasks belong to the request, and nothing of it is left behind."""
    # Given
    celery = make_celery(idempotency_max_result_size=10)
    keys: list[str] = []

    @celery.task(base=IdempotentTask, name="shop.charge", bind=True, shared=False)
    def charge(self: Any, order_id: int) -> None:
        keys.append(self.idempotency.key)

    def parts() -> Iterator[bytes]:
        yield b"x" * 20
        charge.delay(1)
        yield b"end"

    http_app = make_http_app(lambda body, run: Reply(200, [], parts()), celery)
    # When
    http_app.post("7f3a")
    charge.delay(1)
    # Then
    assert keys[0].startswith("7f3a%40")
    assert not keys[1].startswith("7f3a")


def test_a_handler_has_a_key_for_others(make_http_app: MakeHttpApp) -> None:
    """key_for() is the same in every run of the request, and another for each caller."""
    # Given
    keys: list[tuple[str, int]] = []

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        assert run.token is not None
        run.check()
        keys.append((run.key_for("order"), run.token))
        return Reply(500)

    http_app = make_http_app(handler)
    # When
    for user in ("ann", "ann", "bob"):
        http_app.post("a", user=user)
    # Then
    assert keys[0][0] == keys[1][0] != keys[2][0]
    assert keys[0][1] < keys[1][1]


# --- the record ----------------------------------------------------------------------------------


def test_the_record_is_one_of_the_apps(make_http_app: MakeHttpApp) -> None:
    """It lives in the app's store for the app's window, and says what it is."""
    # Given
    http_app = make_http_app(created, make_celery(idempotency_ttl=100))
    http_app.post("7f3a")
    # When
    ((name, record),) = records(http_app).items()
    # Then
    assert name.startswith("idempotent:{celery.http:~")
    assert record.state is State.SUCCEEDED
    assert record.label == "http\nPOST /orders 7f3a"
    left = environment_of(http_app.celery).store.ttl(name)
    assert left is not None
    assert 90 < left <= 100


def test_for_how_long_answers_are_kept_is_yours_to_say(make_http_app: MakeHttpApp) -> None:
    """Apart from the tasks' window."""
    # Given
    http_app = make_http_app(created, make_celery(idempotency_ttl=100), ttl=5000)
    http_app.post("a")
    # When
    (name,) = records(http_app)
    left = environment_of(http_app.celery).store.ttl(name)
    # Then
    assert left is not None
    assert 4900 < left <= 5000


@pytest.mark.parametrize(
    ("argument", "value", "takes"),
    [
        ("celery", "x", "must be the Celery app"),
        ("identity", "x", "must be a function of the {known} that returns the caller as a text"),
        ("identity", lambda: "ann", "must be a function of the {known}"),
        ("required", "/pay", "must be a function of the {known} that returns True or False, or"),
        ("required", lambda: True, "must be a function of the {known}"),
        ("keeps", 3, "must be a function of a status"),
        ("keeps", lambda: True, "must be a function of a status"),
        ("service", 5, "must be a text"),
        ("docs_url", 5, "must be a text"),
        ("max_request_size", "1", "must be a number of bytes"),
        ("methods", "POST", "must be a list such as"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "known"),
    [(IdempotencyASGIMiddleware, "scope"), (IdempotencyWSGIMiddleware, "environ")],
)
def test_a_wrong_argument_is_refused_when_the_middleware_is_made(
    kind: Any, known: str, argument: str, value: Any, takes: str
) -> None:
    """It is named, with what it takes; a request would have failed with an error from within."""
    arguments = {"celery": make_celery(), "identity": lambda known: "ann", argument: value}
    words = f"^{argument} is {re.escape(repr(value))}, and {takes.format(known=known)}"
    with pytest.raises(ConfigurationError, match=words):
        kind(None, **arguments)


@pytest.mark.parametrize("ttl", [0, -1, True, "1", float("inf")])
def test_a_window_is_a_number_of_seconds(ttl: Any) -> None:
    """Anything else is an error when the middleware is made."""
    with pytest.raises(ConfigurationError, match="ttl is"):
        Edge(make_celery(), ttl=ttl)


def test_forgetting_the_record_makes_a_new_request_of_it(make_http_app: MakeHttpApp) -> None:
    """As with any other record; a run that goes on meanwhile answers its own client only."""

    # Given
    def handler(body: bytes, run: RunContext | None) -> Reply:
        if len(http_app.calls) == 1:
            ((name, _),) = records(http_app).items()
            assert environment_of(http_app.celery).store.forget(name, 60_000)
        return Reply(200, [], [str(len(http_app.calls)).encode()])

    http_app = make_http_app(handler)
    # Then
    assert [http_app.post("a").body for _ in range(3)] == [b"1", b"2", b"2"]


def test_a_request_that_was_overtaken_gives_the_winners_answer(make_http_app: MakeHttpApp) -> None:
    """A zombie's response is refused, and its client gets what everybody gets."""

    # Given
    def handler(body: bytes, run: RunContext | None) -> Reply:
        number = len(http_app.calls)
        if number == 1:
            ((name, _),) = records(http_app).items()
            assert environment_of(http_app.celery).store.forget(name, 60_000)
            winner = threading.Thread(target=http_app.post, args=("a",), daemon=True)
            winner.start()
            winner.join(30)
        return Reply(200, [], [f"answer {number}".encode()])

    http_app = make_http_app(handler)
    # Then
    assert http_app.post("a").body == b"answer 2"


@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_switched_off_it_only_gives_keys_to_tasks(make_http_app: MakeHttpApp, mode: str) -> None:
    """As idempotency_mode says for the app."""
    http_app = make_http_app(created, make_celery(idempotency_mode=mode))
    http_app.post("a")
    http_app.post("a")
    assert len(http_app.calls) == 2
    assert not records(http_app)


@pytest.mark.parametrize(("policy", "status"), [("retry", 503), ("raise", 503), ("run", 201)])
def test_while_the_store_is_away(
    make_http_app: MakeHttpApp, policy: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is done, and the client is asked to come back; or all is, where the app says so."""
    # Given
    http_app = make_http_app(created, make_celery(idempotency_on_store_error=policy))
    store = environment_of(http_app.celery).store

    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(store, "claim", away)
    monkeypatch.setattr("celery_idempotent.http.edge._PATIENCE_S", 0.0)
    # When
    reply = http_app.post("a")
    # Then
    assert reply.status == status
    assert len(http_app.calls) == (status == 201)
    if status == 503:
        assert reply.header("Retry-After") == "2"


@pytest.mark.parametrize(("policy", "status"), [("retry", 503), ("run", 201)])
def test_a_store_that_is_away_is_not_asked_by_each_request(
    make_http_app: MakeHttpApp, policy: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request waits for it; the others are answered at once."""
    # Given
    monkeypatch.setattr("celery_idempotent.http.edge._AWAY_S", 3600.0)
    http_app = make_http_app(created, make_celery(idempotency_on_store_error=policy))
    asked: list[str] = []

    def away(key: str, *_: Any) -> None:
        asked.append(key)
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(environment_of(http_app.celery).store, "claim", away)
    monkeypatch.setattr("celery_idempotent.http.edge._PATIENCE_S", 0.0)
    # Then
    assert [http_app.post(str(number)).status for number in range(12)] == [status] * 12
    assert len(asked) == 1


def test_one_request_at_a_time_finds_out_whether_the_store_is_back(
    make_http_app: MakeHttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others don't wait for that, and go on once it has answered."""
    # Given
    monkeypatch.setattr("celery_idempotent.http.edge._AWAY_S", 0.0)
    http_app = make_http_app(created)
    store = environment_of(http_app.celery).store
    claim, asked = store.claim, [0]
    asking, back = threading.Event(), threading.Event()

    def away(*args: Any) -> Any:
        asked[0] += 1
        if asked[0] == 1:
            raise StoreUnavailable("the store does not answer")
        asking.set()
        assert back.wait(30)
        return claim(*args)

    monkeypatch.setattr(store, "claim", away)
    monkeypatch.setattr("celery_idempotent.http.edge._PATIENCE_S", 0.0)
    assert http_app.post("a").status == 503
    # When
    replies: list[Reply] = []
    finding_out = threading.Thread(target=lambda: replies.append(http_app.post("a")))
    finding_out.start()
    assert asking.wait(30)
    meanwhile = [http_app.post(str(number)).code for number in range(3)]
    back.set()
    finding_out.join(30)
    # Then
    assert meanwhile == ["store-away"] * 3
    assert (replies[0].status, asked[0]) == (201, 2)
    assert http_app.post("b").status == 201


def test_what_becomes_of_a_request_is_told_as_of_a_task(
    make_http_app: MakeHttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators learn of an unknown outcome, of a key that was lost, of a store that is away."""
    # Given
    told: list[observers.Observation] = []
    monkeypatch.setattr(observers, "observers", [told.append])

    def handler(body: bytes, run: RunContext | None) -> Reply:
        if body == b"cut off":
            raise KeyboardInterrupt
        if body == b"forgotten":
            ((name, _),) = records(http_app).items()
            store.forget(name, 60_000)
        return Reply(201)

    http_app = make_http_app(handler, make_celery(idempotency_on_interrupted="unknown"))
    store = environment_of(http_app.celery).store

    def becomes_of(key: str) -> list[str]:
        """Send a request, and say what is told of its key."""
        with suppress(KeyboardInterrupt):
            http_app.post(key, key.encode())
        mine = (it.what for it in told if it.key == f"POST /orders {key}")
        return [what for what in mine if what not in ("claim", "claimed", "complete")]

    # Then
    assert becomes_of("forgotten") == ["lost"]
    eventually(lambda: "unknown" in becomes_of("cut off"))
    assert told[-1].details["interruptions"] == 1
    # When
    monkeypatch.setattr("celery_idempotent.http.edge._PATIENCE_S", 0.0)

    def away(*_: Any) -> None:
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(store, "claim", away)
    # Then
    assert becomes_of("away") == ["store away"]
    assert told[-1].details["action"] == "raise"


def test_an_answer_that_cannot_be_recorded_is_given_all_the_same(
    make_http_app: MakeHttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was done; the store is told once it is back."""
    # Given
    http_app = make_http_app(created)
    store = environment_of(http_app.celery).store
    settle, away = store.settle, [True]

    def settle_later(*args: Any) -> Any:
        if away.pop() if away else False:
            raise StoreUnavailable("the store does not answer")
        return settle(*args)

    monkeypatch.setattr(store, "settle", settle_later)
    # Then
    assert http_app.post("a").status == 201
    eventually(lambda: http_app.post("a").header("Idempotency-Replayed"), "it was recorded later")
    assert len(http_app.calls) == 1


def test_a_result_that_a_person_gave_is_the_answer(make_http_app: MakeHttpApp) -> None:
    """``resolve --succeeded`` settles a request as it settles a task."""

    # Given
    def handler(body: bytes, run: RunContext | None) -> Reply:
        raise KeyboardInterrupt

    http_app = make_http_app(handler, make_celery(idempotency_on_interrupted="unknown"))
    with pytest.raises(KeyboardInterrupt):
        http_app.post("a")
    eventually(lambda: http_app.post("a").code == "outcome-unknown")
    environment = environment_of(http_app.celery)
    (view,) = look_up(http_app.celery, environment, next(iter(records(http_app))))
    # When
    resolve(http_app.celery, environment, view, State.SUCCEEDED, {"order": 1}, "test")
    # Then
    reply = http_app.post("a")
    assert (reply.status, reply.json, len(http_app.calls)) == (200, {"order": 1}, 1)
    assert reply.header("Content-Type") == "application/json"
    assert reply.header("Idempotency-Replayed") == "true"


def test_a_record_that_is_no_response_is_not_given(make_http_app: MakeHttpApp) -> None:
    """It is damaged, or another program's: that is told, and nothing is run."""
    # Given
    http_app = make_http_app(created)
    http_app.post("a")
    store = environment_of(http_app.celery).store
    ((name, record),) = records(http_app).items()
    store._records[name] = (  # type: ignore[attr-defined]
        Record(State.SUCCEEDED, record.token, fingerprint=record.fingerprint, outcome=b"?").pack(),
        store._records[name][1],  # type: ignore[attr-defined]
    )
    # Then
    reply = http_app.post("a")
    assert (reply.status, reply.json["code"], len(http_app.calls)) == (500, "unreadable", 1)
