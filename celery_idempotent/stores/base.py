"""What a store is: the protocol every kind of store keeps, and how one is made from a URL.

A store keeps one record a key, and slips: what is known of the answer of one owner, wherever the
key has gone since (:mod:`celery_idempotent.core.slip`). Each operation reads, decides and writes
record and slip as one step that nothing can come between, by the store's own clock; what is
decided is said by :mod:`celery_idempotent.core.transitions`. The instants:

* a lease that ends at ``t`` is over at ``t`` (live: ``now < t``), and so is the wait for a retry;
* a record that lives for ``d`` is gone at ``now + d``;
* a claim that was given up is refused from then on for :data:`GIVEN_UP_MS`, and not carried out
  by a server that finds it later;
* tokens are the clock in microseconds, or one more than the last token, whichever is higher.

An operation that cannot be carried out raises :class:`.StoreUnavailable`; whether it took effect
is then not known, and it may be sent again: each is idempotent.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from celery_idempotent.core.record import Record
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.transitions import (
    Claim,
    ClaimVerdict,
    Lost,
    Note,
    Recorded,
    Resolve,
    Settle,
)
from celery_idempotent.errors import ConfigurationError, StoreError

__all__ = [
    "GIVEN_UP_MS",
    "STEPS",
    "Renewal",
    "Store",
    "is_beside_a_record",
    "mask_url",
    "store_from_url",
]


@dataclass(frozen=True, slots=True)
class Renewal:
    """One lease to prolong: the record as its holder knows it, and for how long."""

    key: str
    held: Record
    lease_ms: int
    keep_ms: int
    #: The key of the owner's slip, which is asked where there is no record; empty: none is kept.
    slip_key: str = ""


class Store(Protocol):
    """Where records live. ``key`` is the whole key of a record, as ``record_key`` gives it."""

    @property
    def failed_at(self) -> float:
        """When it last did not answer, or a connection was found broken, on this process's
        monotonic clock; minus infinity: never."""

    def claim(self, key: str, ask: Claim) -> ClaimVerdict:
        """Ask for a key.

        Raises:
            StoreUnavailable: it did not answer; ``abandon`` undoes what it may have done.
            RecordCorrupt, RecordTooNew: the record cannot be read, and was left as it is.
        """

    def settle(self, key: str, event: Settle) -> Recorded | Lost:
        """Write what a run became: completed, failed, released, retrying or interrupted."""

    def renew(self, renewals: Sequence[Renewal]) -> list[Recorded | Lost | StoreError]:
        """Prolong leases, in one round trip a node; answers or errors in the same order."""

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        """Write a step of a run, and prolong its lease; ``name`` again replaces what it was."""

    def resolve(self, key: str, event: Resolve) -> bool:
        """Settle an unknown outcome by a person's word; ``False``: it isn't unknown."""

    def note(self, key: str, event: Note) -> None:
        """Write a message's slip, and end the delivery lease of its run."""

    def slip(self, slip_key: str) -> Slip | None:
        """Read a slip, and change nothing."""

    def end_lease(self, key: str, owner: bytes, process: bytes, slip_key: str = "") -> bool:
        """End what a dead process held for ``owner``; whether there was something."""

    def abandon(self, key: str, given_up: Record, ttl_ms: int) -> None:
        """Undo a claim that was given up, or see to it that it gets nothing if it comes late."""

    def forget(self, key: str, ttl_ms: int) -> bool:
        """Free a key; whether there was a record."""

    def get(self, key: str) -> Record | None:
        """Read a record, and change nothing."""

    def get_many(self, keys: Sequence[str]) -> list[Record | StoreError | None]:
        """Read records for a list, in one round trip a node; errors are given in their places.

        A long outcome may come cut short, so that a thousand large results do not come over the
        wire for a list that doesn't show them: ``get`` reads it whole.
        """

    def now_ms(self) -> int:
        """Give the store's clock, in milliseconds since 1970."""

    def peek(self, key: str) -> tuple[Record | None, int]:
        """Read a record together with the store's clock, in milliseconds."""

    def steps(self, key: str) -> dict[str, bytes]:
        """Give the (packed) steps of a record by name."""

    def ttl(self, key: str) -> float | None:
        """How many seconds a record still lives; ``None`` where there is none."""

    def scan(self, pattern: str) -> Iterator[str]:
        """Give the keys of records that match a glob pattern, in no order, as they come."""

    def ping(self) -> None:
        """Raise :class:`.StoreUnavailable` where the store does not answer."""

    def close(self) -> None:
        """Give back all connections."""


