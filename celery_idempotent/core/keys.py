"""Derives the identity of a call: its namespace, key and fingerprint, and the names of its keys."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple
from urllib.parse import quote

from celery_idempotent.core.binding import Binder
from celery_idempotent.core.canonical import NoForm, text_of, texts_of, visible
from celery_idempotent.core.keyfunctions import KeyFunction
from celery_idempotent.core.templates import (
    Field,
    NoKey,
    Template,
    Wrong,
    names_template,
    no_form,
    parse_names,
    parse_template,
)
from celery_idempotent.errors import ConfigurationError, KeyDerivationError, RecordCorrupt

#: Keys up to this length stay readable in Redis.
MAX_READABLE = 100
MAX_LABEL = 200
MAX_EXPLICIT = 1024

_UUID_OWNER = 0x55  # "U": a task id that is a UUID takes 16 bytes, not 36
_UUID_TEXT = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_TEXT_OWNER = 0x54  # "T"
_MAX_TASK_ID = 249

_MARK = "~"  # begins a digest; a user's text that begins with it is digested, too
_DIGEST = re.compile(r"~[0-9a-f]{32}\Z")
_READABLE = re.compile(rf"(?!{_MARK})[!#-\[\]-z|~]{{1,{MAX_READABLE}}}\Z")


class MessageId:
    """The type of :data:`MESSAGE_ID`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MESSAGE_ID"

    def __reduce__(self) -> str:
        return "MESSAGE_ID"


#: As ``idempotency_key``: the key is the task id, so that only redeliveries of one message are
#: duplicates (the Inbox pattern).
MESSAGE_ID = MessageId()


class CallKey(NamedTuple):
    """The identity of a call: calls with the same namespace and key are duplicates."""

    #: Keys in different namespaces are different.
    namespace: str
    #: The identity inside the namespace: readable, or a digest that begins with ``~``.
    key: str
    #: Where ``key`` is a digest of something the user chose: its readable form, at most 200
    #: characters. Empty otherwise.
    label: str
    #: A digest of the arguments, 16 bytes; empty if there is none.
    fingerprint: bytes
    #: Whether a call with the same key must bring the same fingerprint.
    checked: bool

    @property
    def readable(self) -> str:
        """The key as operators see it: the label of a digest, else the key itself."""
        return self.label or self.key


def identity_of(call_key: CallKey, began: str = "") -> str:
    """Return what keys for downstream APIs are derived from: the same wherever the call runs.

    Args:
        began: with a window of 0, the owner that first claimed the key since its last end.
    """
    identity = record_key("effect", call_key)
    return f"{identity}|{began}" if began else identity


class Owner(NamedTuple):
    """The call that a claim belongs to: its task id, and how often its task was replaced."""

    task_id: str
    nesting: int = 0

    def pack(self) -> bytes:
        """Return the bytes that stores compare: equal owners have equal bytes."""
        nesting = b"" if not self.nesting else self.nesting.to_bytes(4, "big")
        if _UUID_TEXT(self.task_id):
            return b"U" + bytes.fromhex(self.task_id.replace("-", "")) + nesting
        text = self.task_id.encode("utf-8", "surrogatepass")
        if len(text) > _MAX_TASK_ID:
            # No task id has that length. It is cut to a limit; the digest keeps it unique.
            text = text[:200] + blake2b(text, digest_size=16).digest()
        return bytes((_TEXT_OWNER, len(text))) + text + nesting

    def slip_key(self, key: str) -> str:
        """Return the key of its slip; by the hash tag it is on the same server as the record."""
        nesting = f":{self.nesting}" if self.nesting else ""
        return f"{key}:sent:{self.task_id}{nesting}"

    @classmethod
    def unpack(cls, packed: bytes) -> Owner | None:
        """Read what :meth:`pack` wrote; ``None`` for the empty string (a key without an owner)."""
        return _owner(packed)


