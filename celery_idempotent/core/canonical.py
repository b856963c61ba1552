"""Writes each value that can be a task's argument as one text, equal before and after a serializer.

Two values have the same text if they are of one type and equal (``Decimal("1.0")`` and
``Decimal("1.00")``, one instant in two time zones), or if a serializer turns one into the other (a
tuple and a list, a key ``1`` and a key ``"1"``, a member of an Enum and its value). All others
differ, ``1``, ``1.0``, ``True``, ``"1"`` and None among them.

The text never changes: it is hashed into keys, and a change would give another key to calls in
flight. ``tests/vectors/keys.json`` pins it.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from celery_idempotent.errors import KeyDerivationError

#: Values nested deeper are refused, and so is a value that contains itself.
MAX_DEPTH = 100

# The ranges are listed here and not taken from unicodedata: that differs between Python versions,
# so that two workers would derive two keys. They include bidirectional and zero-width characters,
# so that a label can't mislead an operator.
_UNREADABLE = (
    "\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\uffff\ud800-\udfff"
)
_TO_ESCAPE = re.compile(rf"[{_UNREADABLE}\\']")
_TO_HIDE = re.compile(f"[{_UNREADABLE}]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class NoForm(Exception):
    """A value has no canonical form; ``path`` is built from the inside out, while it unwinds."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def inside(self, step: str) -> None:
        self.path = step + self.path


def canonical(value: object) -> str:
    """Return the canonical text of ``value``.

    Raises :class:`KeyDerivationError` for a value without one: NaN, a set whose elements don't
    sort, an object that is neither data nor a model, a value nested deeper than ``MAX_DEPTH``
    levels.
    """
    try:
        return text_of(value)
    except NoForm as exc:
        place = f" at {exc.path}" if exc.path else ""
        raise KeyDerivationError(f"no canonical form{place}: {exc.reason}") from exc


def text_of(value: Any, depth: int = 0) -> str:
    """Do as :func:`canonical`, but raise :class:`NoForm`, for callers that name the argument."""
    write = _SCALARS.get(type(value))
    if write is not None:
        return write(value)
    if depth >= MAX_DEPTH:
        raise NoForm(f"it is nested deeper than {MAX_DEPTH} levels, or contains itself")
    write_nested = _CONTAINERS.get(type(value))
    if write_nested is not None:
        return write_nested(value, depth)
    return _unusual(value, depth)


def texts_of(values: Iterable[Any]) -> list[str]:
    """Return :func:`text_of` of each value."""
    texts = []
    for value in values:
        write = _SCALARS.get(type(value))
        texts.append(text_of(value) if write is None else write(value))
    return texts


def quoted(text: str) -> str:
    """Return ``text`` in single quotes, with unreadable characters escaped."""
    if text.isascii() and text.isprintable() and "'" not in text and "\\" not in text:
        return f"'{text}'"
    if _SURROGATE.search(text):
        # JSON joins the two halves of a surrogate pair to one character, so it is done here, too.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return "'" + _TO_ESCAPE.sub(_escape, str(text)) + "'"


def visible(text: str) -> str:
    """Return ``text`` with invisible characters escaped, so that a terminal may show it."""
    return _TO_HIDE.sub(_escape, text)


def _escape(match: "re.Match[str]") -> str:
    character = match.group()
    return "\\" + character if character in "\\'" else f"\\u{ord(character):04x}"


# -- scalars ---------------------------------------------------------------------------------------


def _str(value: str) -> str:
    # A subclass may have its own __str__; every serializer takes the characters.
    return quoted(str.__str__(value))


def _int(value: int) -> str:
    # Beyond this size Python may refuse decimal digits, depending on how the process was started.
    return int.__repr__(value) if value.bit_length() <= 1024 else hex(value)


def _float(value: float) -> str:
    if math.isnan(value):
        raise NoForm("NaN is not equal to itself, so no two calls with it are the same")
    return float.__repr__(float(value) + 0.0)  # + 0.0 makes 0.0 of -0.0, which is equal to it


