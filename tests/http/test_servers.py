"""Each adapter on a real server, with clients that die, hang up, and wait for the next event."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_idempotent import State
from celery_idempotent.run.context import RunContext
from celery_idempotent.settings import environment_of
from tests.support import served_alone
from tests.support.http_app import HTTP_APPS, DjangoAsyncApp, HttpApp, Reply, make_celery
from tests.support.served import Client, read, serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

MakeHttpApp = Callable[..., HttpApp]

EVENTS = ("Content-Type", "text/event-stream")
BODY = b'{"amount": 100}'


#: Each adapter on the usual server, and on others.
SERVED = [
    *((kind, "") for kind in HTTP_APPS),
    *((kind, "hypercorn") for kind in ("asgi", "django-asgi-async")),
    *((kind, "waitress") for kind in ("wsgi", "django-wsgi")),
]


@pytest.fixture(params=SERVED, ids=["-".join(filter(None, one)) for one in SERVED])
def make_http_app(request: pytest.FixtureRequest) -> MakeHttpApp:
    """Make an application of each kind, for each server."""
    kind, server = request.param

    def make(*args: Any) -> HttpApp:
        http_app = HTTP_APPS[kind](*args)
        http_app.server = server
        return http_app

    return make


class Work:
    """Work that a test holds up, and lets go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.may_end.wait(30)


def states(http_app: HttpApp) -> list[State]:
    store = environment_of(http_app.celery).store
    found = [store.get(name) for name in store.scan("*")]
    return [record.state for record in found if record is not None]


def test_a_client_that_dies_in_the_middle_of_its_body_has_sent_nothing(
    make_http_app: MakeHttpApp,
) -> None:
    """The application isn't called, no key is taken, and the whole request is carried out."""
    # Given
    http_app = make_http_app(lambda body, run: Reply(201))
    with serving(http_app) as client:
        # When
        for length in (0, 1, 7, len(BODY) - 1):
            client.begin("a", BODY[:length], length=len(BODY)).close()
        # Then
        assert client.post("a", BODY).status == 201
        assert http_app.calls == [BODY]
        assert client.post("a", BODY).header("Idempotency-Replayed") == "true"


def test_a_hang_up_stops_nothing(make_http_app: MakeHttpApp) -> None:
    """The work runs to its end, once, and the retry gets its answer."""
    # Given
    work = Work()

    def handler(body: bytes, run: RunContext | None) -> Reply:
        work()
        return Reply(201, [], [b"made"])

    http_app = make_http_app(handler)
    with serving(http_app) as client:
        connection = client.begin("a")
        assert work.begun.wait(30)
        # When
        if http_app.notices_hang_ups:
            client.hang_up(connection)
        else:
            connection.close()
        assert states(http_app) == [State.RUNNING]
        work.may_end.set()
        # Then
        eventually(lambda: states(http_app) == [State.SUCCEEDED], "the answer is recorded")
        second = client.post("a")
        assert (second.status, second.body) == (201, b"made")
        assert second.header("Idempotency-Replayed") == "true"
        assert len(http_app.calls) == 1


class SyncOnly:
    """A middleware of Django's that can't be async."""

    def __init__(self, get_response: Any) -> None:
        self._get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self._get_response(request)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_sync_middleware_of_djangos_stands_outside_for_an_async_view(where: str) -> None:
    """There a hang-up stops nothing; inside, Django cancels the view, which is an interruption."""
    # Given
    work = Work()
    seen: list[bool] = []

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        seen.append(run.interrupted)
        if not run.interrupted:
            work()
        return Reply(201, [], [b"made"])

    http_app = DjangoAsyncApp(handler)
    http_app.middleware.insert(0 if where == "outside" else 1, http_app.listed(SyncOnly))
    with serving(http_app) as client:
        connection = client.begin("a")
        assert work.begun.wait(30)
        # When
        client.hang_up(connection)
        work.may_end.set()
        # Then
        eventually(lambda: client.post("a").body == b"made", "the retry is answered")
        assert seen == ([False] if where == "outside" else [False, True])


def test_each_event_is_sent_when_it_is_made(make_http_app: MakeHttpApp) -> None:
    """The second is made once the first was read; until the end nothing is recorded."""
    # Given
    was_read, was_asked = threading.Event(), threading.Event()

    def events() -> Iterator[bytes]:
        yield b"one"
        assert was_read.wait(30)
        yield b"two"
        assert was_asked.wait(30)

    http_app = make_http_app(lambda body, run: Reply(200, [EVENTS], events()))
    with serving(http_app) as client, client.begin("a") as connection:
        # When
        received = b""
        while b"one" not in received:
            received += connection.recv(1000)
        was_read.set()
        while b"two" not in received:
            received += connection.recv(1000)
        # Then
        assert client.post("a").code == "in-progress"
        was_asked.set()
        while connection.recv(1000):
            pass
        assert client.post("a").code == "answer-not-kept"
        assert len(http_app.calls) == 1