@lru_cache(maxsize=64)  # one delivery reads the owner of its record several times
def _owner(packed: bytes) -> Owner | None:
    if not packed:
        return None
    if packed[0] == _UUID_OWNER and len(packed) in (17, 21):
        text = packed[1:17].hex()
        text = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
        return Owner(text, int.from_bytes(packed[17:], "big"))
    if packed[0] == _TEXT_OWNER and len(packed) >= 2:
        end = 2 + packed[1]
        if len(packed) in (end, end + 4):
            text = packed[2:end].decode("utf-8", "replace")
            return Owner(text, int.from_bytes(packed[end:], "big"))
    raise RecordCorrupt("a record's owner cannot be read: forget the key to free it")


def record_key(prefix: str, call_key: CallKey) -> str:
    """Return the name of the record, ``<prefix>:{<namespace>:<key>}``; the braces are its hash tag.

    The namespace has no colon, so that no two pairs get the same name. A key from another producer
    that has other characters is digested, as :meth:`KeyScheme.derive` would have done.
    """
    key = call_key.key
    if not _READABLE.match(key) and not _DIGEST.match(key):
        key = _digested(key)
    return f"{prefix}:{{{_namespace_part(call_key.namespace)}:{key}}}"


@lru_cache(maxsize=1024)
def _namespace_part(namespace: str) -> str:
    if _DIGEST.match(namespace):
        return namespace
    text = quote(namespace, safe="@+/=,~", errors="surrogatepass")
    if text.startswith(_MARK):
        text = f"%7E{text[1:]}"
    return text if len(text) <= MAX_READABLE else _digested(namespace)


# Made once, and copied for each digest.
_OF_TEXT, _OF_KEY, _OF_ARGUMENTS = (
    blake2b(digest_size=16, person=purpose)
    for purpose in (b"idem-text", b"idem-key", b"idem-arguments")
)


def _hash(text: str, purpose: blake2b) -> blake2b:
    digest = purpose.copy()
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest


def _digested(text: str) -> str:
    return _MARK + _hash(text, _OF_TEXT).hexdigest()


def _label(text: str) -> str:
    text = visible(text)
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 3]}..."


