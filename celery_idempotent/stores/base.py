"""What a store is: the protocol that every kind of store keeps.

A store keeps one record a key, and slips: what is known of the answer of one owner, wherever the
key has gone since (:mod:`celery_idempotent.core.slip`). It may keep a reservation of the key, for a
call that is published and not yet delivered (:mod:`celery_idempotent.core.reservation`). Each
operation reads, decides and writes as one step that nothing can come between, by the store's own
clock; what is decided is said by :mod:`celery_idempotent.core.transitions`. The instants:

* a lease that ends at ``t`` is over at ``t`` (live: ``now < t``), and so is the wait for a retry;
* a record that lives for ``d`` is gone at ``now + d``, and so is a reservation;
* a claim that was given up is refused from then on for :data:`GIVEN_UP_MS`, and not carried out
  by a server that finds it later;
* tokens are the clock in microseconds, or one more than the last token, whichever is higher.

An operation that cannot be carried out raises :class:`.StoreUnavailable`; whether it took effect
is then not known, and it may be sent again: each is idempotent.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from celery_idempotent.core.record import HELD, Record
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.verdicts import (
    Claim,
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
)
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.stores.journal import JournalStore, RunLists

__all__ = [
    "GIVEN_UP_MS",
    "STEPS",
    "AskableStore",
    "NotCommitted",
    "Sample",
    "Server",
    "Store",
    "Subscription",
    "Transaction",
    "TransactionalStore",
    "is_beside_a_record",
    "or_error",
    "quoted",
]

T = TypeVar("T")

#: So many records are read at once where all are gone through.
_BATCH: Final = 1000


class NotCommitted(StoreUnavailable):
    """A transaction was not committed, through no fault of what is in it: the run begins anew."""

    #: Whether it is certain that nothing was committed.
    sure = True


class Transaction(Protocol):
    """A transaction that is under way.

    Where it can't be committed, :meth:`flush`, :meth:`commit_step` and :meth:`commit` roll back all
    of it, and raise NotCommitted, or what the database said to what the body wrote.
    """

    @property
    def session(self) -> Any:
        """What the body writes with: a session of SQLAlchemy, or the ORM's connection."""

    @property
    def is_lease(self) -> bool:
        """Whether it keeps everybody else from writing the record, so that no lease has to."""

    def flush(self) -> None:
        """Send all that the body wrote to the database, before :meth:`commit`."""

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        """Write a step of the run as a part of it."""

    def commit_step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        """Write a step and commit it with what the body wrote so far; go on in a new transaction.

        Where the run has lost its key, roll back. What the body works with stays the same object.
        """

    def lost(self, key: str, token: int) -> Record | None:
        """Return the record that replaced the run with this token; ``None``: it holds its key."""

    def commit(self, key: str, event: Settle) -> Recorded | Lost:
        """Settle the record and commit; where the run has lost its key, roll back.

        NotCommitted is also raised where nobody knows whether it was committed.
        """

    def commit_alone(self) -> None:
        """Commit what a body wrote that holds no claim."""

    def rollback(self) -> None:
        """Undo all that the body wrote. Never raises."""


class TransactionalStore(Protocol):
    """A store in the users' database, which has transactions for their data and its records.

    A run opens one at its first use of ``self.idempotency.session``. What the body wrote and the
    run's completion are then committed as one, or neither is.
    """

    def begin(self) -> Transaction:
        """Begin a transaction, or raise StoreUnavailable where the database does not answer."""


class Server(NamedTuple):
    """One Redis or Valkey server."""

    #: What INFO says; empty where this user may not ask for it.
    info: Mapping[str, str]
    #: The settings that CONFIG GET returned.
    config: Mapping[str, str] = MappingProxyType({})

    def number(self, name: str) -> int:
        """Return a number of INFO; 0 if it isn't there."""
        try:
            return int(self.info.get(name, 0))
        except ValueError:
            return 0


class AskableStore(Protocol):
    """A store whose servers can be asked how they are set up.

    StoreUnavailable is raised where one does not answer, or refuses what it is asked.
    """

    def servers(self) -> list[Server]:
        """Ask each server that holds records."""

    def one_key_each(self, make: Callable[[], str]) -> list[str]:
        """Return keys that ``make`` makes: one on each server that holds records."""

    def try_script(self) -> None:
        """Send a script's source to each server, as after a restart, which forgets scripts."""

    def try_listing(self, key: str) -> None:
        """List a record as one whose outcome is unknown, as workers do."""

    def missing_slots(self) -> int:
        """Return how many slots of a cluster no server has; 0 also where there is no cluster."""


class Sample(NamedTuple):
    """Some of the records of one server, as if drawn by lot."""

    keys: list[str]
    #: About how many there are; exactly, where these are all.
    of: int

    @property
    def weight(self) -> float:
        """For how many records each of these stands."""
        return self.of / len(self.keys) if self.keys else 0.0


class ReservedPage(NamedTuple):
    """What was found on one stretch of a way through all keys."""

    #: The keys of records, and their reservations.
    found: list[tuple[str, Reservation]]
    #: About how many keys were gone through for them.
    of: int