def _bytes(value: "bytes | bytearray | memoryview") -> str:
    return f"bytes({bytes(value).hex()})"


def _datetime(value: dt.datetime) -> str:
    if value.utcoffset() is not None:
        with suppress(OverflowError):  # the first or last day there is stays in its own zone
            value = value.astimezone(dt.timezone.utc)
    # Not value.isoformat(): serializers take the base class's, without a subclass's additions.
    return f"datetime({dt.datetime.isoformat(value)})"


def _date(value: dt.date) -> str:
    return f"date({dt.date.isoformat(value)})"


def _time(value: dt.time) -> str:
    return f"time({dt.time.isoformat(value)})"


def _timedelta(value: dt.timedelta) -> str:
    return f"timedelta({value // dt.timedelta(microseconds=1)}us)"


def _decimal(value: Decimal) -> str:
    if value.is_nan():
        raise NoForm("NaN is not equal to itself, so no two calls with it are the same")
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return f"decimal({'-' * sign}inf)"
    if not value:
        return "decimal(0)"
    # By hand: Decimal.normalize() rounds to the precision of the context.
    significant = "".join(map(str, digits)).rstrip("0")
    exponent += len(digits) - len(significant)
    if -20 <= exponent <= 20:
        plain = Decimal((sign, tuple(map(int, significant)), exponent))
        return f"decimal({plain:f})"
    return f"decimal({'-' * sign}{significant}e{exponent})"


def _uuid(value: UUID) -> str:
    return f"uuid({value.hex})"


_SCALARS: dict[type, Callable[[Any], str]] = {
    str: quoted,
    int: _int,
    float: _float,
    bool: lambda value: "true" if value else "false",
    type(None): lambda value: "null",
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    dt.datetime: _datetime,
    dt.date: _date,
    dt.time: _time,
    dt.timedelta: _timedelta,
    Decimal: _decimal,
    UUID: _uuid,
}


# -- containers ------------------------------------------------------------------------------------


def _items(values: Iterable[Any], depth: int) -> list[str]:
    texts: list[str] = []
    try:
        for value in values:
            texts.append(text_of(value, depth + 1))
    except NoForm as exc:
        exc.inside(f"[{len(texts)}]")
        raise
    return texts


def _list(value: Iterable[Any], depth: int) -> str:
    return f"[{','.join(_items(value, depth))}]"


def _dict(value: dict[Any, Any], depth: int) -> str:
    texts: dict[str, str] = {}
    for key, item in value.items():
        name = _dict_key(key, depth)
        if name in texts:
            raise NoForm(f"two keys of a dict are one after a serializer: {name[:40]}")
        try:
            texts[name] = text_of(item, depth + 1)
        except NoForm as exc:
            exc.inside(f"[{name[:40]}]")
            raise
    return "{" + ",".join([f"{name}:{texts[name]}" for name in sorted(texts)]) + "}"


def _dict_key(key: Any, depth: int) -> str:
    """Return the text of a dict's key, as JSON writes it: JSON has only text keys."""
    if isinstance(key, str):
        return _str(key)
    if key is None or isinstance(key, bool):
        return quoted(text_of(key))
    if isinstance(key, int):
        return quoted(_int(key))
    if isinstance(key, float):
        _float(key)  # refuses NaN
        return quoted(float.__repr__(key).replace("inf", "Infinity"))
    if isinstance(key, Enum):
        return _dict_key(key.value, depth)
    return text_of(key, depth + 1)


def _set(value: Iterable[Any], depth: int) -> str:
    texts = []
    for item in value:  # no index in the error: the order is not the user's
        texts.append(text_of(item, depth + 1))
    kinds = {_kind(text) for text in texts}
    if len(kinds) > 1:
        raise NoForm(f"a set of mixed types ({', '.join(sorted(kinds))}) has no order")
    return f"set([{','.join(sorted(texts))}])"


