"""What a running task can ask: ``self.idempotency``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from celery_idempotent.errors import ClaimLost, ConfigurationError
from celery_idempotent.run.checkpoints import checkpoint, resume
from celery_idempotent.run.run import Run
from celery_idempotent.run.steps import Steps
from celery_idempotent.run.transaction import plain_session
from celery_idempotent.stores.base import Store

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["RunContext"]

T = TypeVar("T")


class RunContext:
    """The running task's key, and what it may ask of its run.

    In a run that holds no claim (a direct call, a key of ``None``, ``idempotency_mode = "off"``,
    or a store that was away with ``idempotency_on_store_error = "run"``) the token is ``None`` and
    :meth:`check` raises; the rest works.
    """

    __slots__ = (
        "_identity",
        "_plain",
        "_run",
        "_steps",
        "_store",
        "_why",
        "attempt",
        "key",
        "owner_id",
        "replayed",
    )

    def __init__(
        self,
        *,
        key: str | None,
        identity: str,
        owner_id: str | None,
        retries: int,
        run: Run | None = None,
        steps: Steps | None = None,
        why: str = "",
        store: Callable[[], Store] | None = None,
        replayed: bool = False,
    ) -> None:
        #: The key of this call, as operators see it; ``None`` where it has none.
        self.key = key
        #: The task id of the call that runs.
        self.owner_id = owner_id
        #: Which run of the call this is, from 1: its retries, and the runs that were cut off since.
        self.attempt = 1 + retries + (run.interruptions if run is not None else 0)
        #: For handlers (``on_success``, ``after_return``, signals): whether this delivery did not
        #: run the body, and is answered with the outcome of a run that has ended. Celery calls them
        #: for such a delivery, too.
        self.replayed = replayed
        self._identity = identity
        self._run = run
        self._steps = steps
        self._why = why
        self._store = store
        self._plain: Session | None = None

    @property
    def token(self) -> int | None:
        """The fencing token of this run: higher than that of every earlier run of the key."""
        return None if self._run is None else self._run.token

    @property
    def interrupted(self) -> bool:
        """Whether an earlier run was cut off, so that its effect may have happened already."""
        return self._run is not None and self._run.interruptions > 0

    def key_for(self, name: str) -> str:
        """Derive a key for a downstream API that takes one: the same for every run of this key.

        With ``idempotency_ttl = 0`` it is the same for every run since the key was last free: the
        next call gets another one, and a call that takes over a run that was cut off keeps it.

        Args:
            name: which effect it is for (``"stripe"``, ``"receipt-mail"``).

        Returns:
            32 hexadecimal digits, different for each key and name.
        """
        if not isinstance(name, str) or not name:
            raise ValueError("key_for() takes the name of an effect, such as key_for('stripe')")
        joined = f"{len(name)}:{name}:{self._identity}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(joined, digest_size=16).hexdigest()

    def step(
        self, name: str, fn: Callable[..., T], *args: Any, compensate: Any = None, **kwargs: Any
    ) -> T:
        """Execute a part of the task once: a later run does not repeat a step that finished.

        A crash between its effect and its record repeats it: if it calls an API that takes a key,
        give it ``key_for(name)``.

        Args:
            name: which step it is; the same in every run, and used once in each.
            fn: the step, called with the arguments that follow.
            compensate: a signature that undoes the step, ``refund.s()``. If the body fails for
                good, the compensations of the finished steps run in reverse order, each with its
                step's result as its first argument.

        Returns:
            What ``fn`` returned; in a later run, as the result backend would return it.

        Raises:
            ClaimLost: another run has the key by now.
            ResultNotKept: an earlier run finished the step, and its result was not kept.
        """
        if self._steps is None:
            return fn(*args, **kwargs)
        self._check_held("a step")
        result: T = self._steps.do(name, fn, args, kwargs, compensate)
        return result

    @property
    def cursor(self) -> Any:
        """The cursor of the last :meth:`checkpoint` of this key's runs; ``None``: there is none."""
        return None if self._steps is None else self._steps.cursor("")

    def checkpoint(self, cursor: Any) -> None:
        """Record how far this run has come: a later run finds it in :attr:`cursor`.

        It costs one round trip, prolongs the lease, and takes the place of the checkpoint before.
        With :attr:`session`, what was written so far is committed together with the cursor.

        Args:
            cursor: an id or a position that the result serializer takes; not ``None``.

        Raises:
            ClaimLost: another run has the key by now: stop.
            StoppedAtCheckpoint: with ``idempotency_stop_at_checkpoint``, as the worker shuts down.
                Let it pass.
            ValueError: the cursor can't be kept.
        """
        if self._steps is not None:
            self._check_held("a checkpoint")
            checkpoint(self._steps, "", cursor)

    def resume(
        self,
        name: str,
        items: Iterable[T] | Callable[[Any], Iterable[T]],
        cursor: Callable[[T], Any] | None = None,
        *,
        every: int | None = None,
        seconds: float = 1.0,
    ) -> Iterator[T]:
        """Yield the items that no earlier run of this key has finished, with checkpoints between.

        An item is finished when the loop asks for the next one. A crash repeats what came after
        the last checkpoint.

        Args:
            name: which loop it is; the same in every run.
            items: the items in ascending order of their cursor; or a function that takes the last
                cursor (``None`` at first) and returns the items behind it.
            cursor: returns an item's cursor, such as its id. By default it is the item's position:
                then the items must be the same ones in every run.
            every: write a checkpoint after so many items.
            seconds: without ``every``: write one as soon as the last one is so old.

        Raises:
            ClaimLost, StoppedAtCheckpoint: as :meth:`checkpoint`, at a checkpoint.
            ValueError: the items are not in order, or a cursor can't be kept.
        """
        return resume(self._steps, name, items, cursor, every, seconds)

    @property
    def session(self) -> Session:
        """A session of SQLAlchemy on the store's database, for exactly-once effects in it.

        What the body writes with it is committed together with the run's completion, after the
        body returned. If the body raises, or the key is lost, all of it is rolled back; the
        session's own ``commit`` only ends a savepoint. The session is opened at first use.

        In a run that holds no claim it is committed when the body returns; nothing is protected.

        Raises:
            ConfigurationError: the records are not kept in an SQL database.
            StoreUnavailable: the database does not answer.
        """
        self._check_held("self.idempotency.session")
        if self._run is not None:
            session: Session = self._run.transaction.session
            return session
        if self._plain is None:
            self._plain = plain_session(self._store)
        return self._plain

    def release(self) -> None:
        """Free the key at once, while the body goes on: the next call of it may run beside it.

        This call stays answered once: its own copies wait, and get its outcome. If its process
        dies now, a copy runs again. Calls that waited for this run do not get its outcome, they
        run. In a run that holds no claim nothing happens.

        Raises:
            ClaimLost: the key is another run's already.
            ConfigurationError: the body has used ``session`` or a step, which go with the key, or
                runs in a transaction that does (``django://``); or it is an HTTP request's, whose
                client is to get its answer by the key.
            StoreUnavailable: the store does not answer; the key may be free all the same.
        """
        run = self._run
        if run is None or run.is_released:
            return
        if run.claimant.terms.store.opens_with_body:
            raise ConfigurationError(
                f"self.idempotency.release() of {self.key}: the body runs in a transaction that is "
                "committed together with its key, which can't be free before that. Set "
                'idempotency_store_options = {"atomic": False}'
            )
        if run.transaction.is_open or (self._steps is not None and self._steps.are_kept):
            raise ConfigurationError(
                f"self.idempotency.release() of {self.key}: the body has used self.idempotency."
                "session or a step, which are kept with the key: release it before them, or not "
                "at all"
            )
        run.release()
        if run.lease.lost is not None:
            self.check()

    def check(self) -> None:
        """Ask the store, in one round trip, whether this run still holds its key.

        Call it just before an effect that cannot be taken back; it prolongs the lease.

        Raises:
            ClaimLost: it does not hold it any more, or never did.
            StoreUnavailable: the store does not answer, so nobody knows.
        """
        if self._run is None:
            raise ClaimLost(f"this run holds no claim: {self._why}")
        if self._run.lease.lost is None:
            self._run.transaction.renew()
        if self._run.lease.lost is not None:
            raise ClaimLost(
                f"{self.key} is no longer this run's: another delivery has taken over, or the key "
                "was forgotten; stop before the effect"
            )

    def _check_held(self, what: str) -> None:
        if self._run is not None and self._run.is_released:
            raise ConfigurationError(
                f"{what} is kept with the key {self.key}, which this run has released: use it "
                "before self.idempotency.release(), or not at all"
            )

    def _check_unanswered(self) -> None:
        """:meth:`check`, and whether this call has no answer yet: another task is to give it one.

        Raises:
            ClaimLost, StoreUnavailable: as :meth:`check`.
        """
        self.check()
        if self._run is not None and self._run.lease.answered:
            raise ClaimLost(
                f"{self.key}: a copy of the message has answered this call: nobody knew its outcome"
            )
