"""Real clients, a real web server and real workers: every order is made once, and charged once."""

from __future__ import annotations

import http.client
import json
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from celery_idempotent.testing.servers import RedisServer, _free_port
from tests.support.brokers import RabbitBroker
from tests.support.waiting import eventually
from tests.support.webshop import Books, Process, start_site, start_worker

ORDERS = 1000
CLIENTS = 8
#: What a client that may try again takes for a reason to do so.
PASSING = (409, 500, 502, 503)


class Shop:
    """The shop's processes, and what its clients saw."""

    def __init__(self, broker: RabbitBroker, server: RedisServer, directory: Path) -> None:
        # Not Redis: what kombu has just taken from it is lost with the process.
        self.settings: dict[str, Any] = {
            **broker.settings(None),
            "broker_transport_options": {"confirm_publish": True},
            "result_backend": server.url(1),
            "idempotency_store_url": server.url(2),
            "idempotency_lease": 2,
            "broker_connection_retry_on_startup": True,
            "test_books": str(directory / "books"),
        }
        self.directory = directory
        self.port = _free_port()
        self.books = Books(self.settings["test_books"])
        self.site = start_site(self.settings, directory, self.port)
        self.worker = start_worker(self.settings, directory)
        self.seen: list[str] = []

    def restart_site(self) -> None:
        self.site.kill()
        self.site = start_site(self.settings, self.directory, self.port)

    def restart_worker(self) -> None:
        self.worker.kill()
        self.worker = start_worker(self.settings, self.directory)

    def processes(self) -> list[Process]:
        return [self.site, self.worker]

    def order(self, number: int) -> str:
        """Order as a client does that tries again until it has an answer; gives the order's key."""
        key = uuid.uuid4().hex
        if number % 4 == 0:
            self.send_and_hang_up(number, key)
        answers: list[str] = []

        def ask() -> bool:
            answers.extend(self.ask(number, key))
            return bool(answers)

        eventually(ask, f"order {number} is answered", timeout=60)
        if number % 5 == 0:
            # The first answer was lost on the way, as far as this client knows.
            eventually(lambda: len(answers) > 1 or not ask(), "a second answer", timeout=60)
            assert len(set(answers)) == 1
        return answers[0]

    def ask(self, number: int, key: str, path: str = "/orders") -> list[str]:
        """Send it once; nothing, where it is to be sent again."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", path, *_message(number, key))
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            self.seen.append("cut off")
            return []
        finally:
            connection.close()
        if answer.status in PASSING:
            self.seen.append(str(answer.status))
            return []
        assert answer.status == 201, body
        if answer.headers["Idempotency-Replayed"]:
            self.seen.append("replayed")
        return [json.loads(body)["order"]]

    def send_and_hang_up(self, number: int, key: str) -> None:
        """Send it, and be gone before the answer."""
        body, headers = _message(number, key)
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join(["POST /orders HTTP/1.1", "Host: shop", *lines, "", ""])
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
                connection.sendall(head.encode() + body)
        except OSError:
            return
        self.seen.append("hung up")


def _message(number: int, key: str) -> tuple[bytes, dict[str, str]]:
    body = json.dumps({"number": number}).encode()
    headers = {
        "User": f"user-{number % 7}",
        "Idempotency-Key": f'"{key}"',
        "Content-Length": str(len(body)),
    }
    return body, headers


@pytest.fixture
def shop(rabbit_broker: RabbitBroker, redis_server: RedisServer, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(rabbit_broker, redis_server, tmp_path)
    yield made
    for process in made.processes():
        process.kill()
    rabbit_broker.close()


@pytest.mark.long(10)
def test_a_thousand_orders_are_made_and_charged_once_each(shop: Shop) -> None:
    """Through retries, cut connections, two killed workers and a killed web server."""
    # Given
    books = shop.books
    # When
    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = [clients.submit(shop.order, number) for number in range(ORDERS)]
        # The site is quicker than the worker: it is killed while clients still order, and the
        # worker while it still charges.
        for part, book, restart in (
            (ORDERS // 5, "orders", shop.restart_site),
            (2 * ORDERS // 5, "charges", shop.restart_worker),
            (3 * ORDERS // 5, "charges", shop.restart_worker),
        ):
            reached = lambda part=part, book=book: len(books.read(book)) >= part  # noqa: E731
            eventually(reached, f"{part} {book}", timeout=60)
            restart()
        answers = [one.result() for one in asked]
    # Then
    assert books.read("orders") == list(enumerate(answers))
    eventually(lambda: len(books.read("charges")) >= ORDERS, "all charges", timeout=60)
    assert [number for number, _ in books.read("charges")] == list(range(ORDERS))
    # And the faults took place
    assert shop.seen.count("hung up") > ORDERS // 8
    assert shop.seen.count("replayed") > ORDERS // 8
    assert "cut off" in shop.seen
    # And the site was asked to do it again only where it was killed
    assert ORDERS <= len(books.read("requests")) <= ORDERS + CLIENTS


def test_a_request_that_is_carried_out_twice_sends_its_mails_once(shop: Shop) -> None:
    """A task whose key is its message's id has the same id each time; two equal calls are two."""
    # Given a request that is killed when it has published two equal calls
    key = uuid.uuid4().hex
    assert shop.ask(7, key, "/mails") == []
    shop.restart_site()
    # When
    eventually(lambda: shop.ask(7, key, "/mails"), "it is answered", timeout=60)
    shop.ask(7, uuid.uuid4().hex, "/mails")  # another request
    # Then
    books = shop.books
    assert len(books.read("requests")) == 3
    eventually(lambda: shop.worker.log.count("webshop.mail[") >= 12, "6 messages are worked off")
    assert len(books.read("mails")) == 4