def test_a_stream_whose_client_hung_up_is_made_to_its_end(make_http_app: MakeHttpApp) -> None:
    """It is recorded then, and not before."""
    # Given
    work = Work()

    def events() -> Iterator[bytes]:
        yield b"one"
        work()
        for _ in range(5):
            yield b"x" * 1000
        work.ended.set()

    http_app = make_http_app(lambda body, run: Reply(200, [EVENTS], events()))
    with serving(http_app) as client:
        connection = client.begin("a")
        received = b""
        while b"one" not in received:
            received += connection.recv(1000)
        assert work.begun.wait(30)
        # When
        client.hang_up(connection)
        assert states(http_app) == [State.RUNNING]
        work.may_end.set()
        # Then
        eventually(lambda: states(http_app) == [State.SUCCEEDED], "its end is recorded")
        assert work.ended.is_set()
        assert client.post("a").code == "answer-not-kept"
        assert len(http_app.calls) == 1


def test_a_stream_without_end_is_closed_some_time_after_its_client(
    make_http_app: MakeHttpApp,
) -> None:
    """Its work was interrupted, never carried out."""
    # Given
    seen: list[bool] = []
    go_on = threading.Event()

    def without_end() -> Iterator[bytes]:
        yield b"one"
        assert go_on.wait(30)
        while True:
            yield b"x" * 1000
            time.sleep(0.001)  # a server in another thread has to notice that its client is gone

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        seen.append(run.interrupted)
        return Reply(200, [EVENTS], iter([b"done"]) if run.interrupted else without_end())

    http_app = make_http_app(handler, make_celery(idempotency_max_result_size=100_000))
    with serving(http_app) as client:
        connection = client.begin("a")
        received = b""
        while b"one" not in received:
            received += connection.recv(1000)
        # When
        client.hang_up(connection)
        go_on.set()
        # Then
        eventually(lambda: client.post("a").status == 200, "the next one runs")
        assert seen == [False, True]


def test_a_stream_that_breaks_was_interrupted(make_http_app: MakeHttpApp) -> None:
    """The client sees that it isn't whole; its retry runs, and knows of the first."""
    # Given
    seen: list[bool] = []

    def failing() -> Iterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        seen.append(run.interrupted)
        return Reply(201) if run.interrupted else Reply(200, [EVENTS], failing())

    http_app = make_http_app(handler)
    with serving(http_app) as client:
        # When
        first, second = client.post("a"), client.post("a")
        # Then
        assert b"one" in first.body
        assert (second.status, seen) == (201, [False, True])


def test_a_field_with_a_line_break_is_never_stored(make_http_app: MakeHttpApp) -> None:
    """The server does with it what it does without us, each time."""
    # Given
    evil = ("X-Name", "ann\r\nContent-Type: text/html\r\nSet-Cookie: stolen=1")
    http_app = make_http_app(lambda body, run: Reply(200, [evil], [b"ok"]))
    with serving(http_app) as client:
        # When
        replies = [client.post("a") for _ in range(2)]
        # Then
        assert len(http_app.calls) == 2
        assert states(http_app) == [State.RELEASED]
        assert not any(reply.header("Idempotency-Replayed") for reply in replies)


def test_an_answer_is_read_with_its_own_connection(make_http_app: MakeHttpApp) -> None:
    """Two clients at once: the first is carried out, the second is told to come again."""
    # Given
    work = Work()

    def handler(body: bytes, run: RunContext | None) -> Reply:
        work()
        return Reply(201, [], [b"made"])

    http_app = make_http_app(handler)
    with serving(http_app) as client, client.begin("a") as connection:
        assert work.begun.wait(30)
        # When
        during = client.post("a")
        work.may_end.set()
        # Then
        assert (during.status, during.code) == (409, "in-progress")
        assert read(connection).body == b"made"


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", HTTP_APPS)
def test_a_request_whose_process_is_killed_was_interrupted(
    kind: str, streams: bool, tmp_path: Path
) -> None:
    """Once its lease is over the next one runs, and repeats no step that was done."""
    # Given
    process, port = served_alone.start(kind, tmp_path, streams)
    try:
        with Client(port).begin("a"):
            eventually((tmp_path / "begun").exists, "the work has begun", timeout=30)
    finally:
        # When
        process.kill()
        process.wait()
    process, port = served_alone.start(kind, tmp_path, streams)
    try:
        first = Client(port).post("a")
        statuses = {first.status}

        def is_done() -> bool:
            reply = Client(port).post("a")
            statuses.add(reply.status)
            return reply.body == b"done"

        # Then
        eventually(is_done, "the next one runs", timeout=30)
        assert statuses <= {409, 201}
        assert first.code in (None, "in-progress")
        assert (tmp_path / "charges").read_text() == "charged\n"
    finally:
        process.kill()
        process.wait()
