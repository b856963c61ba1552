"""The record of one key, and its packed form: one string a record, the same in every store.

The packed form is a 24-byte header and five length-prefixed fields, big-endian, so that a Lua
script and Python read and write the same bytes::

    version:1 state:1 flags:1 interruptions:1 token:8 until_ms:8 retries:4
    owner:1+n  process:1+n  nonce:1+n  fingerprint:1+n  label:2+n  outcome:rest

The nonce's field holds the nonce of the claim, in 8 bytes (zeros: there is none), and behind it, 16
bytes each, the nonces of claims that were given up, with the instant from which they are refused
in any case. ``outcome`` is opaque to the stores.

Version, token and owner stay at these places in every later version. So a run whose key was taken
over by a newer release can see that it lost, although it can't read the record.
"""

from __future__ import annotations

import enum
import struct
from contextlib import suppress
from functools import lru_cache
from typing import Final, NamedTuple

from celery_idempotent.core.keys import Owner
from celery_idempotent.errors import RecordCorrupt, RecordTooNew

#: The version of the packed form. A reader refuses a higher one (a newer worker wrote it).
VERSION: Final = 1

_HEADER = struct.Struct(">BBBBQQI")
_HAS_STEPS = 1  # bits of the flags
_IS_AWAITED = 2
_MAX_FIELD = 255
_MAX_LABEL = 65535
_MAX_INTERRUPTIONS = 255
# Lua counts in doubles: above this a token or an instant would not be the same number there.
_MAX_NUMBER = 2**53 - 1


_ALONE: Final = "alone"
_NO_NONCE = bytes(8)
_INSTANT = struct.Struct(">Q")
_GIVEN_UP: Final = 16
_MOST_GIVEN_UP: Final = 15


def still_given_up(given_up: bytes, now_ms: int) -> bytes:
    """Return those given-up claims that are not over yet, packed as before."""
    entries = [given_up[at : at + _GIVEN_UP] for at in range(0, len(given_up), _GIVEN_UP)]
    return b"".join(entry for entry in entries if _INSTANT.unpack(entry[8:])[0] > now_ms)


@lru_cache(maxsize=256)
def _layout(*lengths: int) -> struct.Struct:
    """Return the layout of a record, up to the length of its label, for fields of these lengths."""
    if max(lengths) > _MAX_FIELD:
        raise ValueError(f"a field of a record has {max(lengths)} bytes, more than {_MAX_FIELD}")
    # "p": a byte with the length, and then the bytes.
    fields = "".join([f"{length + 1}p" for length in lengths])
    return struct.Struct(f"{_HEADER.format}{fields}H")


class State(enum.IntEnum):
    """The state of a key. Commands and pages show these names in lower case."""

    #: A run holds the key, or held it until its lease ended.
    RUNNING = 1
    #: The run asked to be retried; its next message is due at ``until_ms``.
    RETRYING = 2
    #: The key is free. An outcome is that of the last run, for its own call and those that waited
    #: for it: a failure, or with a window of 0 any outcome.
    RELEASED = 3
    #: The run's result is the key's outcome.
    SUCCEEDED = 4
    #: The run's failure is the key's outcome (``idempotency_store_failures``).
    FAILED = 5
    #: A run was cut off, or could not be undone; what it did is not known.
    UNKNOWN = 6
    #: The body failed for good; the compensations of its finished steps are being run.
    COMPENSATING = 7

    def __str__(self) -> str:
        return self._name_.lower()


#: The states as constants, for code that runs in every delivery: before Python 3.12, reading
#: ``State.RUNNING`` calls a function.
RUNNING: Final = State.RUNNING
RETRYING: Final = State.RETRYING
RELEASED: Final = State.RELEASED
SUCCEEDED: Final = State.SUCCEEDED
FAILED: Final = State.FAILED
UNKNOWN: Final = State.UNKNOWN
COMPENSATING: Final = State.COMPENSATING
#: The states in which a run holds the key by a lease.
HELD: Final = (RUNNING, COMPENSATING)

_STATES: Final = {int(state): state for state in State}


