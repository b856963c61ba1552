"""The headers of a message: the key that its producer derived, and the state of its waiting.

There are two. ``idempotency-key`` is an explicit key, as text, from a producer in any language.
``celery-idempotency`` is written by this library alone: a table that names its message's task id,
so that it has no effect where headers are copied to the message of another call.

Instrumentation moves headers: if a message has a table ``headers`` among its headers, Celery shows
a task only that table. So both headers are looked for at the top and inside of that table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from celery_idempotent.core.keys import MAX_EXPLICIT, MAX_LABEL, CallKey, Owner
from celery_idempotent.core.slip import DIGEST, Slip
from celery_idempotent.core.verdicts import NEVER_MS
from celery_idempotent.errors import KeyDerivationError

#: The header with an explicit key.
EXPLICIT: Final = "idempotency-key"
#: Our own header.
OWN: Final = "celery-idempotency"

_MAX_ID: Final = 1024
#: What a record has room for, of retries and of nestings.
_MAX_COUNT: Final = 2**32 - 1
_MAX_TOKEN: Final = 2**64 - 1
#: A publication: 16 characters of ours, or the id of an outbox's row.
_MAX_PUBLICATION: Final = 64
#: The largest number that a slip has room for.
MAX_DEATHS: Final = 2**16 - 1
#: A digest as hexadecimal text.
_MAX_FINGERPRINT: Final = 64


@dataclass(slots=True)
class WaitState:
    """What a message carries from delivery to delivery: its identity, and how it has waited.

    It is never changed; frozen, it would take thrice as long to make.
    """

    #: How often it was put back.
    count: int = 0
    #: When it first found its key busy, in milliseconds on the store's clock; 0: never.
    since_ms: int = 0
    #: The task id and nesting of the run that it found last.
    awaited: tuple[str, int] | None = None
    #: Whether it is a copy of a message whose run was still alive.
    redelivery: bool = False
    #: The worker that it is meant for, where it could only be sent to all of them.
    to: str | None = None
    #: Whether it was made only to continue a compensation.
    compensates_only: bool = False
    #: Identifies the ``apply_async`` that published it; put-backs and retries keep it. Empty: not
    #: known.
    publication: str = ""
    #: How often it was dead-lettered before it was last put back.
    deaths: int = 0
    #: The digest of its callbacks, once it was worked out.
    callbacks: bytes = b""
    #: Set after the store was away during one of its deliveries: until then no lease is taken over,
    #: so that live runs can renew. In milliseconds on the store's clock; ``NEVER_MS``: the store
    #: has not answered since.
    patient_until_ms: int = 0
    #: Set where it repairs a call (``resume --from``): the token of the record as it was looked at,
    #: and the step from which the call is run again.
    resumes: tuple[int, str] | None = None
    #: Whether the run that it waits for last is of a call that came later, and answers it.
    displaced: bool = False

    def again(self, **changes: Any) -> WaitState:
        """Return the state after it was put back once more."""
        return replace(self, count=self.count + 1, **changes)

    def retried(self) -> WaitState:
        """Return the state for its next attempt, which has not waited."""
        return WaitState(publication=self.publication, callbacks=self.callbacks, deaths=self.deaths)


def own_header(
    task_id: str, call_key: CallKey | None, waits: WaitState | None = None
) -> dict[str, Any]:
    """Make our header. With ``call_key=None`` the call is not deduplicated."""
    header: dict[str, Any] = {"id": task_id, "key": None}
    if call_key is not None:
        header["ns"], header["key"], label, fingerprint, header["checked"] = call_key
        header["fp"] = fingerprint.hex()
        if label:
            header["label"] = label
    if waits is None:
        return header
    if waits.publication:
        header["pub"] = waits.publication
    if waits.deaths:
        header["deaths"] = waits.deaths
    if waits.callbacks:
        header["cb"] = waits.callbacks.hex()
    if waits.patient_until_ms:
        header["away"] = waits.patient_until_ms
    if waits.count:
        header.update(waits=waits.count, since=waits.since_ms, again=waits.redelivery)
        if waits.awaited is not None:
            header["awaited"] = list(waits.awaited)
        if waits.to is not None:
            header["to"] = waits.to
    if waits.displaced:
        header["displaced"] = True
    if waits.compensates_only:
        header["compensate"] = True
    if waits.resumes is not None:
        header["resume"] = list(waits.resumes)
    return header


#: Headers that Celery writes into each message without an attribute of its request.
_CELERYS: Final = frozenset(("argsrepr", "compression", "kwargsrepr", "lang", "meth", "task"))
#: Added by RabbitMQ's dead-letter queues; a message that is published with them looks like a cycle.
_DEATHS: Final = ("x-death", "x-first-death", "x-last-death")


def sent_with(request: Any) -> dict[str, Any]:
    """Collect the headers that are not Celery's, which others sent with a message.

    Where there are nested headers, Celery passes only those to a task and to what it publishes.
    """
    known = type(request)
    hidden = {
        name: value
        for name, value in vars(request).items()
        if not (hasattr(known, name) or name in _CELERYS or name.startswith("_"))
    }
    return without_deaths({**hidden, **(request.headers or {})})


def without_deaths(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy headers for a message that is published again, as Celery does from 5.6 on."""
    return {name: it for name, it in (headers or {}).items() if not name.startswith(_DEATHS)}


