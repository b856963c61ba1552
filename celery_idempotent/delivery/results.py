"""Outcomes in the result backend's own encoding, so that a replay equals ``AsyncResult.get()``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from celery.canvas import Signature
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.serialization import UnpickleableExceptionWrapper
from kombu import serialization
from kombu.exceptions import ContentDisallowed, DecodeError, SerializationError
from kombu.utils import encoding
from kombu.utils import json as kombu_json

from celery_idempotent.core.codec import NOT_KEPT, Kind, Outcome
from celery_idempotent.core.unfinished import kind_of
from celery_idempotent.errors import RecordCorrupt, ResultNotKept

# kombu has no types for these.
_registry: Any = serialization.registry
_safe_repr: Any = encoding.safe_repr

#: How much is told, in characters, of a failure that can't be kept.
_SHORT: Final = 500

_JSON: Final = "application/json"
# What kombu's own JSON uses. kombu makes both for each call, which takes longer than their work.
_to_json: Final = kombu_json.JSONEncoder().encode
_decoder: Final = json.JSONDecoder(object_hook=kombu_json.object_hook)


def encode_result(backend: Any, result: Any, most: int) -> bytes:
    """Pack a result as ``backend`` would store it; "not kept" where it is over ``most`` bytes.

    A result that the serializer doesn't take is "not kept" too: the backend raises for it by
    itself, and the effect happened.
    """
    try:
        return _pack(backend, Kind.RESULT, backend.prepare_value(result), most)
    except SoftTimeLimitExceeded:
        raise  # it says nothing about the result
    except Exception:
        return NOT_KEPT


def encode_failure(backend: Any, exc: BaseException, most: int) -> bytes:
    """Pack a failure as ``backend`` would store it.

    Where that can't be done, or it is over ``most`` bytes, its type is packed with the beginning of
    its text; with pickle, Celery's own stand-in for exceptions that don't travel, which says what
    it was: a failed call is never "done, not kept".
    """
    for most_of_it, short in ((most, False), (_SHORT * 100, True)):
        with suppress(Exception):
            packed = _pack_failure(backend, exc, most_of_it, short=short)
            if packed != NOT_KEPT:
                return packed
    kind, text = type(exc), _safe_repr(exc)[:_SHORT]
    stand_in = UnpickleableExceptionWrapper(kind.__module__, kind.__qualname__, (text,), text)
    return _pack_failure(backend, stand_in, _SHORT * 100)


def _pack_failure(backend: Any, exc: BaseException, most: int, *, short: bool = False) -> bytes:
    prepared = backend.prepare_exception(exc, serializer=backend.serializer)
    if short:
        if not isinstance(prepared, dict):
            return NOT_KEPT  # pickle has the exception itself
        prepared["exc_message"] = (str(exc)[:_SHORT],)
    return _pack(backend, Kind.FAILURE, prepared, most)


def _pack(backend: Any, kind: Kind, value: Any, most: int) -> bytes:
    raw = _encode(backend, value)
    if len(raw) > most:
        return NOT_KEPT
    return Outcome(kind, backend.content_type, backend.content_encoding, raw).pack()


def replay(backend: Any, packed: bytes, key: str) -> Any:
    """Give the result that was stored, or raise the failure that was.

    Raises:
        ResultNotKept: the call succeeded, and that is all that is known.
        RecordCorrupt: what is stored can't be read, or is of a content type that the app doesn't
            accept (``result_accept_content``).
    """
    outcome = Outcome.unpack(packed)
    if outcome.kind is Kind.NOT_KEPT:
        raise ResultNotKept(
            f"{key} was done before and is not run again, but its result was not kept: it was over "
            "idempotency_max_result_size, or the result serializer didn't take it"
        )
    try:
        value = _decode(outcome, backend.accept)
    except ContentDisallowed as exc:
        raise RecordCorrupt(
            f"the outcome of {key} is stored as {outcome.content_type}, which this app does not "
            "accept: add it to result_accept_content, or forget the key"
        ) from exc
    except (DecodeError, SerializationError, LookupError, ValueError) as exc:
        raise RecordCorrupt(f"the outcome of {key} can't be decoded: forget the key") from exc
    if outcome.kind is Kind.RESULT:
        return value
    failure = backend.exception_to_python(value)
    if not isinstance(failure, BaseException):
        raise RecordCorrupt(f"the failure of {key} can't be rebuilt: forget the key")
    raise failure


def _encode(backend: Any, value: Any) -> bytes:
    encoder = _to_json if backend.encoder is kombu_json.dumps else backend.encoder
    payload = encoder(value)
    return payload.encode("utf-8") if isinstance(payload, str) else bytes(payload)


def _from_json(text: str) -> Any:
    # decode() looks for white space at both ends first, and as a rule there is none.
    try:
        value, end = _decoder.raw_decode(text)
    except ValueError:
        end = -1
    return value if end == len(text) else _decoder.decode(text)


def _decode(outcome: Outcome, accept: Any) -> Any:
    _, content_type, encoding, payload = outcome
    text: Any = payload if encoding in ("binary", "") else payload.decode(encoding, "replace")
    is_json = content_type == _JSON and accept is not None and _JSON in accept
    # A project may have registered a decoder of its own; where kombu can't tell, it decodes.
    decoders = getattr(_registry, "_decoders", {})
    if is_json and text and decoders.get(_JSON) is kombu_json.loads:
        try:
            return _from_json(text)
        except Exception as exc:
            raise DecodeError(str(exc)) from exc
    return _registry.loads(text, content_type, encoding, accept=accept)


class Codec:
    """Steps: results as the result backend encodes them, signatures as JSON.

    Args:
        owner: a task or an app: has the ``backend``, and knows the tasks that undo steps.
        most: the largest result that is kept, in bytes.
    """

    def __init__(self, owner: Any, most: int) -> None:
        self._owner = owner
        self._most = most

    def pack(self, result: Any) -> bytes:
        return encode_result(self._owner.backend, result, self._most)

    def unpack(self, packed: bytes) -> Any:
        return replay(self._owner.backend, packed, "a step")

    def pack_signature(self, undo: Any) -> bytes:
        if not isinstance(undo, Signature):
            raise TypeError(
                f"compensate= takes the signature of a task, such as refund.s(), not {undo!r}"
            )
        tasks = getattr(self._owner, "app", self._owner).tasks
        if undo.task not in tasks:
            raise TypeError(f"compensate= names {undo.task!r}, which this app does not have")
        if kind_of(tasks[undo.task].run):
            raise TypeError(f"compensate= names {undo.task!r}, whose body is async: nobody runs it")
        named = [(f"argument {at}", it) for at, it in enumerate(undo.args or (), 1)]
        named += [(f"argument {name!r}", it) for name, it in (undo.kwargs or {}).items()]
        for name, value in (*named, ("what is set on it", dict(undo.options or {}))):
            why = _not_kept_as_json(value)
            if why:
                raise TypeError(f"compensate= can't be kept: {name} of {undo.task!r}: {why}")
        return _to_json(undo).encode()

    def unpack_signature(self, packed: bytes) -> Any:
        return _from_json(packed.decode())


def _not_kept_as_json(value: Any) -> str:
    """Return why JSON, as Celery writes it, doesn't give a value back; empty: it does."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                return f"a key of a dict is {name!r:.80}, and JSON's are text"
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        try:
            _to_json(value)
        except Exception as exc:
            return str(exc)
        return ""
    return next(filter(None, map(_not_kept_as_json, value)), "")
