"""A client that loses each answer on purpose and repeats the call, with and without keys."""

import http.client
import json
import select
import socket
import time
import uuid

AUTHORIZATION = "Bearer token-of-ann"


def request(port, method, path, body=None, key=None):
    """Send a request; return its status, its document, and whether it was a replay."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, _body(body), _headers(body, key))
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else None, answer.headers


def request_and_lose(port, method, path, body=None, key=None):
    """Send a request, and close the connection once the server has acted: the answer is lost."""
    data = _body(body)
    headers = {"Host": "shop", "Content-Length": len(data), **_headers(body, key)}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        select.select([connection], [], [], 30)  # the answer is here; nobody reads it


def _body(body):
    return b"" if body is None else json.dumps(body).encode()


def _headers(body, key):
    headers = {"Authorization": AUTHORIZATION}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if key is not None:
        headers["Idempotency-Key"] = f'"{key}"'
    return headers


def tell(call, first, second, happened, verdict):
    print(f"\n{call}")
    print(f"    1st try     {first}")
    print(f"    2nd try     {second}")
    print(f"    happened    {happened}")
    print(f"    so          {verdict}")


def play(port, counts):
    """Make the five calls, each of which loses its first answer.

    ``counts()`` returns how many orders and how many charges there are.
    """
    print("Each call loses its first answer: the connection is cut after the server has acted.")

    def twice(method, path, body=None, key=None):
        before = counts()
        request_and_lose(port, method, path, body, key)
        status, document, headers = request(port, method, path, body, key)
        replayed = " (a replay)" if headers.get("Idempotency-Replayed") else ""
        return before, f"{status} {document if document else ''}{replayed}".rstrip()

    def added(before, expected):
        """Return how many orders and charges were made; a worker needs a moment for a charge."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            now = counts()
            if all(n - b >= e for n, b, e in zip(now, before, expected, strict=True)):
                break
            time.sleep(0.05)
        return tuple(n - b for n, b in zip(now, before, strict=True))

    request(port, "PUT", "/orders/1", {"item": "book"})
    lost = "lost, after the server acted"

    _, answer = twice("GET", "/orders/1")
    assert answer.startswith("200"), answer
    tell("GET /orders/1", lost, answer, "nothing: it reads", "no key: safe")

    before, answer = twice("PUT", "/orders/2", {"item": "lamp"})
    assert added(before, (1, 0)) == (1, 0)
    tell(
        "PUT /orders/2", lost, answer, "order 2 is a lamp, twice over", "no key: PUT is idempotent"
    )

    _, answer = twice("DELETE", "/orders/2")
    assert answer.startswith("404"), answer
    tell(
        "DELETE /orders/2",
        lost,
        answer,
        "order 2 is gone",
        "no key: DELETE is idempotent; to a client that tries again 404 means done",
    )

    before, answer = twice("POST", "/orders", {"item": "chair"})
    assert added(before, (2, 0)) == (2, 0)
    tell("POST /orders", lost, answer, "TWO orders", "needs a key: each POST makes one more")

    before, answer = twice("POST", "/orders", {"item": "chair"}, key=uuid.uuid4().hex)
    assert added(before, (1, 0)) == (1, 0)
    assert "replay" in answer, answer
    tell("POST /orders, with a key", lost, answer, "one order", "the first answer is given again")

    before, answer = twice("POST", "/payments/charge", {"order": 1, "amount": 100})
    assert added(before, (0, 2)) == (0, 2)
    tell("POST /payments/charge", lost, answer, "TWO charges", "needs a key: it is money")

    key = uuid.uuid4().hex
    before, answer = twice("POST", "/payments/charge", {"order": 1, "amount": 100}, key=key)
    assert "replay" in answer, answer
    assert added(before, (0, 1)) == (0, 1)
    tell(
        "POST /payments/charge, with a key",
        lost,
        answer,
        "one charge",
        "one request, one payment, one message, one charge",
    )

    status, problem, _ = request(port, "POST", "/payments/charge", {"order": 1, "amount": 5}, key)
    assert status == 422, status
    print(f"\nThe same key for another amount: {status} {problem['title']}")
    print("\nTwo of the five need a key: POST /orders and POST /payments/charge.")
