"""The slip of one owner: the answer that it got, also after its key went to another owner.

A slip is stored beside its record, at ``<key>:sent:<owner>``, for as long as copies of the owner's
message may come. Layout, big-endian::

    version:1 flags:1 deaths:2 retries:4 token:8 sending_ms:8
    publication:1+n holder:1+n digests:1+n outcome:rest

The key of a slip holds ``1`` where an older release noted that the callbacks of a message went out.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, NamedTuple

from celery_idempotent.core.record import Record, State

_VERSION: Final = 1
_ANSWERED: Final = 1
_SUCCEEDED: Final = 2
_ALL_SENT: Final = 4
_RELEASED: Final = 8
_HEADER: Final = struct.Struct(">BBHIQQ")
#: What an older release wrote where a slip is: all callbacks went out.
OLD_NOTE: Final = b"1"
#: How long the digest of a message's callbacks is, in bytes.
DIGEST: Final = 8
_MOST_DIGESTS: Final = 16
_MAX_FIELD: Final = 255


@lru_cache(maxsize=256)
def _layout(*lengths: int) -> struct.Struct:
    """Return the layout of a slip, less its outcome, for fields of these lengths."""
    if max(lengths) > _MAX_FIELD:
        raise ValueError(f"a field of a slip has {max(lengths)} bytes, more than {_MAX_FIELD}")
    # "p": a byte with the length, and then the bytes.
    fields = "".join([f"{length + 1}p" for length in lengths])
    return struct.Struct(f"{_HEADER.format}{fields}")


class Slip(NamedTuple):
    """The answer of one owner (a task id and nesting)."""

    #: Whether the owner has its final answer. If not, the slip only holds a lease on callbacks.
    answered: bool = False
    #: Whether the answer is the result that is kept in the record.
    succeeded: bool = False
    #: Whether an older release noted that all callbacks went out.
    all_sent: bool = False
    #: How often the message had been dead-lettered.
    deaths: int = 0
    retries: int = 0
    #: The token of the run that gave the answer; of a run whose key had been forgotten, that of the
    #: record then; 0: it was not a run of this owner.
    token: int = 0
    #: The end of the lease on the callbacks, on the store's clock; 0: nobody sends them.
    sending_ms: int = 0
    #: Identifies the ``apply_async`` that published the message; empty: not known.
    publication: bytes = b""
    #: Who sends the callbacks: the nonce of its claim, and its packed process.
    holder: bytes = b""
    #: Digests of the callbacks that went out; in a claim: of those that the message carries.
    digests: bytes = b""
    #: The packed outcome; empty where none is kept. Where its run gave the key up and has not
    #: ended: how many runs were cut off before it, in one byte; empty: none.
    outcome: bytes = b""
    #: Whether it answers its own call alone, and nobody who waited for its run: that gave the key
    #: up before its end (``self.idempotency.release()``), or was cut off. Without an answer, the
    #: lease of a run that gave the key up is here: ``sending_ms`` and ``holder``.
    released: bool = False

    @property
    def interruptions(self) -> int:
        """How many runs were cut off before the one that gave its key up."""
        return self.outcome[0] if self.outcome else 0

    @property
    def came_ms(self) -> int:
        """When its call came first, where the newest call runs next; 0: it does not say that.

        A run that gave its key up came at the latest when it got it.
        """
        if self.answered or self.digests:
            return 0
        return self.token // 1000 if self.released else self.token

    @property
    def is_run(self) -> bool:
        """Whether it stands for a run that gave its key up, and has not ended."""
        return self.released and not self.answered

    def pack(self) -> bytes:
        """Return the stored form."""
        # All at once: looking up each attribute takes longer.
        (
            answered,
            succeeded,
            all_sent,
            deaths,
            retries,
            token,
            sending_ms,
            publication,
            holder,
            digests,
            outcome,
            released,
        ) = self
        flags = _ANSWERED * answered + _SUCCEEDED * succeeded + _ALL_SENT * all_sent
        head = _layout(len(publication), len(holder), len(digests)).pack(
            _VERSION,
            flags + _RELEASED * released,
            deaths,
            retries,
            token,
            sending_ms,
            publication,
            holder,
            digests,
        )
        return head + outcome

    @classmethod
    def unpack(cls, packed: bytes | None) -> Slip | None:
        """Read the stored form. If it can't be read, the callbacks count as sent."""
        if not packed:
            return None
        try:
            if packed[0] != _VERSION:
                raise ValueError("another version")
            _, flags, deaths, retries, token, sending_ms = _HEADER.unpack_from(packed)
            holder_at = _HEADER.size + 1 + packed[_HEADER.size]
            digests_at = holder_at + 1 + packed[holder_at]
            outcome_at = digests_at + 1 + packed[digests_at]
            if outcome_at > len(packed):
                raise ValueError("cut short")
        except (struct.error, ValueError, LookupError):
            return cls(answered=True, succeeded=True, all_sent=True)
        return cls(
            flags & _ANSWERED != 0,
            flags & _SUCCEEDED != 0,
            flags & _ALL_SENT != 0,
            deaths,
            retries,
            token,
            sending_ms,
            packed[_HEADER.size + 1 : holder_at],
            packed[holder_at + 1 : digests_at],
            packed[digests_at + 1 : outcome_at],
            packed[outcome_at:],
            flags & _RELEASED != 0,
        )

    def has_sent(self, digest: bytes) -> bool:
        """Whether the callbacks with this digest went out."""
        return self.all_sent or digest in self.digest_list()

    def digest_list(self) -> list[bytes]:
        """Return the digests as a list."""
        packed = self.digests
        return [packed[at : at + DIGEST] for at in range(0, len(packed), DIGEST)]

    def is_older_than(self, message: Slip) -> bool:
        """Whether ``message`` is a later attempt than the one that was answered.

        A message that was published anew is one. So is a message with more retries or
        dead-letterings, if the answered run had no outcome: its body may have published the retry
        itself. A leftover copy is not, and neither is a retry of a run that was cut off, once
        another run of the call had an outcome.
        """
        return message.publication != self.publication or (
            not (self.outcome or self.succeeded)
            and (message.retries > self.retries or message.deaths > self.deaths)
        )

    def merged(self, new: Slip) -> Slip:
        """Return the slip with ``new`` added, and without a lease on the callbacks."""
        digests = [*self.digest_list()]
        digests += [digest for digest in new.digest_list() if digest not in digests]
        told = self
        # The delivery that had the lease on the callbacks told its own outcome, and not the one
        # that was left here meanwhile.
        if not self.answered or (new.outcome and (self.sending_ms or not self.outcome)):
            told = new
        return told._replace(
            sending_ms=0,
            holder=b"",
            all_sent=self.all_sent,
            digests=b"".join(digests[-_MOST_DIGESTS:]),
        )

    def as_record(self, owner: bytes) -> Record:
        """Return the answer as a finished record of this owner."""
        return Record(State.RELEASED, self.token, owner=owner, outcome=self.outcome)


#: For a message that has no slip, because no second copy of it can be delivered.
NO_SLIP: Final = Slip()
