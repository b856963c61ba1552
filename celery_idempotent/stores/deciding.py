"""What the memory, SQL and Django stores share: read a row, let core decide, write what it says.

A row is read without a lock, :mod:`.transitions` decides by the store's own clock, and the row is
written only if it still is as it was read, in time, and locked by nobody; otherwise all of that
begins again. A kind of store implements :class:`Rows`; :class:`DecidingStore` makes all operations
of a :class:`~celery_idempotent.stores.base.Store` out of them. Two rows are read and written: that
of the record, and that of the owner's slip.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Final, Generic, TypeVar

from celery_idempotent.core import transitions
from celery_idempotent.core.record import HELD, Record, State
from celery_idempotent.core.reservation import Reservation, key_of_queued, queued_key
from celery_idempotent.core.slip import OLD_NOTE, Slip
from celery_idempotent.core.verdicts import (
    KEEP_TTL,
    Busy,
    Claim,
    Claimed,
    ClaimVerdict,
    Lost,
    Note,
    Recorded,
    Renewal,
    Reserve,
    Reserved,
    Resolve,
    Settle,
    Taken,
    Write,
)
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.stores.base import (
    GIVEN_UP_MS,
    NotCommitted,
    ReservedPage,
    Sample,
    Store,
    or_error,
)
from celery_idempotent.stores.outage import Outage, not_done

__all__ = ["LONGEST", "DecidingStore", "Row", "Rows", "fit", "read_back"]

log = logging.getLogger("celery_idempotent")

T = TypeVar("T")
C = TypeVar("C")

#: How long the name of a row may be, in characters: longer than any record's key.
LONGEST: Final = 400
_PLAIN: Final = re.compile(rf"[!-~]{{1,{LONGEST}}}\Z")
#: How long after a row was read a decision on it may be written, by the store's clock. A server
#: that stood still must not carry out later what its clients have given up.
_FRESH_US: Final = 10_000_000
_PAUSES_S: Final = (0.0, 0.002, 0.005, 0.01, 0.02)
_LONGEST_PAUSE_S: Final = 0.04
#: A lock that lasts longer than this, in seconds, is held by a transaction and not by a statement.
_BUSY_S: Final = 0.2
#: How long an operation waits for a row that is locked, in seconds. The second is for callers for
#: whom others wait: the heartbeat, and the worker's parent process.
_PATIENT_S: Final = 2.0
_HASTY_S: Final = 0.25
#: How long a lost answer to COMMIT is looked for, and how often, in seconds.
_ASK_S: Final = 5.0
_ASK_PAUSE_S: Final = 0.1
#: How many keys one statement names or returns.
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Row:
    """What one read found: a record, its owner's slip, and the store's clock at that moment."""

    now_us: int
    #: The packed record; ``stamp`` is ``None`` where there is no row.
    packed: bytes = b""
    #: Changes with every write.
    stamp: int | None = None
    token: int = 0
    #: The record counts as absent from this time on.
    expires_ms: int = 0
    #: The slip's bytes and expiry as they stand there; ``None`` where there is none.
    slip_bytes: bytes | None = None
    slip_expires_ms: int = 0
    #: The slip of the run that was waited for.
    awaited: Slip | None = None
    #: The bytes and expiry of the key's reservation, as a slip's.
    queued_bytes: bytes | None = None
    queued_expires_ms: int = 0

    @classmethod
    def found(
        cls,
        now_us: int,
        packed: Any,
        stamp: int | None,
        token: int | None,
        expires_ms: int | None,
        slip: Any = None,
        slip_ms: int | None = None,
        awaited: Any = None,
        awaited_ms: int | None = None,
        queued: Any = None,
        queued_ms: int | None = None,
    ) -> Row:
        """Make a row of the columns of a statement, which are ``None`` where they are absent."""
        return cls(
            now_us,
            bytes(packed or b""),
            stamp,
            token or 0,
            expires_ms or 0,
            None if slip_ms is None else bytes(slip or b""),
            slip_ms or 0,
            _slip(awaited, awaited_ms or 0, now_us // 1000),
            None if queued_ms is None else bytes(queued or b""),
            queued_ms or 0,
        )

    @property
    def now_ms(self) -> int:
        """The store's clock, in milliseconds."""
        return self.now_us // 1000

    @property
    def deadline_us(self) -> int:
        """Until when, by the store's clock, what is decided on this row may be written."""
        return self.now_us + _FRESH_US

    @property
    def record(self) -> Record | None:
        """The record; one that expired counts as absent.

        Raises:
            RecordCorrupt, RecordTooNew: it can't be read.
        """
        return self.held()

    def held(self, token: int | None = None) -> Record | None:
        """The record, for a run that holds ``token``: see :meth:`.Record.unpack`."""
        if self.stamp is None or self.now_ms >= self.expires_ms:
            return None
        return Record.unpack(self.packed, token)

    @property
    def readable(self) -> Record | None:
        """The record, unless it can't be read."""
        try:
            return self.record
        except StoreError:
            return None

    @property
    def slip(self) -> Slip | None:
        """The owner's slip."""
        return _slip(self.slip_bytes, self.slip_expires_ms, self.now_ms)

    @property
    def queued(self) -> Reservation | None:
        """The key's reservation."""
        if self.now_ms >= self.queued_expires_ms:
            return None
        return Reservation.unpack(self.queued_bytes or b"\0")


