"""Records in the project's own database, on the ORM's own connection."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, transaction
from django.db.utils import ConnectionDoesNotExist

from celery_idempotent.core import transitions
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.transitions import (
    Busy,
    Claim,
    Claimed,
    ClaimVerdict,
    Lost,
    Note,
    Recorded,
    Resolve,
    Settle,
    Write,
)
from celery_idempotent.django import models
from celery_idempotent.django.isolation import check_isolation
from celery_idempotent.django.journal import Reading
from celery_idempotent.django.rows import Rows, fit, is_cut, is_passing, unavailable
from celery_idempotent.django.transaction import DjangoTransaction
from celery_idempotent.errors import ConfigurationError, StoreError
from celery_idempotent.stores.base import GIVEN_UP_MS, Renewal
from celery_idempotent.stores.deciding import Row

__all__ = ["DjangoStore"]

T = TypeVar("T")

#: How long an operation looks again at a row that somebody has locked, in seconds.
_CLAIM_S: Final = 0.25
_WRITE_S: Final = 2.0
_ATTEMPTS: Final = 3


class DjangoStore(Reading):
    """A :class:`~celery_idempotent.stores.base.Store` on one of the project's databases.

    An operation that is called in ``transaction.atomic()`` is a part of that transaction; what a
    body's own run needs of the store goes another way while its transaction is open.

    Args:
        alias: which of ``DATABASES``.
        atomic: whether bodies run in ``transaction.atomic()``, committed with their completion.
    """

    def __init__(self, alias: str = "default", *, atomic: bool = True) -> None:
        self.alias = alias
        #: Whether a transaction is opened before the body, and not when it asks for one.
        self.opens_with_body = atomic
        #: When the database last did not answer, on this process's monotonic clock.
        self.failed_at = -math.inf
        self._rows: Rows | None = None
        self._is_checked = False
        self._local = threading.local()

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any] | None = None) -> DjangoStore:
        """Make a store from ``django://`` or ``django://alias``.

        Raises:
            ConfigurationError: it is no such URL, or an option is none.
        """
        parts = urlsplit(url)
        given = dict(options or {})
        atomic = given.pop("atomic", True)
        if given or not isinstance(atomic, bool):
            raise ConfigurationError(
                "idempotency_store_options: a store django:// takes one option, atomic (True or "
                f"False), and not {sorted(given) or atomic!r}"
            )
        if parts.path not in ("", "/") or parts.query:
            raise ConfigurationError(f"{url!r}: write django:// or django://alias")
        return cls(parts.netloc or "default", atomic=atomic)

    @property
    def rows(self) -> Rows:
        """The statements for this database."""
        if self._rows is None:
            try:
                self._rows = Rows(self.alias, connections[self.alias].vendor)
            except ImproperlyConfigured as exc:
                raise ConfigurationError(
                    f"django://{self.alias} needs Django set up: {exc}"
                ) from exc
            except ConnectionDoesNotExist as exc:
                raise ConfigurationError(f"django://{self.alias}: {exc}") from exc
        return self._rows

    # --- operations ------------------------------------------------------------------------------

    def claim(self, key: str, ask: Claim) -> ClaimVerdict:
        has_steps = False

        def decide(row: Row) -> tuple[ClaimVerdict, Write | None]:
            nonlocal has_steps
            record = row.record
            has_steps = record is not None and record.has_steps
            return transitions.claim(record, ask, row.now_us, slip=row.slip, awaited=row.awaited)

        def if_locked(row: Row) -> ClaimVerdict | None:
            record = row.record
            if record is None or record.state is State.RELEASED:
                return None  # it is nobody's yet: no duplicate may be refused for that
            # Whoever has it locked holds it, as if by a lease.
            until_ms = max(record.until_ms, row.now_ms + ask.lease_ms)
            mine = record.owner == ask.candidate.owner
            return Busy(record._replace(until_ms=until_ms), mine, row.now_ms)

        def work(connection: Any) -> ClaimVerdict:
            verdict = self.rows.change(
                connection,
                key,
                decide,
                _CLAIM_S,
                slip_key=ask.slip_key,
                awaited_key=ask.awaited_key,
                if_locked=if_locked,
            )
            if isinstance(verdict, Claimed) and has_steps:
                return replace(verdict, steps=self._steps_of(connection, key))
            return verdict

        return self._operate(work)

    def settle(self, key: str, event: Settle) -> Recorded | Lost:
        return self._operate(lambda connection: self.settle_in(connection, key, event))

    def settle_in(self, connection: Any, key: str, event: Settle) -> Recorded | Lost:
        """Settle as a part of the transaction that ``connection`` is in."""

        def decide(row: Row) -> tuple[Recorded | Lost, Write | None]:
            record = row.held(event.record.token)
            return transitions.settle(record, event, row.now_us, slip=row.slip)

        return self.rows.change(connection, key, decide, _WRITE_S, slip_key=event.slip_key)

    def renew(self, renewals: Sequence[Renewal]) -> list[Recorded | Lost | StoreError]:
        if not renewals:
            return []
        return self._operate(
            lambda connection: [self._renew_one(connection, one) for one in renewals]
        )

    def _renew_one(self, connection: Any, one: Renewal) -> Recorded | Lost | StoreError:
        def decide(row: Row) -> tuple[Recorded | Lost, Write | None]:
            record = row.held(one.held.token)
            return transitions.renew(
                record, one.held, one.lease_ms, one.keep_ms, row.now_us, slip=row.slip
            )

        try:
            return self.rows.change(connection, one.key, decide, _CLAIM_S, slip_key=one.slip_key)
        except StoreError as exc:
            return exc

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        def work(connection: Any) -> Recorded | Lost:
            with transaction.atomic(using=self.alias):
                return self.step_in(connection, one, name, packed)

        return self._operate(work)

    def step_in(self, connection: Any, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        """Write a step as a part of the transaction that ``connection`` is in."""
        is_first = False

        def decide(row: Row) -> tuple[Recorded | Lost, Write | None]:
            nonlocal is_first
            record = row.held(one.held.token)
            is_first = not (record or one.held).has_steps
            return transitions.step(
                record, one.held, one.lease_ms, one.keep_ms, row.now_us, slip=row.slip
            )

        answer = self.rows.change(connection, one.key, decide, _WRITE_S, slip_key=one.slip_key)
        if isinstance(answer, Recorded):
            if is_first:
                self._drop_steps(one.key)
            self._objects(models.Step).update_or_create(
                record_key=fit(one.key),
                step_key=fit(name),
                defaults={"name": name, "step": packed},
            )
        return answer

    def resolve(self, key: str, event: Resolve) -> bool:
        def decide(row: Row) -> tuple[bool, Write | None]:
            write = transitions.resolve(row.record, event, row.now_us)
            return write is not None, write

        return self._change(key, decide, _WRITE_S)

    def note(self, key: str, event: Note) -> None:
        def decide(row: Row) -> tuple[None, Write | None]:
            return None, transitions.note(row.readable, event, slip=row.slip)

        self._change(key, decide, _WRITE_S, event.slip_key)

    def slip(self, slip_key: str) -> Slip | None:
        return self._operate(lambda connection: self.rows.read(connection, "", slip_key).slip)

    def end_lease(self, key: str, owner: bytes, process: bytes, slip_key: str = "") -> bool:
        def decide(row: Row) -> tuple[bool, Write | None]:
            write = transitions.end_lease(row.readable, owner, process, row.now_us, slip=row.slip)
            return write is not None, write

        return self._change(key, decide, _CLAIM_S, slip_key)

    def abandon(self, key: str, given_up: Record, ttl_ms: int) -> None:
        def decide(row: Row) -> tuple[None, Write | None]:
            try:
                record = row.record
            except StoreError:
                return None, None
            write = transitions.abandon(record, given_up, ttl_ms, GIVEN_UP_MS, row.now_us)
            return None, write

        self._change(key, decide, _WRITE_S)

    def _change(
        self,
        key: str,
        decide: Callable[[Row], tuple[T, Write | None]],
        patience_s: float,
        slip_key: str = "",
    ) -> T:
        return self._operate(
            lambda connection: self.rows.change(
                connection, key, decide, patience_s, slip_key=slip_key
            )
        )

    def forget(self, key: str, ttl_ms: int) -> bool:
        def decide(row: Row) -> tuple[bool, Write | None]:
            try:
                record = row.record
            except StoreError:
                record = Record(State.RELEASED, row.token)  # unreadable: freed all the same
            write = transitions.forget(record, ttl_ms, row.now_us)
            return write is not None, write

        def work(connection: Any) -> bool:
            found = self.rows.change(connection, key, decide, _WRITE_S)
            if found:
                self._drop_steps(key)
            return found

        return self._operate(work)

    # --- transactions and housekeeping -----------------------------------------------------------

    def begin(self) -> DjangoTransaction:
        """Begin the transaction of a body.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        return DjangoTransaction(self)

    def purge(self) -> int:
        """Delete what has expired; how many rows went."""

        def work(connection: Any) -> int:
            now_ms = self.rows.read(connection).now_ms
            gone = 0
            for model in (models.Record, models.Note):
                gone += self._objects(model).filter(expires_ms__lte=now_ms).delete()[0]
            kept = self._objects(models.Record).values("record_key")
            return gone + int(self._objects(models.Step).exclude(record_key__in=kept).delete()[0])

        return self._operate(work)

    def close(self) -> None:
        """Django closes its connections by itself."""

    # --- connections -----------------------------------------------------------------------------

    def own_connection(self) -> Any:
        """Give the connection for what is no part of a transaction that a body has open."""
        connection = connections[self.alias]
        body: DjangoTransaction | None = getattr(self._local, "body", None)
        return connection if body is None or body.is_lease else body.side_connection()

    def set_body(self, body: DjangoTransaction | None) -> None:
        """Say which transaction this thread's body has open."""
        self._local.body = body

    def _operate(self, work: Callable[[Any], T]) -> T:
        """Do one operation; again after a deadlock, and once more where the connection was stale.

        All that a store does is idempotent (a claim by its nonce), so that it may be done again
        where the answer was lost.
        """
        self.rows  # noqa: B018  (raises what is wrong with the configuration)
        stale = False
        for attempt in range(_ATTEMPTS):
            connection = self.own_connection()
            try:
                if not self._is_checked:
                    check_isolation(connection, self.alias)
                    self._is_checked = True
                if connection.in_atomic_block:
                    with transaction.atomic(using=self.alias):
                        return work(connection)
                return work(connection)
            except Error as exc:
                if is_cut(exc):
                    self.failed_at = time.monotonic()
                if connection.in_atomic_block or attempt == _ATTEMPTS - 1:
                    raise unavailable(self.alias, exc) from exc
                if is_cut(exc) and not stale:
                    stale = True
                    connection.close()
                elif not is_passing(exc):
                    raise unavailable(self.alias, exc) from exc
        raise AssertionError("unreachable")

    def _drop_steps(self, key: str) -> None:
        self._objects(models.Step).filter(record_key=fit(key)).delete()