def own_of(headers: Mapping[str, Any] | None, task_id: str | None) -> Mapping[str, Any] | None:
    """Find our header of this task id, at the top or nested, and return it as it is.

    Raises:
        KeyDerivationError: the header is not a table.
    """
    header = headers.get(OWN) if headers else None
    if type(header) is dict and header.get("id") == task_id:
        return header  # nearly always
    for level in _levels(headers):
        header = level.get(OWN)
        if header is None:
            continue
        if not isinstance(header, Mapping):
            raise _malformed()
        if header.get("id") == task_id:
            return header
    return None


def _levels(headers: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], ...]:
    if not headers:
        return ()
    nested = headers.get("headers")
    if nested and isinstance(nested, (dict, Mapping)):
        return headers, nested
    return (headers,)


def read_own(
    headers: Mapping[str, Any] | None, task_id: str | None
) -> tuple[CallKey | None, WaitState] | None:
    """Read our header; ``None`` if there is none, or if it came from another message.

    Args:
        headers: a message's headers, or ``vars(request)``, which has all of them.

    Raises:
        KeyDerivationError: the header is malformed.
    """
    header = own_of(headers, task_id)
    if header is None:
        return None
    try:
        waits = _read_waits(header)
        key = header.get("key")
        if key is None:
            return None, waits
        namespace, label, fingerprint = header["ns"], header.get("label", ""), header["fp"]
        if not (
            _is_text(namespace, MAX_EXPLICIT)
            and _is_text(key, MAX_EXPLICIT)
            and (label == "" or _is_text(label, MAX_LABEL))
        ):
            raise ValueError("not a text, empty, or too long")
        if len(fingerprint) > _MAX_FINGERPRINT:
            raise ValueError("fp")
        checked = header["checked"] is True
        call_key = CallKey(namespace, key, label, bytes.fromhex(fingerprint), checked)
    except (LookupError, TypeError, ValueError) as exc:
        raise _malformed() from exc
    return call_key, waits


