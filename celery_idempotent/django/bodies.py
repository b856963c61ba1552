"""Reads the body of Django's requests, and leaves it to be read again by the view."""

from __future__ import annotations

from hashlib import blake2b
from io import BytesIO
from typing import Any, Final

from celery_idempotent.errors import ConfigurationError
from celery_idempotent.http.edge import Edge
from celery_idempotent.http.messages import Response

__all__ = ["read_body"]

_CHUNK: Final = 64 * 1024


def read_body(request: Any, edge: Edge) -> bytes | Response:
    """Give a request's body; or the answer where it is too long, or less than was announced.

    Django's own limits stay the view's: it finds a stream that nobody has read.

    Raises:
        ConfigurationError: a middleware outside has read the stream, and kept nothing of it.
    """
    length = request.META.get("CONTENT_LENGTH") or None
    if edge.is_too_long(length):
        return edge.problems.too_large(edge.max_request_size)
    if hasattr(request, "_body"):  # read by a middleware outside, and kept
        return edge.check_body(length, len(request._body)) or bytes(request._body)
    if request._read_started:
        return _of_form(request, edge)
    environ = getattr(request, "environ", {})
    # Without a length Django gives its view nothing, whatever comes; that may still be half of it.
    is_chunked = length is None and environ.get("wsgi.input_terminated", False)
    read = environ["wsgi.input"].read if is_chunked else request.read
    body = bytearray()
    try:
        while len(body) <= edge.max_request_size and (chunk := read(_CHUNK)):
            body += chunk
    except OSError:
        return edge.problems.incomplete()  # as some servers tell of it
    if not is_chunked:
        request._stream = BytesIO(body)
        request._read_started = False
    return edge.check_body(length, len(body)) or bytes(body)


def _of_form(request: Any, edge: Edge) -> bytes | Response:
    """Give what a middleware outside has made of the body: the fields and files of its form."""
    if not hasattr(request, "_files"):
        raise ConfigurationError(
            "a middleware that stands before the one for Idempotency-Key has read the request's "
            "stream, so that nobody can compare its body: list it after that one"
        )
    stream = request._stream
    if getattr(stream, "_pos", 0) < getattr(stream, "limit", 0):
        return edge.problems.incomplete()
    digest = blake2b(digest_size=32)
    for name, values in request.POST.lists():
        _add(digest, name, *values)
    for name, files in request.FILES.lists():
        for file in files:
            _add(digest, name, file.name or "", file.content_type or "", str(file.size))
            for chunk in file.chunks():
                digest.update(chunk)
            file.seek(0)
    return digest.digest()


def _add(digest: Any, *texts: str) -> None:
    for text in texts:
        part = text.encode("utf-8", "surrogatepass")
        digest.update(len(part).to_bytes(8, "big") + part)
