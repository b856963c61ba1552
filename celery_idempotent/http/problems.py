"""The edge's own responses, as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import json
from typing import Any

from celery_idempotent.http.messages import Response, header


class Problems:
    """Makes the edge's own responses. Programs read ``code``; ``type`` is always the same.

    Args:
        docs_url: the page of your API's documentation about the key, which the draft asks for.
    """

    def __init__(self, docs_url: str | None = None) -> None:
        self._type = docs_url or "about:blank"

    def missing(self) -> Response:
        """The request has no key, and needs one."""
        detail = "This request needs the header field Idempotency-Key, with a key of its own."
        return self._make(400, "missing-key", "Idempotency-Key is missing", detail)

    def malformed(self, why: str) -> Response:
        """The field has no valid key."""
        detail = f"The header field Idempotency-Key can't be read: {why}."
        return self._make(400, "malformed-key", "Idempotency-Key is malformed", detail)

    def mismatch(self) -> Response:
        """The key was used for another request."""
        detail = (
            "The key was sent before with another method, path, query or body. Nothing was done; "
            "take a new key for a new request."
        )
        return self._make(422, "other-payload", "Idempotency-Key is already used", detail)

    def running(self, retry_after: int = 1) -> Response:
        """The first request with the key has no response yet."""
        detail = "The first request with this key is being worked on: send it again later."
        return self._make(
            409,
            "in-progress",
            "A request is outstanding for this Idempotency-Key",
            detail,
            retry_after,
        )

    def unknown(self) -> Response:
        """The request was cut off more often than the settings allow."""
        detail = (
            "An earlier request with this key was cut off, and nobody knows whether it was carried "
            "out. It is not tried again before somebody has looked."
        )
        return self._make(409, "outcome-unknown", "The outcome is unknown", detail)

    def not_kept(self, first: Response) -> Response:
        """The request was carried out, and its response was not kept."""
        detail = (
            f"The request was carried out, and answered with {first.reason}. That answer was too "
            "large to be kept; nothing was done again."
        )
        answer = self._make(
            409, "answer-not-kept", "The answer was not kept", detail, first_status=first.status
        )
        location = header(first.headers, "location")
        if location:
            answer.headers.append(("Content-Location", location))
        return answer

    def too_large(self, most: int) -> Response:
        """The body is too long to be read into memory."""
        detail = f"A request with an Idempotency-Key may have a body of {most} bytes."
        return self._make(413, "body-too-large", "The body is too large", detail)

    def incomplete(self) -> Response:
        """The client went away before it had sent its whole body."""
        detail = "The body is shorter than its Content-Length says. Nothing was done."
        return self._make(400, "incomplete-body", "The body is incomplete", detail)

    def not_committed(self) -> Response:
        """The request was carried out, and the database did not commit it."""
        detail = "What the request did could not be committed: send the request again later."
        return self._make(503, "not-committed", "The request was not carried out", detail, 2)

    def store_away(self) -> Response:
        """The store does not answer, so that it is not known whether the key was used."""
        detail = "The key can't be looked up now. Nothing was done: send the request again later."
        return self._make(503, "store-away", "Keys can't be looked up", detail, 2)

    def unreadable(self) -> Response:
        """The record of the key can't be read."""
        detail = "What is known of this key can't be read. Nothing was done."
        return self._make(500, "unreadable", "The key's record can't be read", detail)

    def _make(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        retry_after: int | None = None,
        **more: Any,
    ) -> Response:
        problem = {"type": self._type, "title": title, "status": status, "detail": detail}
        body = json.dumps({**problem, "code": code, **more}).encode()
        headers = [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        if retry_after is not None:
            headers.append(("Retry-After", str(retry_after)))
        return Response(status, headers, body)