def _slip(packed: Any, expires_ms: int, now_ms: int) -> Slip | None:
    if now_ms >= expires_ms:
        return None
    return Slip.unpack(bytes(packed or OLD_NOTE))


def fit(key: str) -> str:
    """Return the name under which a key is stored: itself, or, where it can't be, with a digest.

    Only the keys of slips and steps can be too long, or not plain: a task id may be any text, and a
    step may have any name.
    """
    if _PLAIN.match(key):
        return key
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{re.sub('[^!-~]', '?', key)[: LONGEST - 40]}~{digest}"


class Rows(ABC, Generic[C]):
    """The rows of one kind of store. ``at`` is what :meth:`operate` hands out: a connection, say.

    Every method raises :class:`.StoreUnavailable`, or an error that :meth:`operate` turns into one,
    where the store does not answer.
    """

    #: What error messages call the store: a URL without its password.
    where: str = "memory://"
    #: Whether :meth:`tell` does something.
    tells: bool = False

    @cached_property
    def outage(self) -> Outage:
        """Whether the store is away: :meth:`operate` says so."""
        return Outage(f"the store at {self.where}")

    @abstractmethod
    def operate(self, work: Callable[[C], T]) -> T:
        """Do one operation, and return what it returns.

        It may be done again where its answer was lost: all operations are idempotent.
        """

    @abstractmethod
    def transaction(self, at: C) -> AbstractContextManager[Any]:
        """Return a context in which all is written, or nothing where an exception leaves it."""

    @abstractmethod
    def read(
        self,
        at: C,
        key: str = "",
        slip_key: str = "",
        awaited_key: str = "",
        queued_key: str = "",
        /,
    ) -> Row:
        """Read a record, its owner's slip, the slip that was waited for, the key's reservation and
        the clock, at once.

        An empty key names nothing.
        """

    def read_many(self, at: C, keys: Sequence[str]) -> list[Row]:
        """Read records, in the order of their keys."""
        return [self.read(at, key) for key in keys]

    @abstractmethod
    def write_record(self, at: C, key: str, row: Row, record: Record, expires_ms: int) -> bool:
        """Write a record, and another stamp, if nobody wrote it since ``row`` was read.

        Returns:
            Whether it was written. Nothing is written where somebody has the row locked, or after
            ``row.deadline_us``.
        """

    @abstractmethod
    def write_slip(
        self, at: C, slip_key: str, row: Row, slip: Slip | Reservation | None, expires_ms: int
    ) -> bool:
        """Write a slip (``None``: delete it) if it is still as in ``row``; whether it was.

        A reservation is written in the same way.
        """

    def is_locked(self, at: C, exc: Exception) -> bool:
        """Whether an error means that somebody has a row locked, and that nothing was written."""
        return False

    def tell(self, at: C, key: str) -> None:
        """Tell those who listen that the run of a key is over, once the transaction is committed.

        By default nobody can listen. What goes wrong with it must not undo the transaction.
        """

    @abstractmethod
    def read_steps(self, at: C, key: str) -> dict[str, bytes]:
        """Read the (packed) steps of a record by name."""

    @abstractmethod
    def write_step(self, at: C, key: str, name: str, packed: bytes) -> None:
        """Write a step; a second one of that name replaces it."""

    @abstractmethod
    def drop_steps(self, at: C, key: str, start: str = "") -> None:
        """Delete the steps of a record whose names begin with ``start``: by default all."""

    @abstractmethod
    def page(self, at: C, start: str, after: str, count: int) -> list[str]:
        """Return up to ``count`` keys of live records that begin with ``start``.

        They come after the key ``after``, in the order of their bytes.
        """

    @abstractmethod
    def page_beside(self, at: C, start: str, after: str, count: int) -> list[str]:
        """Return up to ``count`` keys of slips and reservations, as :meth:`page` does of records.

        Those that have expired may be among them.
        """

    def draw(self, at: C, start: str, most: int) -> Sample:
        """Draw about ``most`` keys of live records that begin with ``start``, by lot.

        By default all are returned.
        """
        keys = list(itertools.chain.from_iterable(self._pages(at, start)))
        return Sample(keys, len(keys))

    def unknown_keys(self, at: C, start: str) -> list[str]:
        """Return the keys of live records in the state *unknown* that begin with ``start``.

        By default all records are gone through.
        """
        return self._in_states(at, start, (State.UNKNOWN,))

    def held_keys(self, at: C, start: str) -> list[str]:
        """Return the keys of live records that runs hold, and which begin with ``start``.

        By default all records are gone through.
        """
        return self._in_states(at, start, HELD)

    def _in_states(self, at: C, start: str, states: Collection[State]) -> list[str]:
        found: list[str] = []
        for page in self._pages(at, start):
            for key, row in zip(page, self.read_many(at, page), strict=True):
                record = row.readable
                if record is not None and record.state in states:
                    found.append(key)
        return found

    def _pages(self, at: C, start: str) -> Iterator[list[str]]:
        after = ""
        while page := self.page(at, start, after, _PAGE):
            yield page
            after = page[-1]