class Label(NamedTuple):
    """The readable name of a record: lines of text; empty ones at the end are left out."""

    #: The task's name; empty where the key's namespace is that name.
    task: str = ""
    #: The readable key; empty where the key itself is readable.
    readable: str = ""
    #: The trace context of its run.
    trace: str = ""
    #: Whether its run's call may end without a result, so that no other call waits for it.
    is_alone: bool = False
    #: Who began what its run goes on with, if that is another call and the key's window is 0: the
    #: packed owner that first claimed the key since its last end, as hexadecimal digits.
    origin: str = ""
    #: When its run's call came first, in milliseconds on the store's clock, where the newest of
    #: those that wait runs next (``idempotency_after_wait = "last"``). Empty otherwise.
    came: str = ""
    #: Other calls whose runs were cut off, and whose own messages have not come again since:
    #: ``5541:1,5542:3``, packed owners as hexadecimal digits, and how often. The last sixteen.
    cut_off: str = ""

    def text(self) -> str:
        """Return the text that is kept in a record."""
        alone = _ALONE if self.is_alone else ""
        lines = (self.task, self.readable, self.trace, alone, self.origin, self.came, self.cut_off)
        return "\n".join(lines).rstrip("\n")

    @classmethod
    def of(cls, record: Record) -> Label:
        """Read a record's label."""
        return cls.read(record.label)

    @classmethod
    def read(cls, text: str) -> Label:
        """Read the text that is kept in a record."""
        lines = (*text.split("\n"), "", "", "", "", "", "", "")
        task, readable, trace, alone, origin, came, cut_off, *_ = lines
        return cls(task, readable, trace, alone == _ALONE, origin, came, cut_off)


class Process(NamedTuple):
    """The process of a run. The boot id tells two containers with one host name and pid apart."""

    host: str
    pid: int
    boot: str

    def pack(self) -> bytes:
        """Return the bytes that stores compare."""
        tail = f"\0{self.pid}\0{self.boot}".encode()
        return self.host.encode("utf-8", "replace")[: _MAX_FIELD - len(tail)] + tail

    @classmethod
    def unpack(cls, packed: bytes) -> Process | None:
        """Read what :meth:`pack` wrote; ``None`` where no process is recorded any more."""
        if not packed:
            return None
        try:
            host, pid, boot = packed.decode("utf-8", "replace").rsplit("\0", 2)
            return cls(host, int(pid), boot)
        except ValueError as exc:
            raise RecordCorrupt(
                "a record's process cannot be read: forget the key to free it"
            ) from exc