class KeyScheme:
    """Derives the keys of a task's calls; its key options are checked and compiled once.

    Raises :class:`ConfigurationError` for an option that can't work.
    """

    def __init__(
        self,
        *,
        task_name: str,
        signature: inspect.Signature,
        key: object = None,
        namespace: object = None,
        fingerprint: tuple[str, ...] | None = None,
        redact: bool = False,
    ) -> None:
        self._where = f"task {task_name!r}"
        self._redact = redact
        self._binder = Binder(signature)
        self._form = ",".join([f"{name}=%s" for name in self._binder.names])
        self._by_message_id = key is MESSAGE_ID
        self._source = self._compile_key(key)
        self._namespace = self._compile_namespace(task_name if namespace is None else namespace)
        self._covered = self._compile_fingerprint(fingerprint)

    def derive(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        task_id: str | None = None,
        explicit: str | None = None,
        task: object = None,
    ) -> CallKey | None:
        """Return the key of a call, or None if it is not to be deduplicated.

        ``explicit`` is a key that came with the call and takes precedence over the task's own;
        ``task_id`` is needed with ``MESSAGE_ID``; ``task`` is passed to a callable whose first
        parameter is ``self``. Raises TypeError if the arguments don't fit the task, and
        :class:`KeyDerivationError`, which names the argument, if they have no key.
        """
        try:
            values = self._binder.bind(args, kwargs)
        except TypeError as exc:
            raise TypeError(f"{self._where}: {_what_does_not_fit(args, str(exc))}") from exc
        try:
            return self._derive(values, task_id, explicit, task)
        except NoKey as exc:
            raise KeyDerivationError(f"{self._where}: {exc}") from exc.__cause__

    def tell_apart(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, task: object = None
    ) -> str | None:
        """Return a text that is equal for calls with the same arguments in the same namespace.

        ``None``: an argument has no canonical form. Raises TypeError if the arguments don't fit.
        """
        values = self._binder.bind(args, kwargs)
        texts = self._texts(values)
        if texts is None:
            return None
        namespace = self._namespace
        if not isinstance(namespace, str):
            try:
                namespace = self._namespace_of(namespace, values, task)
            except NoKey:
                return None  # deriving the key raises the error
        return f"{namespace}|{_hash(self._joined(texts), _OF_ARGUMENTS).hexdigest()}"

    def named(self, explicit: str) -> CallKey:
        """Return the key of a call of which only its explicit key is known.

        Raises :class:`KeyDerivationError` if the namespace depends on the arguments.
        """
        if not isinstance(self._namespace, str):
            raise KeyDerivationError(
                f"{self._where}: its namespace depends on the arguments: give them as well"
            )
        try:
            key, label = self.identity(_checked_explicit(explicit))
        except NoKey as exc:
            raise KeyDerivationError(f"{self._where}: {exc}") from exc
        return CallKey(self._namespace, key, label, b"", False)

    def identity(self, chosen: str) -> tuple[str, str]:
        """Return the identity for a text that the user chose, and its label."""
        if self._redact:
            return _digested(chosen), ""
        if _READABLE.match(chosen):
            return chosen, ""
        return _digested(chosen), _label(chosen)

    def _derive(
        self, values: Sequence[Any], task_id: str | None, explicit: str | None, task: object
    ) -> CallKey | None:
        chosen: str | None  # what the user chose as identity, None: all arguments
        # The texts of all arguments, for the fingerprint; the key uses some of them.
        texts = self._texts(values) if self._covered is None else None
        source = self._source
        if explicit is not None:
            chosen = _checked_explicit(explicit)
        elif self._by_message_id:
            if not task_id:
                raise NoKey("its key is the message's id, and this call has none yet")
            chosen = str(task_id)  # a UUID, from a producer without this library
        elif source is not None:
            if isinstance(source, Template):
                chosen = source.text(values, texts=texts)
            else:
                chosen = source.text(values, task)
            if chosen is None:
                return None
        else:
            chosen = None

        if self._covered is not None:
            checked = bool(self._covered)
            fingerprint = self._fingerprint_of_names(values)
        else:
            checked = explicit is not None
            if texts is not None:
                fingerprint = _hash(self._joined(texts), _OF_ARGUMENTS).digest()
            elif checked:
                raise self._no_form(values, "name those that are compared", "fingerprint")
            elif chosen is None:
                raise self._no_form(values, "name others", "key")
            else:
                fingerprint = b""

        if chosen is None:
            if texts is None:
                texts = self._texts(values)
            if texts is None:
                raise self._no_form(values, "name others", "key")
            key, label = _MARK + _hash(self._joined(texts), _OF_KEY).hexdigest(), ""
        else:
            key, label = self.identity(chosen)
        namespace = self._namespace
        if not isinstance(namespace, str):
            namespace = self._namespace_of(namespace, values, task)
        return CallKey(namespace, key, label, fingerprint, checked)

    @staticmethod
    def _texts(values: Sequence[Any]) -> list[str] | None:
        """Return the canonical texts of all arguments; None if one of them has none."""
        try:
            return texts_of(values)
        except NoForm:
            return None

    def _no_form(self, values: Sequence[Any], remedy: str, option: str) -> NoKey:
        """Return the error for the first argument without a canonical text."""
        for name, value in zip(self._binder.names, values, strict=True):
            try:
                text_of(value)
            except NoForm as exc:
                error = NoKey(f"{no_form(name, exc)}: {remedy} in idempotency_{option}")
                error.__cause__ = exc
                return error
        raise AssertionError("one of them has none")

    def _joined(self, texts: Sequence[str]) -> str:
        return self._form % tuple(texts)

    def _fingerprint_of_names(self, values: Sequence[Any]) -> bytes:
        if not self._covered:
            return b""
        text = ",".join([f"{field.name}={field.text(values)}" for field in self._covered])
        return _hash(text, _OF_ARGUMENTS).digest()

    def _namespace_of(
        self, source: Template | KeyFunction, values: Sequence[Any], task: object
    ) -> str:
        text = source.text(values, task)
        if text is None:
            raise NoKey("idempotency_namespace returned None, and a namespace can't be left out")
        # With redact nothing that came from the arguments may be readable in Redis.
        return _digested(text) if self._redact else _settled_namespace(text)

    # -- compiling -----------------------------------------------------------------------------

    def _wrong(self, option: str) -> Wrong:
        return lambda reason: ConfigurationError(f"{self._where}: {option}: {reason}")

    def _compile_key(self, key: object) -> Template | KeyFunction | None:
        option = "idempotency_key"
        wrong = self._wrong(option)
        if key is None:
            if not self._binder.names:
                raise wrong(
                    "the task has no parameters, so all of its calls would be one, and a periodic "
                    "task would silently run once a day: say what makes two calls the same: "
                    "MESSAGE_ID (only redeliveries of one message), or a callable that returns, "
                    f"for instance, today's date; {_ONE_AT_A_TIME}"
                )
            return None
        if key is MESSAGE_ID:
            return None
        if isinstance(key, str):
            literals, fields = parse_template(key, self._binder, wrong)
            if not fields:
                hint = f": did you mean '{{{key}}}'?" if key in self._binder.index else ""
                raise wrong(
                    f"{key!r} names no argument, so all calls would be one{hint}; {_ONE_AT_A_TIME}"
                )
            return Template(literals, fields)
        if isinstance(key, (tuple, list)):
            if not key:
                raise wrong(
                    f"an empty tuple names no argument, so all calls would be one; {_ONE_AT_A_TIME}"
                )
            return names_template(parse_names(key, self._binder, wrong))
        if callable(key):
            return KeyFunction(key, option, self._binder, wrong)
        raise wrong(
            f"{key!r} is not a way to derive a key: give a tuple of argument names, a template "
            "such as 'order:{order_id}', a callable of the task's arguments, or MESSAGE_ID"
        )

    def _compile_namespace(self, namespace: object) -> Template | KeyFunction | str:
        option = "idempotency_namespace"
        wrong = self._wrong(option)
        if isinstance(namespace, str):
            literals, fields = parse_template(namespace, self._binder, wrong)
            if fields:
                return Template(literals, fields)
            if not literals[0]:
                raise wrong("it is empty: leave it out to use the task's name")
            return _settled_namespace(literals[0])
        if callable(namespace):
            return KeyFunction(namespace, option, self._binder, wrong)
        raise wrong(
            f"{namespace!r} is not a namespace: give a string, a template such as "
            "'tenant:{tenant_id}', or a callable of the task's arguments"
        )

    def _compile_fingerprint(self, names: object) -> tuple[Field, ...] | None:
        wrong = self._wrong("idempotency_fingerprint")
        if names is None:
            return None
        if not isinstance(names, (tuple, list)):
            raise wrong(f"{names!r} is not a tuple of argument names, such as ('amount',)")
        return parse_names(names, self._binder, wrong)