class DecidingStore(Store, Generic[C]):
    """A store whose records are rows."""

    def __init__(self, rows: Rows[C]) -> None:
        self.rows = rows

    @property
    def failed_at(self) -> float:
        return self.rows.outage.failed_at

    # --- operations ------------------------------------------------------------------------------

    def claim(self, key: str, ask: Claim) -> ClaimVerdict:
        marked = False

        def decide(row: Row) -> tuple[ClaimVerdict, Write | None]:
            nonlocal marked
            record = row.record
            verdict, write = transitions.claim(
                record,
                ask,
                row.now_us,
                slip=row.slip,
                awaited=row.awaited,
                queued=row.queued,
                left_ms=row.expires_ms - row.now_ms,
                slip_left_ms=row.slip_expires_ms - row.now_ms,
            )
            if write is not None and write.only_marks and isinstance(verdict, Busy):
                if marked and record is not None:
                    # The mark couldn't be written: the row is locked, or is written all the time.
                    return Busy(record, verdict.mine, verdict.now_ms), None
                marked = True
            return verdict, write

        def if_locked(row: Row) -> ClaimVerdict | None:
            record = row.record
            if record is None or record.state is State.RELEASED:
                return None  # nobody owns the key yet, so no duplicate may be refused
            # Whoever has the row locked holds the key, as if by a lease.
            until_ms = max(record.until_ms, row.now_ms + ask.lease_ms)
            mine = record.owner == ask.candidate.owner
            return Busy(record._replace(until_ms=until_ms), mine, row.now_ms)

        def work(at: C) -> ClaimVerdict:
            verdict, row = self._change(
                at,
                key,
                decide,
                slip_key=ask.slip_key,
                awaited_key=ask.awaited_key,
                queued_key=ask.queued_key,
                if_locked=if_locked,
            )
            if isinstance(verdict, Claimed) and (before := row.record) and before.has_steps:
                # Read after the claim: from now on nobody else can write a step.
                return verdict._replace(steps=self.rows.read_steps(at, key))
            return verdict

        return self.rows.outage.one_at_a_time(lambda: self.rows.operate(work))

    def settle(self, key: str, event: Settle) -> Recorded | Lost:
        return self.rows.operate(lambda at: self.settle_in(at, key, event))

    def settle_in(self, at: C, key: str, event: Settle) -> Recorded | Lost:
        """Settle as a part of the transaction that ``at`` is in."""
        is_written = False

        def decide(row: Row) -> tuple[Recorded | Lost, Write | None]:
            nonlocal is_written
            record = row.held(event.record.token)
            answer, write = transitions.settle(
                record, event, row.now_us, slip=row.slip, queued=row.queued
            )
            is_written = isinstance(answer, Recorded) and write is not None
            return answer, write

        answer = self._change(
            at, key, decide, slip_key=event.slip_key, queued_key=event.queued_key
        )[0]
        if is_written and event.drops_steps_of:
            self.rows.drop_steps(at, key, event.drops_steps_of)
        return answer

    def renew(self, renewals: Sequence[Renewal]) -> list[Recorded | Lost | StoreError]:
        if not renewals:
            return []
        return self.rows.operate(
            lambda at: [or_error(self._renew_one, at, one) for one in renewals]
        )

    def _renew_one(self, at: C, one: Renewal) -> Recorded | Lost:
        def decide(row: Row) -> tuple[Recorded | Lost, Write | None]:
            record = row.held(one.held.token)
            return transitions.renew(record, one, row.now_us, slip=row.slip)

        return self._change(at, one.key, decide, slip_key=one.slip_key, hasty=True)[0]

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        def work(at: C) -> Recorded | Lost:
            with self.rows.transaction(at):
                return self.step_in(at, one, name, packed)

        return self.rows.operate(work)

    def step_in(self, at: C, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        """Write a step as a part of the transaction that ``at`` is in."""

        def decide(row: Row) -> tuple[Recorded | Lost, Write | None]:
            record = row.held(one.held.token)
            return transitions.step(record, one, row.now_us, slip=row.slip)

        answer, row = self._change(at, one.key, decide, slip_key=one.slip_key)
        if isinstance(answer, Recorded):
            if not (row.record or one.held).has_steps:
                self.rows.drop_steps(at, one.key)
            self.rows.write_step(at, one.key, name, packed)
        return answer

    def resolve(self, key: str, event: Resolve) -> bool:
        return self._apply(key, lambda row: transitions.resolve(row.record, event, row.now_us))

    def rewind(self, key: str, token: int, kept: Collection[str], ttl_ms: int) -> bool:
        def decide(row: Row) -> Write | None:
            return transitions.rewind(row.record, token, bool(kept), ttl_ms, row.now_us)

        def work(at: C) -> bool:
            with self.rows.transaction(at):
                is_free = self._apply_in(at, key, decide)
                if is_free:
                    steps = self.rows.read_steps(at, key)
                    self.rows.drop_steps(at, key)
                    for name in steps.keys() & set(kept):
                        self.rows.write_step(at, key, name, steps[name])
            return is_free

        return self.rows.operate(work)

    def note(self, key: str, event: Note) -> None:
        def decide(row: Row) -> Write | None:
            return transitions.note(row.readable, event, row.now_us, slip=row.slip)

        self._apply(key, decide, slip_key=event.slip_key)

    def end_lease(self, key: str, owner: bytes, process: bytes, slip_key: str = "") -> bool:
        def decide(row: Row) -> Write | None:
            return transitions.end_lease(row.readable, owner, process, row.now_us, slip=row.slip)

        return self._apply(key, decide, slip_key=slip_key, hasty=True)

    def abandon(self, key: str, given_up: Record, ttl_ms: int) -> None:
        def decide(row: Row) -> Write | None:
            with suppress(StoreError):
                return transitions.abandon(row.record, given_up, ttl_ms, GIVEN_UP_MS, row.now_us)
            return None

        self._apply(key, decide)

    def forget(self, key: str, ttl_ms: int) -> bool:
        def decide(row: Row) -> Write | None:
            try:
                record = row.record
            except StoreError:
                record = Record(State.RELEASED, row.token)  # unreadable: freed all the same
            return transitions.forget(record, ttl_ms, row.now_us, queued=row.queued)

        def work(at: C) -> bool:
            found = self._apply_in(at, key, decide, queued_key=queued_key(key))
            if found:
                self.rows.drop_steps(at, key)
            return found

        return self.rows.operate(work)

    def reserve(self, key: str, ask: Reserve) -> Reserved | Taken:
        def decide(row: Row) -> tuple[Reserved | Taken, Write | None]:
            return transitions.reserve(row.readable, row.queued, ask, row.now_us)

        def work(at: C) -> Reserved | Taken:
            return self._change(at, key, decide, queued_key=queued_key(key))[0]

        return self.rows.outage.one_at_a_time(lambda: self.rows.operate(work))

    def confirm(self, key: str, owner: bytes, ttl_ms: int) -> None:
        self._apply(
            "",
            lambda row: transitions.confirm(row.queued, owner, ttl_ms, row.now_us),
            queued_key=queued_key(key),
        )

    def unreserve(self, key: str, owner: bytes) -> None:
        self._apply(
            "",
            lambda row: transitions.unreserve(row.queued, owner),
            queued_key=queued_key(key),
        )

    def put(
        self, key: str, record: Record, left_ms: int, ttl_ms: int, steps: Mapping[str, bytes]
    ) -> bool:
        def decide(row: Row) -> Write | None:
            return transitions.put(row.record, record, left_ms, ttl_ms, row.now_us)

        def work(at: C) -> bool:
            with self.rows.transaction(at):
                is_written = self._apply_in(at, key, decide)
                if is_written:
                    self.rows.drop_steps(at, key)
                    for name, packed in steps.items():
                        self.rows.write_step(at, key, name, packed)
            return is_written

        return self.rows.operate(work)

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> Record | None:
        return self._read(key).record

    def get_many(self, keys: Sequence[str]) -> list[Record | StoreError | None]:
        pages = [keys[start : start + _PAGE] for start in range(0, len(keys), _PAGE)]
        found = self.rows.operate(lambda at: [self.rows.read_many(at, page) for page in pages])
        return [or_error(row.held) for row in itertools.chain(*found)]

    def peek(self, key: str) -> tuple[Record | None, int]:
        row = self._read(key)
        return row.record, row.now_ms

    def slip(self, slip_key: str) -> Slip | None:
        return self._read("", slip_key).slip

    def reservation(self, key: str) -> Reservation | None:
        return self._read("", "", "", queued_key(key)).queued

    def reserved(self, prefix: str) -> Iterator[ReservedPage]:
        def load(after: str, at: C) -> tuple[list[str], ReservedPage]:
            page = self.rows.page_beside(at, f"{prefix}:{{", after, _PAGE)
            found = []
            for name in page:
                key = key_of_queued(name)
                queued = key and self.rows.read(at, "", "", "", name).queued
                if key and queued:
                    found.append((key, queued))
            return page, ReservedPage(found, len(page))

        return self._each_page(load)

    def steps(self, key: str) -> dict[str, bytes]:
        def work(at: C) -> dict[str, bytes]:
            record = self.rows.read(at, key).readable
            return self.rows.read_steps(at, key) if record and record.has_steps else {}

        return self.rows.operate(work)

    def now_ms(self) -> int:
        return self._read("").now_ms

    def ttl(self, key: str) -> float | None:
        row = self._read(key)
        left = row.expires_ms - row.now_ms
        return left / 1000 if row.stamp is not None and left > 0 else None

    def scan(self, pattern: str) -> Iterator[str]:
        # Redis writes a plain star as \*, fnmatch as [*].
        glob = re.sub(r"\\(.)", lambda m: f"[{m[1]}]" if m[1] in "*?[" else m[1], pattern)
        start = re.split(r"[*?\[\\]", pattern, maxsplit=1)[0]

        def load(after: str, at: C) -> tuple[list[str], list[str]]:
            page = self.rows.page(at, start, after, _PAGE)
            return page, [key for key in page if fnmatch.fnmatchcase(key, glob)]

        return itertools.chain.from_iterable(self._each_page(load))

    def sample(self, prefix: str, most: int) -> list[Sample]:
        return [self.rows.operate(lambda at: self.rows.draw(at, f"{prefix}:{{", most))]

    def unknown(self, prefix: str) -> list[str]:
        return self.rows.operate(lambda at: self.rows.unknown_keys(at, f"{prefix}:{{"))

    def held(self, prefix: str) -> list[str]:
        return self.rows.operate(lambda at: self.rows.held_keys(at, f"{prefix}:{{"))

    def _each_page(self, load: Callable[[str, C], tuple[list[str], T]]) -> Iterator[T]:
        """Yield what ``load`` makes of each page of keys, which come after the given one."""
        after = ""
        while True:
            page, made = self.rows.operate(partial(load, after))
            yield made
            if len(page) < _PAGE:
                return
            after = page[-1]

    def ping(self) -> None:
        self._read("")

    def close(self) -> None:
        """Close all connections; by default there are none."""

    def _read(self, *keys: str) -> Row:
        return self.rows.operate(lambda at: self.rows.read(at, *keys))

    # --- reading, deciding, writing --------------------------------------------------------------

    def _apply(self, key: str, decide: Callable[[Row], Write | None], **options: Any) -> bool:
        """Write what is decided; return whether there was something to write."""
        return self.rows.operate(lambda at: self._apply_in(at, key, decide, **options))

    def _apply_in(
        self, at: C, key: str, decide: Callable[[Row], Write | None], **options: Any
    ) -> bool:
        """Do the same as a part of an operation; ``options`` are those of :meth:`_change`."""

        def decided(row: Row) -> tuple[bool, Write | None]:
            write = decide(row)
            return write is not None, write

        is_written: bool = self._change(at, key, decided, **options)[0]
        return is_written

    def _change(
        self,
        at: C,
        key: str,
        decide: Callable[[Row], tuple[T, Write | None]],
        *,
        slip_key: str = "",
        awaited_key: str = "",
        queued_key: str = "",
        if_locked: Callable[[Row], T | None] | None = None,
        hasty: bool = False,
    ) -> tuple[T, Row]:
        """Read, decide, and write if the row is still as it was read; else begin again.

        Where the row stays locked, ``if_locked`` may give the answer.

        Returns:
            The answer, and the row that was decided on.

        Raises:
            StoreUnavailable: the row is locked, and stays so for too long.
        """
        began = time.monotonic()
        row: Row | None = None
        # At least as many attempts as there are pauses: a slow store need not have a locked row.
        for pause in itertools.chain(_PAUSES_S, itertools.repeat(_LONGEST_PAUSE_S)):
            try:
                row = self.rows.read(at, key, slip_key, awaited_key, queued_key)
                answer, write = decide(row)
                write = transitions.with_mark(row.readable, write, row.now_us)
                if write is None or self._write(at, key, row, write, slip_key, queued_key):
                    return answer, row
            except Exception as exc:
                if not self.rows.is_locked(at, exc):
                    raise
            if pause == _LONGEST_PAUSE_S:
                waited_s = time.monotonic() - began
                if waited_s >= _BUSY_S and row is not None and if_locked is not None:
                    locked = if_locked(row)
                    if locked is not None:
                        return locked, row
                if waited_s >= (_HASTY_S if hasty else _PATIENT_S):
                    break
            time.sleep(pause)
        raise not_done(f"the store at {self.rows.where} has {key} locked by another transaction")

    def _write(
        self, at: C, key: str, row: Row, write: Write, slip_key: str, queued_key: str
    ) -> bool:
        def until_ms(before_ms: int, ttl_ms: int) -> int:
            return before_ms if ttl_ms == KEEP_TTL else row.now_ms + ttl_ms

        rows, writes = self.rows, []
        if write.record is not None:
            expires_ms = until_ms(row.expires_ms, write.ttl_ms)
            writes.append(partial(rows.write_record, at, key, row, write.record, expires_ms))
        if write.slip is not None or write.slip_ttl_ms == 0:
            expires_ms = until_ms(row.slip_expires_ms, write.slip_ttl_ms)
            writes.append(partial(rows.write_slip, at, slip_key, row, write.slip, expires_ms))
        if write.queued is not None or write.drops_queued:
            # It is written as a slip is.
            as_slip = replace(
                row, slip_bytes=row.queued_bytes, slip_expires_ms=row.queued_expires_ms
            )
            new, until = write.queued, 0 if write.queued is None else write.queued.until_ms
            writes.append(partial(rows.write_slip, at, queued_key, as_slip, new, until))
        tells = write.wakes and rows.tells
        if len(writes) == 1 and not tells:
            return writes[0]()
        if write.slip_first and not tells:
            return all(do() for do in reversed(writes))
        with suppress(_NotAsRead), rows.transaction(at):
            if not all(do() for do in writes):
                raise _NotAsRead
            if tells:
                rows.tell(at, key)
            return True
        return False


def read_back(
    key: str, event: Settle, look: Callable[[str], Row], lost: BaseException
) -> Recorded | Lost:
    """Find out whether a run's end was committed, where the answer to COMMIT was lost.

    Args:
        look: reads the record's row. It raises StoreUnavailable while it can't, or while the row is
            locked: the transaction may not be over then.
        lost: what was raised instead of the answer.

    Raises:
        NotCommitted: it was rolled back, or nobody knows, for too long.
    """
    until = time.monotonic() + _ASK_S
    while True:
        try:
            row = look(key)
            answer, write = transitions.settle(row.record, event, row.now_us)
            break
        except StoreUnavailable as exc:
            why = exc
        if time.monotonic() >= until:
            unsure = NotCommitted(f"nobody knows whether {key} was committed: {why}")
            unsure.sure = False
            raise unsure
        time.sleep(_ASK_PAUSE_S)
    if isinstance(answer, Recorded) and write is not None:
        raise NotCommitted(f"{key} was not committed: {lost}") from lost
    log.warning("the answer to a COMMIT for %s was lost; it is %s", key, answer)
    return answer


class _NotAsRead(Exception):
    """What was to be written is not as it was read: the transaction is undone."""
