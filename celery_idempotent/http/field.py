"""Reads the header field ``Idempotency-Key``.

The IETF draft (draft-ietf-httpapi-idempotency-key-header) makes it a structured field (RFC 9651)
whose value is a string, so in double quotes: ``Idempotency-Key: "7f3a"``. Many clients send the
bare characters, ``Idempotency-Key: 7f3a``: that is read as the same key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

#: A longer key is refused.
MAX_KEY: Final = 255

_STRING: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
# A structured field may have parameters; they have no meaning here.
_PARAMETERS: Final = re.compile(
    r'(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:"(?:[ !#-\[\]-~]|\\["\\])*"|[!#-:<-~]+))?)*'
)
_BARE: Final = re.compile(r"[!#-+\--:<-\[\]-~]+")


class BadField(ValueError):
    """The field has no valid key; the message says why."""


def read_field(values: Sequence[str]) -> str | None:
    """Return the key in the field's values; ``None`` if the field is missing.

    Raises:
        BadField: the key is empty, malformed or too long, or there are several.
    """
    if not values:
        return None
    if len(values) > 1:
        raise BadField("it is given more than once")
    text = values[0].strip(" \t")
    string = _STRING.match(text)
    if string is not None:
        if not _PARAMETERS.fullmatch(text, string.end()):
            raise BadField("something other than parameters follows the string")
        key = re.sub(r"\\(.)", r"\1", string[1])
    elif _BARE.fullmatch(text):
        key = text
    elif not text:
        raise BadField("it is empty")
    else:
        raise BadField('it is not a string of ASCII characters in double quotes, such as "7f3a"')
    if not key.strip():
        raise BadField("it is empty")
    if len(key) > MAX_KEY:
        raise BadField(f"it has {len(key)} characters, more than {MAX_KEY}")
    return key
