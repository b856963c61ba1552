"""Requests and responses in the form in which the edge compares and keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from http import HTTPStatus
from typing import Any, Final

from celery_idempotent.core.codec import Kind, Outcome
from celery_idempotent.errors import RecordCorrupt

#: The namespace of requests' keys. No user's task has a name like this.
NAMESPACE: Final = "celery.http"
#: These fields belong to one connection or one moment. Set-Cookie belongs to one session, which may
#: be over when the response is replayed; Idempotency-Replayed comes from another service here.
_NOT_KEPT: Final = frozenset(
    (
        "connection",
        "content-length",
        "date",
        "idempotency-replayed",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
#: The fields that are kept of a response without its body.
_WITHOUT_BODY: Final = frozenset(("location", "content-location", "etag"))
_MOST_WITHOUT_BODY: Final = 8192
_TYPE: Final = "message/http"
_DROPPED: Final = "message/http; body=dropped"
#: What servers send (RFC 9110, 5.1 and 5.5). All refuse a line break in a value; in a record it
#: would begin another field, or the body.
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_BOUNDARY: Final = re.compile(r'\bboundary="?([^";,]{1,70})', re.IGNORECASE)


#: Responses that have no body.
NO_BODY: Final = (204, 304)


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of a request that make it equal to another one."""

    method: str
    path: str
    query: str
    body: bytes
    content_type: str = ""

    def fingerprint(self) -> bytes:
        """Return a digest of method, path, query and body, 16 bytes.

        The boundary of a multipart body is left out, because a client that sends its form again
        makes another one.
        """
        body = self.body
        boundary = _BOUNDARY.search(self.content_type)
        if boundary is not None and self.content_type.lower().startswith("multipart/"):
            body = body.replace(b"--" + boundary[1].encode("latin-1", "replace"), b"--")
        digest = blake2b(digest_size=16, person=b"idem-request")
        parts = [
            part.encode("utf-8", "surrogatepass") for part in (self.method, self.path, self.query)
        ]
        for part in (*parts, blake2b(body).digest()):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Response:
    """A status, header fields, and a whole body."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    #: Whether the body was too large to be kept; then only status and location are known.
    dropped: bool = False

    @property
    def is_sendable(self) -> bool:
        """Whether every server would send it: its status, its fields, and all of its body."""
        if not 200 <= self.status <= 599:
            return False
        if not all(_NAME.fullmatch(n) and _VALUE.fullmatch(v) for n, v in self.headers):
            return False
        length = header(self.headers, "content-length").strip()
        return self.dropped or self.status in NO_BODY or length in ("", str(len(self.body)))

    @property
    def reason(self) -> str:
        """The status as in a status line: ``201 Created``."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return f"{self.status} Unknown"


def header(headers: Iterable[tuple[str, str]], name: str) -> str:
    """Return the first value of a field, by its name in lower case; empty if there is none."""
    return next((value for field_name, value in headers if field_name.lower() == name), "")


def is_open_ended(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a response is a stream of events, whose end is not waited for."""
    return header(headers, "content-type").lower().startswith("text/event-stream")


def pack(response: Response, most: int) -> bytes:
    """Pack a response as the outcome of its record; without its body if it is over ``most``."""
    if not response.dropped:
        body = b"" if response.status in NO_BODY else response.body
        kept = _as_text(response, _NOT_KEPT | _named_by_connection(response)) + body
        if len(kept) <= most:
            return Outcome(Kind.RESULT, _TYPE, _coding(body), kept).pack()
    told = [(name, value) for name, value in response.headers if name.lower() in _WITHOUT_BODY]
    head = _as_text(Response(response.status, told), frozenset())
    if len(head) > _MOST_WITHOUT_BODY:
        head = _as_text(Response(response.status), frozenset())
    return Outcome(Kind.RESULT, _DROPPED, "8bit", head).pack()


def pack_result(result: Any, most: int) -> bytes:
    """Pack the response to a request of which a person says that it was carried out."""
    body = json.dumps(result).encode()
    return pack(Response(200, [("Content-Type", "application/json")], body), most)


def unpack(packed: bytes) -> Response:
    """Read what :func:`pack` wrote.

    Raises:
        RecordCorrupt: it is not a response.
    """
    outcome = Outcome.unpack(packed)
    if outcome.content_type not in (_TYPE, _DROPPED):
        raise RecordCorrupt(
            f"a stored response has the type {outcome.content_type!r}: forget the key"
        )
    head, found, body = outcome.payload.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    try:
        status = int(first.split(" ")[1])
        headers = [(name, value) for name, value in (line.split(": ", 1) for line in lines)]
    except (IndexError, ValueError) as exc:
        raise RecordCorrupt("a stored response cannot be read: forget the key") from exc
    if not found:
        raise RecordCorrupt("a stored response is cut short: forget the key")
    return Response(status, headers, body, outcome.content_type == _DROPPED)


def _named_by_connection(response: Response) -> frozenset[str]:
    named = header(response.headers, "connection").lower()
    return frozenset(name.strip() for name in named.split(","))


def _as_text(response: Response, without: frozenset[str]) -> bytes:
    lines = [f"HTTP/1.1 {response.reason}"]
    lines += [f"{name}: {value}" for name, value in response.headers if name.lower() not in without]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _coding(body: bytes) -> str:
    """Return the encoding to note: a text is shown to operators, and other content is not."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return "binary"
    return "8bit"