def _is_text(value: object, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most


#: What our header has that was made by ``apply_async``.
_OF_A_NEW_CALL: Final = frozenset(("id", "ns", "key", "label", "fp", "checked", "pub"))


def _read_waits(header: Mapping[str, Any]) -> WaitState:
    publication = header.get("pub", "")
    if not (isinstance(publication, str) and len(publication) <= _MAX_PUBLICATION):
        raise ValueError("pub")
    if not publication.isascii():
        raise ValueError("pub")
    if header.keys() <= _OF_A_NEW_CALL:
        return WaitState(publication=publication)  # nearly always

    def number(name: str, most: int) -> int:
        value = header.get(name, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(name)
        return value

    awaited, to = header.get("awaited"), header.get("to")
    if awaited is not None:
        awaited = awaited[0], int(awaited[1])
        if not isinstance(awaited[0], str) or len(awaited[0]) > _MAX_ID:
            raise ValueError("awaited")
        if not 0 <= awaited[1] <= _MAX_COUNT:
            raise ValueError("awaited")
        awaited[0].encode()  # half a surrogate pair is no text
    if to is not None and not isinstance(to, str):
        raise ValueError("to")
    resumes = header.get("resume")
    if resumes is not None:
        resumes = resumes[0], resumes[1]
        if type(resumes[0]) is not int or not _is_text(resumes[1], _MAX_ID):
            raise ValueError("resume")
        if not 0 <= resumes[0] <= _MAX_TOKEN:
            raise ValueError("resume")
        resumes[1].encode()
    digest = header.get("cb")
    callbacks = b"" if digest is None else bytes.fromhex(digest)
    if callbacks and len(callbacks) != DIGEST:
        raise ValueError("cb")
    return WaitState(
        number("waits", _MAX_COUNT),
        number("since", NEVER_MS),
        awaited,
        header.get("again") is True,
        to,
        header.get("compensate") is True,
        publication,
        number("deaths", MAX_DEATHS),
        callbacks,
        number("away", NEVER_MS),
        resumes,
        header.get("displaced") is True and awaited is not None,
    )


def deaths_of(headers: Mapping[str, Any] | None) -> int:
    """Count how often the broker has dead-lettered a message (RabbitMQ's ``x-death``).

    Args:
        headers: a message's headers, or ``vars(request)``, which has all of them.
    """
    for level in _levels(headers):
        entries = level.get("x-death")
        if isinstance(entries, (list, tuple)):
            counts = [entry.get("count") for entry in entries if isinstance(entry, Mapping)]
            return min(sum(it for it in counts if type(it) is int and it > 0), MAX_DEATHS)
    return 0


def _malformed() -> KeyDerivationError:
    return KeyDerivationError(
        f"the message's {OWN!r} header is malformed: only this library should write it; a producer "
        f"of another kind sends {EXPLICIT!r}"
    )


def explicit_key(headers: Mapping[str, Any] | None) -> str | None:
    """Find the explicit key in a message's headers; ``None`` if there is none.

    The case of names does not matter, and ``_`` is equal to ``-``.

    Args:
        headers: a message's headers, or ``vars(request)``, which has all of them.

    Raises:
        KeyDerivationError: the key is not text, or there are two of them.
    """
    for level in _levels(headers):
        found = {
            _as_text(name, value)
            for name, value in level.items()
            if value is not None and _is_explicit(name)
        }
        if len(found) > 1:
            raise KeyDerivationError(
                f"the message has more than one {EXPLICIT!r} header, with different keys: its "
                "producer has to send one"
            )
        if found:
            return found.pop()
    return None


def without_explicit(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy headers without an explicit key, however its name is written."""
    return {name: value for name, value in (headers or {}).items() if not _is_explicit(name)}


def _is_explicit(name: str) -> bool:
    return len(name) == len(EXPLICIT) and name.lower().replace("_", "-") == EXPLICIT


def ours_in(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return our two headers as they are, for a message that is published again.

    Args:
        headers: a message's headers, or ``vars(request)``, which has all of them.
    """
    return {
        name: value
        for level in reversed(_levels(headers))
        for name, value in level.items()
        if name == OWN or _is_explicit(name)
    }


def _as_text(name: str, value: object) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as exc:
            # Replacing the bytes that can't be read could make one key of two.
            raise KeyDerivationError(
                f"the message's {name!r} header is bytes that are not UTF-8: its producer has to "
                "send the key as text"
            ) from exc
    if not isinstance(value, str):
        raise KeyDerivationError(
            f"the message's {name!r} header is {type(value).__name__}, and must be text"
        )
    return value


class Arrival(NamedTuple):
    """What a delivered message says of its call."""

    #: The key that its producer derived (``None``: not deduplicated), and how the message has
    #: waited; ``None``: the message has no header of ours.
    own: tuple[CallKey | None, WaitState] | None
    #: Who would own the claim.
    owner: Owner
    #: What distinguishes the message from others of its owner, and the digest of its callbacks.
    message: Slip
    #: Whether a worker sends what hangs on its outcome: link, chain, chord part or errbacks.
    has_callbacks: bool


def read_request(request: Any) -> Arrival:
    """Read what Celery's request of a delivery holds of its message.

    Raises:
        KeyDerivationError: its headers say something else than Celery, or this library, writes.
    """
    # Not request.headers: where a tracer has nested headers, it has only those.
    headers = vars(request)
    own, owner = read_own(headers, request.id), owner_of(request)
    waits = WaitState() if own is None else own[1]
    hanging = request.callbacks or request.chain or request.chord or request.errbacks
    has_callbacks = bool(hanging) and not request.is_eager
    retries, deaths = _count_in(request, "retries"), waits.deaths + deaths_of(headers)
    digests = (waits.callbacks or digest_of(request)) if has_callbacks else b""
    # By position: names would double what it takes to make.
    message = Slip(
        False,
        False,
        False,
        min(deaths, MAX_DEATHS),
        retries,
        0,
        0,
        waits.publication.encode(),
        b"",
        digests,
    )
    return Arrival(own, owner, message, has_callbacks)


def owner_of(request: Any) -> Owner:
    """Return who would own the claim of a request's message.

    Raises:
        KeyDerivationError: its headers say something else than Celery writes.
    """
    return Owner(str(request.id), _count_in(request, "replaced_task_nesting"))


def goes_on(retries: object, nesting: object) -> bool:
    """Whether a message goes on with a call that was delivered: it is no duplicate of that.

    Args:
        nesting: how often its task was replaced (``self.replace``).
    """
    return bool(retries or nesting)


def _count_in(request: Any, name: str) -> int:
    """Return a number of times that Celery has written into a message; 0 where there is none.

    Raises:
        KeyDerivationError: it is no such number.
    """
    value = getattr(request, name)
    if not value:
        return 0
    if type(value) is int and 0 < value <= _MAX_COUNT:
        return value
    raise KeyDerivationError(
        f"the message's {name!r} header is {str(value)[:100]!r}, and must be a number of times: "
        "only Celery should write it"
    )


def digest_of(request: Any) -> bytes:
    """Return a digest of what hangs on this message's outcome: names, arguments and ids."""
    hanging = (
        request.callbacks,
        request.errbacks,
        request.chain,
        request.chord,
        request.group if request.chord else None,
    )
    text = json.dumps(_identifying(hanging), sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()


def _identifying(hanging: Any) -> Any:
    # Without stamps and other options: they may differ from one publishing to the next.
    if isinstance(hanging, Mapping):
        if "task" in hanging and "options" in hanging:
            options = hanging.get("options") or {}
            named = ("task", "args", "kwargs")
            told = {name: _identifying(hanging.get(name)) for name in named}
            told.update({name: _identifying(options.get(name)) for name in ("task_id", "link")})
            return told
        return {str(name): _identifying(value) for name, value in hanging.items()}
    if isinstance(hanging, (list, tuple)):
        return [_identifying(item) for item in hanging]
    return hanging