#: What to write where all calls of a task are to be one.
_ONE_AT_A_TIME = (
    "where no two calls may run at once, give a function that returns a constant, "
    "lambda *args, **kwargs: 'all', and idempotency_ttl = 0"
)


def _what_does_not_fit(args: object, why: str) -> str:
    """Return why a call does not fit its task, and what to write instead.

    Args:
        why: in the words of inspect.
    """
    if not isinstance(args, (list, tuple)):
        return f"its args are of type {type(args).__name__}, and must be a list or tuple: (x,)"
    if why.endswith("unexpected keyword argument 'idempotency_key'"):
        why += (
            ": that is an option of the call, and not an argument of the task: "
            "apply_async(args, idempotency_key=...)"
        )
    return why


def _checked_explicit(explicit: object) -> str:
    if not isinstance(explicit, str):
        raise NoKey(f"idempotency_key is {type(explicit).__name__}, and must be a string")
    if not explicit.strip():
        raise NoKey("idempotency_key is empty, and would make one call of many")
    if len(explicit) > MAX_EXPLICIT:
        raise NoKey(
            f"idempotency_key has {len(explicit)} characters, more than {MAX_EXPLICIT}: "
            "send a digest of it"
        )
    return str.__str__(explicit)


def _settled_namespace(text: str) -> str:
    """Return a namespace for a message: of limited length, and never a forged digest."""
    return _digested(text) if text.startswith(_MARK) or len(text) > MAX_LABEL else text