#: For how long a claim that its client gave up could still be carried out, in milliseconds: each
#: carries a deadline by the store's clock, which is sooner.
GIVEN_UP_MS: Final = 30_000

#: Where a record's steps live: at its key, with this behind it.
STEPS: Final = ":steps"


def is_beside_a_record(key: str) -> bool:
    """Whether a store's key is no record's own: those end with their hash tag."""
    return "}:" in key


def mask_url(url: str) -> str:
    """Give a URL that may be logged or shown: without its password.

    Several URLs joined by ``;`` (Sentinel) are masked one by one. A password is found even where
    it is written so that the URL cannot be read (with a ``/``, ``?``, ``#`` or ``;`` in it).
    """
    return ";".join(_mask_one(part) for part in re.split(r";(?=[\w+.-]+://)", url))


def _mask_one(url: str) -> str:
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    if re.search("[/?#]", user):
        return f"{scheme}{mark}**"  # whatever the @ belongs to: better to show too little
    place, asked, query = place.partition("?")
    shown = "&".join(
        re.sub("=.*", "=**", item) if "pass" in item.lower() else item for item in query.split("&")
    )
    return f"{scheme}{mark}{user}{colon and ':**'}{at}{place}{asked}{shown}"


def store_from_url(url: str, options: Mapping[str, Any] | None = None) -> Store:
    """Make the store that a URL names; nothing is connected yet.

    Args:
        url: ``redis://``, ``rediss://``, ``redis+socket://``, ``sentinel://``,
            ``redis+cluster://``, ``rediss+cluster://``, ``postgresql://``, ``mysql://``,
            ``mariadb://``, ``sqlite:///``, ``django://`` or ``memory://``.
        options: passed on to the client (``socket_timeout``, ``master_name``, ``pool_size``, ...).

    Raises:
        ConfigurationError: there is no such kind of store, the URL cannot be read, or the package
            that it needs is not installed.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "memory":
        from celery_idempotent.stores.memory import MemoryStore

        return MemoryStore.shared(url)
    if scheme in ("redis", "rediss", "redis+socket", "unix", "sentinel"):
        from celery_idempotent.stores.redis.store import RedisStore

        return RedisStore.from_url(url, options)
    if scheme in ("redis+cluster", "rediss+cluster"):
        from celery_idempotent.stores.redis.cluster import ClusterStore

        return ClusterStore.from_url(url, options)
    if scheme.partition("+")[0] in ("postgresql", "postgres", "mysql", "mariadb", "sqlite"):
        try:
            from celery_idempotent.stores.sql.store import SqlStore
        except ImportError as exc:
            raise ConfigurationError(
                f"the store {mask_url(url)!r} needs {exc.name}: "
                "pip install 'celery-idempotent[sql]'"
            ) from exc
        return SqlStore.from_url(url, options)
    if scheme == "django":
        return _django_store(url, options)
    raise ConfigurationError(
        f"there is no store for {mask_url(url)!r}: idempotency_store_url may begin with redis://, "
        "rediss://, redis+socket://, sentinel://, redis+cluster://, postgresql://, mysql://, "
        "mariadb://, sqlite:///, django:// or memory://"
    )


def _django_store(url: str, options: Mapping[str, Any] | None) -> Store:
    try:
        # By name: this layer knows nothing of what stands above it.
        module = importlib.import_module("celery_idempotent.django.store")
    except ImportError as exc:
        raise ConfigurationError(
            f"the store {url!r} needs {exc.name}: pip install 'celery-idempotent[django]'"
        ) from exc
    except Exception as exc:
        raise ConfigurationError(
            f"the store {url!r} needs Django set up, and 'celery_idempotent.django' among "
            f"INSTALLED_APPS: {exc}"
        ) from exc
    store: Store = module.DjangoStore.from_url(url, options)
    return store
