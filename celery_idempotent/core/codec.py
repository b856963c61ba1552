"""Outcomes as bytes: their kind, their encoding, and the payload.

The payload is what the result backend would store; this module only packs it. Layout::

    kind:1  coding:1  [content type:1+n  content encoding:1+n]  payload

``coding`` is 0 where content type and encoding follow as text, else the number of a common pair;
bit 7 says that the payload is compressed with zlib.
"""

from __future__ import annotations

import enum
import zlib
from typing import Final, NamedTuple

from celery_idempotent.errors import RecordCorrupt

#: Payloads over this many bytes are compressed, where that makes them smaller.
COMPRESS_OVER: Final = 512
#: A compressed payload is never unpacked to more than this: 256 MiB.
MAX_UNPACKED: Final = 256 * 1024 * 1024

_COMPRESSED: Final = 0x80
_COMMON: Final = {
    1: ("application/json", "utf-8"),
    2: ("application/x-msgpack", "binary"),
    3: ("application/x-yaml", "utf-8"),
    4: ("application/x-python-serialize", "binary"),
}
_CODES: Final = {pair: code for code, pair in _COMMON.items()}


class Kind(enum.IntEnum):
    """The kind of an outcome."""

    #: A result, as the result backend encodes results.
    RESULT = 1
    #: A failure, as the result backend encodes exceptions.
    FAILURE = 2
    #: The call succeeded; its result was too large, or could not be serialized.
    NOT_KEPT = 3


_KINDS: Final = {int(kind): kind for kind in Kind}
#: A constant, for code that runs in every delivery: see the states in :mod:`.record`.
_NOT_KEPT: Final = Kind.NOT_KEPT


class Outcome(NamedTuple):
    """The result or failure of a run, encoded as the result backend did when it ended."""

    kind: Kind
    content_type: str = ""
    content_encoding: str = ""
    payload: bytes = b""

    def pack(self) -> bytes:
        """Return the stored form."""
        kind, content_type, content_encoding, payload = self
        if kind is _NOT_KEPT:
            return bytes((_NOT_KEPT, 1))
        pair = (content_type, content_encoding)
        code = _CODES.get(pair, 0)
        head = b""
        if not code:
            for text in pair:
                raw = text.encode("utf-8")[:255]
                head += bytes((len(raw),)) + raw
        if COMPRESS_OVER < len(payload) <= MAX_UNPACKED:
            smaller = zlib.compress(payload, 6)
            if len(smaller) < len(payload):
                code |= _COMPRESSED
                payload = smaller
        return bytes((kind, code)) + head + payload

    @classmethod
    def unpack(cls, packed: bytes) -> Outcome:
        """Read the stored form.

        Raises:
            RecordCorrupt: it is no outcome, is cut short, or unpacks to more than 256 MiB.
        """
        try:
            kind, code = _KINDS[packed[0]], packed[1]
            if kind is _NOT_KEPT:
                return cls(kind)
            at = 2
            if code & ~_COMPRESSED:
                pair = _COMMON[code & ~_COMPRESSED]
            else:
                texts = []
                for _ in range(2):
                    end = at + 1 + packed[at]
                    if end > len(packed):
                        raise ValueError("cut short")
                    texts.append(packed[at + 1 : end].decode("utf-8"))
                    at = end
                pair = (texts[0], texts[1])
            payload = packed[at:]
            if code & _COMPRESSED:
                engine = zlib.decompressobj()
                payload = engine.decompress(payload, MAX_UNPACKED)
                if engine.unconsumed_tail or not engine.eof:
                    raise ValueError("cut short, or too large")
        except (IndexError, KeyError, ValueError, zlib.error) as exc:
            raise RecordCorrupt(
                f"a stored outcome cannot be read ({exc}): forget the key to free it"
            ) from exc
        return cls(kind, pair[0], pair[1], payload)


#: The outcome of a run whose result was too large, or could not be serialized.
NOT_KEPT: Final = Outcome(Kind.NOT_KEPT).pack()