def _kind(text: str) -> str:
    names = {"'": "str", "[": "list", "{": "dict"}
    if text[0] in names:
        return names[text[0]]
    word, bracket, _ = text.partition("(")
    return word if bracket or text == "null" else "number"


_CONTAINERS: dict[type, Callable[[Any, int], str]] = {
    list: _list,
    tuple: _list,
    dict: _dict,
    set: _set,
    frozenset: _set,
}


# -- everything else -------------------------------------------------------------------------------

# The order matters: a datetime is a date, too, and an Enum that is a str is sent as that str.
_BASES: tuple[tuple[type, Callable[[Any], str]], ...] = (
    (str, _str),
    (int, _int),
    (float, _float),
    (bytes, _bytes),
    (bytearray, _bytes),
    (dt.datetime, _datetime),
    (dt.date, _date),
    (dt.time, _time),
    (dt.timedelta, _timedelta),
    (Decimal, _decimal),
    (UUID, _uuid),
)


def _unusual(value: Any, depth: int) -> str:
    for base, write in _BASES:
        if isinstance(value, base):
            return write(value)
    for container, write_nested in _CONTAINERS.items():
        if isinstance(value, container):
            return write_nested(value, depth)
    kind = type(value)
    if isinstance(value, type):
        raise NoForm(f"it is a class, {value.__qualname__}")
    if callable(getattr(kind, "__json__", None)):  # kombu's json asks it first
        return text_of(_called(value.__json__, "__json__"), depth + 1)
    if isinstance(value, Enum):
        return text_of(value.value, depth + 1)
    if is_model(value):
        return _model(value, depth)
    if is_dataclass(value):
        return _dict({field.name: getattr(value, field.name) for field in fields(value)}, depth)
    raise NoForm(f"an object of type {kind.__qualname__} is not data")


def _called(method: Callable[..., Any], name: str, **options: Any) -> Any:
    try:
        return method(**options)
    except Exception as exc:
        raise NoForm(f"its {name}() raised {type(exc).__name__}") from exc


def _model(value: Any, depth: int) -> str:
    dumped = _called(value.model_dump, "model_dump", mode="json")
    plain = _called(value.model_dump, "model_dump")
    return text_of(_settled(plain, dumped, depth), depth + 1)


def is_model(value: Any) -> bool:
    """Whether a value is a pydantic model, or like one."""
    return callable(getattr(type(value), "model_dump", None))


def field_of_model(value: Any, name: str) -> Any:
    """Return a field of a pydantic model in the model's json form; ``None`` if it has no such one.

    Raises :class:`NoForm` as :func:`text_of` does, for this field only.
    """
    dumped = _called(value.model_dump, "model_dump", mode="json", include={name})
    plain = _called(value.model_dump, "model_dump", include={name})
    return _settled(plain.get(name), dumped.get(name), 0)


def _settled(plain: Any, dumped: Any, depth: int) -> Any:
    """Return a model's json form with its sets sorted; refuse secrets.

    The order of a set differs between processes. Secrets are masked in that form, all alike: two
    calls with different secrets would be one call.
    """
    if depth >= MAX_DEPTH:
        raise NoForm(f"it is nested deeper than {MAX_DEPTH} levels")
    if hasattr(type(plain), "get_secret_value"):
        raise NoForm("it holds a secret, whose text is masked in the model's json form")
    if isinstance(plain, (set, frozenset)) and isinstance(dumped, list):
        for item in plain:
            _settled(item, None, depth + 1)
            if isinstance(item, frozenset):
                raise NoForm("a model's set of sets has no order in its json form")
        return sorted(dumped, key=text_of)
    if isinstance(plain, dict) and isinstance(dumped, dict) and len(plain) == len(dumped):
        pairs = zip(dumped, plain.values(), strict=True)
        return {key: _settled(before, dumped[key], depth + 1) for key, before in pairs}
    if isinstance(plain, (list, tuple)) and isinstance(dumped, list) and len(plain) == len(dumped):
        items = zip(plain, dumped, strict=True)
        return [_settled(before, item, depth + 1) for before, item in items]
    return dumped