class Record(NamedTuple):
    """All that is known about one key. Times are the store's, in milliseconds since 1970."""

    state: State
    #: The fencing token: higher with every claim.
    token: int
    #: Running, compensating: when the lease ends. Retrying: when the retry is due. Done: when the
    #: delivery lease ends (0: there is none).
    until_ms: int = 0
    #: The owner's ``request.retries`` (of the coming attempt, where it is retrying).
    retries: int = 0
    #: Runs cut off since the last retry, release or success.
    interruptions: int = 0
    #: Packed :class:`Owner`.
    owner: bytes = b""
    #: Packed :class:`Process`; empty once nothing is running.
    process: bytes = b""
    #: Identifies the call of ``claim`` that made this claim; empty once it is settled. Released:
    #: the nonce of the claim that was given up.
    nonce: bytes = b""
    #: Digest of the arguments.
    fingerprint: bytes = b""
    #: Packed :class:`Label`: the readable key where the store's key is a digest, and the task's
    #: name where the namespace is another one. Empty where the store's key has both.
    label: str = ""
    #: The packed outcome (see :mod:`.codec`); empty where there is none.
    outcome: bytes = b""
    #: Whether finished steps are kept beside it.
    has_steps: bool = False
    #: Claims that were given up and may still arrive; for each the nonce (8 bytes) and the instant
    #: (8 bytes, ms) from which it is refused in any case.
    given_up: bytes = b""
    #: Whether somebody waits for its run, and is to be told of its end.
    is_awaited: bool = False

    @property
    def owner_id(self) -> str | None:
        """The task id of the owner; ``None`` for a key that was forgotten."""
        owner = Owner.unpack(self.owner)
        return None if owner is None else owner.task_id

    @property
    def cut_off_id(self) -> str | None:
        """The task id of the last call whose run was cut off before this one, by its label.

        Its own, where no other is known.
        """
        last = Label.of(self).cut_off.rpartition(",")[2].partition(":")[0]
        with suppress(ValueError, RecordCorrupt):  # what stands there belongs to no run of ours
            owner = Owner.unpack(bytes.fromhex(last))
            if owner is not None:
                return owner.task_id
        return self.owner_id

    @property
    def came_ms(self) -> int:
        """When the call came first that the run is of; 0: that is not known. See :class:`Label`."""
        came = Label.of(self).came
        return int(came) if came.isdecimal() else 0

    @property
    def is_done(self) -> bool:
        """Whether there is an outcome that a delivery lease may protect."""
        return self.state in (SUCCEEDED, FAILED) or (self.state is RELEASED and bool(self.outcome))

    @property
    def holder(self) -> bytes:
        """Its claim, as a slip names who sends the callbacks: see :attr:`.Slip.holder`."""
        return (self.nonce.ljust(8, b"\0") + self.process)[:_MAX_FIELD]

    def has_given_up(self, nonce: bytes) -> bool:
        """Whether the claim with this nonce was given up."""
        given_up = self.given_up
        nonce = nonce.ljust(8, b"\0")
        return nonce in [given_up[at : at + 8] for at in range(0, len(given_up), _GIVEN_UP)]

    def remembering(self, nonce: bytes, until_ms: int, now_ms: int) -> Record:
        """Return the record with one more given-up claim, and without those that are over."""
        kept = still_given_up(self.given_up, now_ms)
        more = nonce.ljust(8, b"\0")[:8] + _INSTANT.pack(until_ms)
        return self._replace(given_up=(kept + more)[-_GIVEN_UP * _MOST_GIVEN_UP :])

    def pack(self) -> bytes:
        """Return the stored form."""
        # All at once: looking up each attribute takes longer.
        (
            state,
            token,
            until_ms,
            retries,
            interruptions,
            owner,
            process,
            nonce,
            fingerprint,
            text,
            outcome,
            has_steps,
            given_up,
            is_awaited,
        ) = self
        if given_up:
            nonce = nonce.ljust(8, b"\0") + given_up
        label = text.encode("utf-8", "replace")
        if len(label) > _MAX_LABEL:
            label = label[:_MAX_LABEL].decode("utf-8", "ignore").encode()
        layout = _layout(len(owner), len(process), len(nonce), len(fingerprint))
        head = layout.pack(
            VERSION,
            state,
            _HAS_STEPS * has_steps + _IS_AWAITED * is_awaited,
            min(interruptions, _MAX_INTERRUPTIONS),
            token,
            until_ms,
            retries,
            owner,
            process,
            nonce,
            fingerprint,
            len(label),
        )
        return head + label + outcome

    @classmethod
    def unpack_head(cls, packed: bytes) -> Record:
        """Read only token and owner of a record, whatever its version is.

        Raises:
            RecordCorrupt: it is no record.
        """
        try:
            token = _HEADER.unpack_from(packed)[4]
            owner = packed[_HEADER.size + 1 : _HEADER.size + 1 + packed[_HEADER.size]]
        except (struct.error, LookupError) as exc:
            raise RecordCorrupt(
                f"a record cannot be read ({exc}): forget the key to free it"
            ) from exc
        return cls(RUNNING, min(token, _MAX_NUMBER), owner=owner)

    @classmethod
    def unpack(cls, packed: bytes, token: int | None = None) -> Record:
        """Read the stored form.

        Args:
            token: the token of the run that asks. If a newer version of this library holds the
                key with another token, the run has lost: then only token and owner are read.

        Raises:
            RecordTooNew: a newer version of this library wrote it.
            RecordCorrupt: it is no record, or is cut short.
        """
        if packed and packed[0] > VERSION:
            if token is not None and len(packed) > _HEADER.size:
                head = cls.unpack_head(packed)
                if head.token != token:
                    return head
            raise RecordTooNew(
                f"a record has version {packed[0]}, this worker reads up to {VERSION}: "
                "upgrade celery_idempotent here"
            )
        try:
            header = _HEADER.unpack_from(packed)
            version, state, flags, interruptions, token, until_ms, retries = header
            if version != VERSION:
                raise ValueError(f"version {version}")
            if token > _MAX_NUMBER or until_ms > _MAX_NUMBER:
                raise ValueError("a token or an instant that no clock gives")
            process_at = _HEADER.size + 1 + packed[_HEADER.size]
            nonce_at = process_at + 1 + packed[process_at]
            fingerprint_at = nonce_at + 1 + packed[nonce_at]
            label_at = fingerprint_at + 1 + packed[fingerprint_at]
            outcome_at = label_at + 2 + packed[label_at] * 256 + packed[label_at + 1]
            if outcome_at > len(packed):
                raise ValueError("cut short")
            nonce, given_up = packed[nonce_at + 1 : fingerprint_at], b""
            if len(nonce) > 8:
                if len(nonce) % _GIVEN_UP != 8:
                    raise ValueError("nonces of another length")
                nonce, given_up = nonce[:8], nonce[8:]
                if nonce == _NO_NONCE:
                    nonce = b""
            return cls(
                _STATES[state],
                token,
                until_ms,
                retries,
                interruptions,
                packed[_HEADER.size + 1 : process_at],  # the owner
                packed[process_at + 1 : nonce_at],
                nonce,
                packed[fingerprint_at + 1 : label_at],
                packed[label_at + 2 : outcome_at].decode("utf-8", "replace"),
                packed[outcome_at:],
                flags & _HAS_STEPS != 0,
                given_up,
                flags & _IS_AWAITED != 0,
            )
        except (struct.error, ValueError, LookupError) as exc:
            raise RecordCorrupt(
                f"a record cannot be read ({exc}): forget the key to free it"
            ) from exc
