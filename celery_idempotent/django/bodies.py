"""Reads the body of Django's requests, and leaves it to be read again by the view."""

from __future__ import annotations

from hashlib import blake2b
from io import BytesIO
from typing import Any

from celery_idempotent.errors import ConfigurationError
from celery_idempotent.http.edge import Edge
from celery_idempotent.http.messages import Response


def read_body(request: Any, edge: Edge) -> bytes | Response:
    """Return a request's body, or what answers one that is too long, or shorter than announced.

    Django's own limits stay in force in the view, which finds a stream that nobody has read.

    Raises:
        ConfigurationError: a middleware outside has read the stream and kept nothing of it.
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
    body = edge.read_body(read, edge.max_request_size + 1, length)
    if not is_chunked and isinstance(body, bytes):
        request._stream = BytesIO(body)
        request._read_started = False
    return body


def _of_form(request: Any, edge: Edge) -> bytes | Response:
    """Return a digest of the form that a middleware outside has made of the body."""
    if not hasattr(request, "_files"):
        raise ConfigurationError(
            "another middleware has read the request's stream, so that the body can't be compared: "
            "list it after the middleware for Idempotency-Key"
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
