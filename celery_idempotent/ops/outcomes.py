"""Outcomes as short texts for people, without ever running what a payload could contain."""

from __future__ import annotations

import json
from typing import Any, Final

from kombu import serialization

from celery_idempotent.core.codec import Kind, Outcome
from celery_idempotent.errors import RecordCorrupt

#: So many characters of a result are shown.
MAX_SHOWN: Final = 2000

# kombu has no types for it.
_loads: Any = serialization.loads

_KINDS: Final = {Kind.RESULT: "result", Kind.FAILURE: "failure", Kind.NOT_KEPT: "not kept"}
_HTTP: Final = "message/http"
_MSGPACK: Final = "application/x-msgpack"
_PICKLE: Final = "application/x-python-serialize"


def kind_of(packed: bytes) -> str | None:
    """Say what an outcome is, by its first byte: result, failure, or not kept; ``None``: none."""
    if not packed:
        return None
    try:
        return _KINDS[Kind(packed[0])]
    except ValueError:
        return "unreadable"


def text_of(packed: bytes, most: int = MAX_SHOWN) -> str:
    """Give an outcome's text, of at most ``most`` characters; empty where there is nothing to show.

    A pickle is not opened: that could run anything, in the process that only wants to look.
    """
    if not packed:
        return ""
    try:
        outcome = Outcome.unpack(packed)
    except RecordCorrupt as exc:
        return f"({exc})"
    if outcome.kind is Kind.NOT_KEPT:
        return ""
    text = _failure(outcome) if outcome.kind is Kind.FAILURE else _plain(outcome)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _plain(outcome: Outcome) -> str:
    if outcome.content_type == _MSGPACK:
        try:
            return repr(_loads(outcome.payload, _MSGPACK, "binary", accept={_MSGPACK}))
        except Exception:
            return f"(msgpack that cannot be read, {len(outcome.payload)} bytes)"
    if outcome.content_encoding in ("binary", ""):
        kind = "a pickle" if outcome.content_type == _PICKLE else outcome.content_type
        return f"({kind}, {len(outcome.payload)} bytes, not opened)"
    text = outcome.payload.decode("utf-8", "replace")
    return _response(text) if outcome.content_type.startswith(_HTTP) else text


def _response(text: str) -> str:
    """An answer of the HTTP edge: its status and its body first, then its header fields."""
    head, _, body = text.partition("\r\n\r\n")
    first, *fields = head.split("\r\n")
    parts = (first.partition(" ")[2], body, f"({'; '.join(fields)})" if fields else "")
    return " ".join(filter(None, parts)) or text


def _failure(outcome: Outcome) -> str:
    """A failure as the result backend keeps it is a table with a type and a message."""
    text = _plain(outcome)
    try:
        failure = json.loads(text)
        message = failure["exc_message"]
        if isinstance(message, list):
            message = ", ".join(str(part) for part in message)
        return f"{failure['exc_type']}: {message}"
    except (ValueError, TypeError, KeyError):
        return text