class Subscription(Protocol):
    """A connection of its own, on which a store tells that the runs of some keys are over.

    What it tells is a hint: it may be lost, late, or about a key whose run goes on. All methods but
    :meth:`close` raise StoreUnavailable where the connection is broken.
    """

    def sockets(self) -> Sequence[int]:
        """Return the file descriptors that something can be read from."""

    def follow(self, keys: Sequence[str]) -> None:
        """Hear of these keys, too, from when this returns.

        Raises:
            StoreUnavailable: also where nobody will be told.
        """

    def unfollow(self, keys: Sequence[str]) -> None:
        """Stop hearing of these keys."""

    def read(self) -> list[str]:
        """Return the keys whose runs are over, as far as that has arrived; never wait."""

    def check(self) -> None:
        """Find out whether the connection is alive, by what :meth:`read` has read meanwhile."""

    def close(self) -> None:
        """Close the connection."""


class Store(Protocol):
    """Where records live. ``key`` is the whole key of a record, as ``record_key`` makes it.

    A store inherits from this class, and lacks each ability that it does not declare itself.
    """

    # --- abilities -------------------------------------------------------------------------------

    #: Whether all processes that name the store's URL see the same records.
    is_shared: bool = True
    #: Whether it deletes nothing by itself, so that :meth:`tend` has to be called now and then.
    needs_tending: bool = False
    #: Whether its tables have to be made by :meth:`create_schema`, before it is used.
    needs_schema: bool = False
    #: The command that makes its tables, where that is another one than ``init-db``.
    schema_command: str = ""
    #: Whether it takes the option ``wait_replicas`` (``idempotency_wait_replicas``).
    waits_for_replicas: bool = False
    #: Whether the transaction of a body is opened before the body, and not when it asks for one.
    opens_with_body: bool = False

    @property
    def journals(self) -> JournalStore | None:
        """What keeps journals; ``None``: this store keeps none."""
        return None

    @property
    def run_lists(self) -> RunLists | None:
        """What lists the runs that are under way; ``None``: :meth:`held` needs no list."""
        return None

    @property
    def transactions(self) -> TransactionalStore | None:
        """What begins transactions for the bodies of tasks; ``None``: this store has none."""
        return None

    @property
    def askable(self) -> AskableStore | None:
        """What asks the servers that hold the records; ``None``: this store can't ask them."""
        return None

    def subscribe(self) -> Subscription | None:
        """Open a connection that tells of the ends of runs; ``None``: this store has none.

        Raises:
            StoreUnavailable: the store doesn't answer.
        """
        return None

    def tend(self) -> bool:
        """Delete what expired, for a moment; return whether there is more."""
        return False

    def create_schema(self) -> Sequence[str] | None:
        """Make the tables where they are not there yet.

        Returns:
            The names of those that were made; ``None``: this store does not say.

        Raises:
            StoreUnavailable: the database can't be reached, or doesn't allow it.
        """
        return None

    # --- operations ------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def from_url(cls, url: str, options: Mapping[str, Any] | None = None) -> Store:
        """Make the store that a URL names; it connects at its first operation.

        Args:
            options: ``idempotency_store_options``.

        Raises:
            ConfigurationError: the URL or an option is wrong.
        """

    @property
    @abstractmethod
    def failed_at(self) -> float:
        """When it last did not answer, or a connection was found broken, on this process's
        monotonic clock; minus infinity: never."""

    @abstractmethod
    def claim(self, key: str, ask: Claim) -> ClaimVerdict:
        """Ask for a key.

        Raises:
            StoreUnavailable: it did not answer; ``abandon`` undoes what it may have done.
            RecordCorrupt, RecordTooNew: the record cannot be read, and was left as it is.
        """

    @abstractmethod
    def settle(self, key: str, event: Settle) -> Recorded | Lost:
        """Write what a run became: completed, failed, released, retrying or interrupted."""

    @abstractmethod
    def renew(self, renewals: Sequence[Renewal]) -> list[Recorded | Lost | StoreError]:
        """Prolong leases, in one round trip a node; answers or errors in the same order."""

    @abstractmethod
    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        """Write a step of a run, and prolong its lease; a second one of that name replaces it."""

    @abstractmethod
    def resolve(self, key: str, event: Resolve) -> bool:
        """Settle an unknown outcome as a person decided; ``False``: it isn't unknown."""

    @abstractmethod
    def rewind(self, key: str, token: int, kept: Collection[str], ttl_ms: int) -> bool:
        """Free a key under a higher token, and drop all of its steps but those with these names.

        Its owner and its outcome go as if it were forgotten. ``False``: it has another token than
        ``token``, or is held, or is being compensated; then it is left as it is.
        """

    @abstractmethod
    def note(self, key: str, event: Note) -> None:
        """Write a message's slip, and end the delivery lease of its run."""

    @abstractmethod
    def slip(self, slip_key: str) -> Slip | None:
        """Read a slip, and change nothing."""

    @abstractmethod
    def end_lease(self, key: str, owner: bytes, process: bytes, slip_key: str = "") -> bool:
        """End what a dead process held for ``owner``; return whether it held something."""

    @abstractmethod
    def abandon(self, key: str, given_up: Record, ttl_ms: int) -> None:
        """Undo a claim that its client gave up, or refuse it if it has not arrived yet."""

    @abstractmethod
    def forget(self, key: str, ttl_ms: int) -> bool:
        """Free a key; return whether there was a record or a reservation."""

    @abstractmethod
    def reserve(self, key: str, ask: Reserve) -> Reserved | Taken:
        """Reserve a key for a call that is about to be published, unless another one has it."""

    @abstractmethod
    def confirm(self, key: str, owner: bytes, ttl_ms: int) -> None:
        """Record that the reserved call of ``owner`` was published; another's stays as it is.

        Args:
            ttl_ms: how long it lives after the call is due, if its message doesn't expire.
        """

    @abstractmethod
    def unreserve(self, key: str, owner: bytes) -> None:
        """Undo the reservation of ``owner``'s call; another's stays as it is."""

    @abstractmethod
    def reservation(self, key: str) -> Reservation | None:
        """Read a key's reservation, and change nothing."""

    @abstractmethod
    def reserved(self, prefix: str) -> Iterator[ReservedPage]:
        """Go through all keys with this prefix for reservations; return them as they come.

        One that is made or ends meanwhile may be missing. A page may have none, so that whoever
        asks can stop, or say how far it is.
        """

    @abstractmethod
    def put(
        self, key: str, record: Record, left_ms: int, ttl_ms: int, steps: Mapping[str, bytes]
    ) -> bool:
        """Write a record as another store had it; ``False``: a newer one is here, and is kept.

        Newer is what has a higher token, or has the same and is not running any more.

        Args:
            left_ms: for how long its lease lives, or until its retry is due; 0: neither.
            steps: its (packed) steps by name.
        """

    @abstractmethod
    def get(self, key: str) -> Record | None:
        """Read a record, and change nothing."""

    @abstractmethod
    def get_many(self, keys: Sequence[str]) -> list[Record | StoreError | None]:
        """Read records for a list, in one round trip a node; errors are returned in their places.

        A long outcome may come cut short, so that a thousand large results do not come over the
        wire for a list that doesn't show them: ``get`` reads it whole.
        """

    @abstractmethod
    def now_ms(self) -> int:
        """Return the store's clock, in milliseconds since 1970."""

    @abstractmethod
    def peek(self, key: str) -> tuple[Record | None, int]:
        """Read a record together with the store's clock, in milliseconds."""

    @abstractmethod
    def steps(self, key: str) -> dict[str, bytes]:
        """Return the (packed) steps of a record by name."""

    @abstractmethod
    def ttl(self, key: str) -> float | None:
        """How many seconds a record still lives; ``None`` where there is none."""

    @abstractmethod
    def scan(self, pattern: str) -> Iterator[str]:
        """Return the keys of records that match a glob pattern, in no order, as they come."""

    def sample(self, prefix: str, most: int) -> list[Sample]:
        """Draw about ``most`` records with a prefix by lot, or take all where there are fewer.

        By default all are taken.
        """
        keys = list(self.scan(f"{quoted(prefix)}:{{*}}"))
        return [Sample(keys, len(keys))]

    @abstractmethod
    def unknown(self, prefix: str) -> list[str]:
        """Return the keys of the records with this prefix whose outcome is unknown.

        It looks them up, and goes through no others. A record whose process died at the moment
        when it became unknown may be missing until the next call with its key.
        """

    def held(self, prefix: str) -> list[str]:
        """Return the keys of the records with this prefix that are *running* or *compensating*.

        A store with :attr:`run_lists` returns those that were listed. By default all records are
        gone through.
        """
        found: list[str] = []
        keys = self.scan(f"{quoted(prefix)}:{{*}}")
        while batch := list(islice(keys, _BATCH)):
            for key, record in zip(batch, self.get_many(batch), strict=True):
                if isinstance(record, Record) and record.state in HELD:
                    found.append(key)
        return found

    @abstractmethod
    def ping(self) -> None:
        """Raise :class:`.StoreUnavailable` where the store does not answer."""

    def close(self) -> None:
        """Close all connections."""


#: For how long a claim that its client gave up could still be carried out, in milliseconds: each
#: carries a deadline by the store's clock, which is sooner.
GIVEN_UP_MS: Final = 30_000

#: Where a record's steps live: at its key, with this behind it.
STEPS: Final = ":steps"


def is_beside_a_record(key: str) -> bool:
    """Whether a key is not a record's own: the key of a record ends with its hash tag."""
    return "}:" in key or not key.endswith("}")


def or_error(do: Callable[..., T], *args: Any) -> T | StoreError:
    """Return what ``do`` returns, or the error of the store that it raises, as one of a list."""
    try:
        return do(*args)
    except StoreError as exc:
        return exc


def quoted(text: str) -> str:
    """Quote what a glob pattern would take for more than itself."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
