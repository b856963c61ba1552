"""The seam to Celery in the process that runs the task, and where calls are published."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ClassVar

from celery import Task
from celery.utils.log import get_logger
from kombu.utils.uuid import uuid

from celery_idempotent.core.keys import CallKey, MessageId, Owner, identity_of, record_key
from celery_idempotent.core.message import WaitState, goes_on, read_own
from celery_idempotent.core.options import (
    Exceptions,
    Names,
    Seconds,
    check_call,
    option_names,
)
from celery_idempotent.core.record import Record
from celery_idempotent.delivery import callbacks
from celery_idempotent.delivery.delivery import Delivery, RequestState, identify, state_of
from celery_idempotent.delivery.execution import is_under_way
from celery_idempotent.delivery.guard import guard, ignore_what_is_not_to_run
from celery_idempotent.delivery.retrying import P, R, RetryingTask
from celery_idempotent.delivery.task_checks import check_class, watch_body
from celery_idempotent.delivery.waiting import StartedLater, say_started
from celery_idempotent.errors import (
    ConfigurationError,
    IdempotencyInProgress,
    IdempotencyKeyMismatch,
    KeyDerivationError,
)
from celery_idempotent.publishing import (
    id_of_call,
    joined_with_context,
    publish_reserved,
    with_key,
)
from celery_idempotent.run.context import RunContext
from celery_idempotent.run.transaction import run_without_claim
from celery_idempotent.settings import TaskSetup, environment_of, task_setup
from celery_idempotent.worker.boot import install

if TYPE_CHECKING:
    from typing import Generic

    from celery.canvas import Signature

    class KeyedSignature(Signature[R], Generic[R]):
        """A signature that knows the option for an explicit key; only type checkers see it."""

        def set(
            self,
            immutable: bool | None = None,
            *,
            idempotency_key: str | None = ...,
            **options: Any,
        ) -> KeyedSignature[R]:
            """Set options of the call."""


log = get_logger("celery_idempotent")


class IdempotentTask(RetryingTask[P, R]):
    """A task that runs once per key: retries, redeliveries and duplicates get its outcome.

    ::

        @app.task(base=IdempotentTask, idempotency_key="order:{order_id}")
        def charge(order_id, amount): ...

    Every option is an attribute here and a setting of the same name in ``app.conf``; the attribute
    wins, and ``None`` means "not set". :class:`celery_idempotent.core.options.Options` documents
    each.
    """

    abstract = True
    #: Messages are acknowledged after the run, which this class makes safe.
    acks_late = True
    #: A message comes back when its process is lost.
    reject_on_worker_lost = True
    #: The seam in the worker's parent process.
    Request = "celery_idempotent.worker.request:IdempotentRequest"
    #: How the worker takes its messages: those that wait for a key are held for it.
    Strategy = "celery_idempotent.worker.strategy:strategy"

    idempotency_key: str | Names | Callable[..., str | None] | MessageId | None = None
    idempotency_namespace: str | Callable[..., str] | None = None
    idempotency_fingerprint: Names | None = None
    idempotency_redact_key: bool | None = None
    idempotency_ttl: Seconds | None = None
    idempotency_lease: Seconds | None = None
    idempotency_on_running: str | None = None
    idempotency_wait_timeout: Seconds | None = None
    idempotency_after_wait: str | None = None
    idempotency_on_interrupted: str | None = None
    idempotency_max_interruptions: int | None = None
    idempotency_reconcile: Callable[..., Any] | None = None
    idempotency_stop_at_checkpoint: bool | None = None
    idempotency_store_failures: bool | Exceptions | None = None
    idempotency_on_store_error: str | None = None
    idempotency_max_result_size: int | None = None
    idempotency_on_enqueue: str | None = None
    idempotency_queued_ttl: Seconds | None = None
    idempotency_mode: str | None = None

    _idempotency: ClassVar[TaskSetup | None] = None
    # The name that the setup is for: an instance of a class may be registered by another name.
    _idempotency_of: ClassVar[str | None] = None

    # --- binding ---------------------------------------------------------------------------------

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Check the options, and that nothing bypasses the guard.

        This is not in ``on_bound``: a class with its own need not call super.

        Raises:
            ConfigurationError: one of them is wrong.
        """
        bound = super().bind(app)
        cls._idempotency = None
        if cls.run is not Task.run:
            # An instance that was registered without a name got this one; its class has none.
            name = cls.name or app.gen_task_name(cls.__name__, cls.__module__)
            if not name.startswith("celery."):
                check_class(cls, IdempotentTask, name)
                cls._idempotency = task_setup(cls, app, _METHODS, name)
                cls._idempotency_of = name
                if cls.track_started:
                    cls.track_started = StartedLater()
                cls.throws = _with_expected(cls.throws)
                install(app)
        return bound

    @property
    def __trace__(self) -> Any:
        return self.__dict__.get("_idempotent_trace")

    @__trace__.setter
    def __trace__(self, tracer: Any) -> None:
        watch_body(self, IdempotentTask)
        if tracer is not None:
            tracer = callbacks.traced(callbacks.without_frames(tracer))
        self.__dict__["_idempotent_trace"] = tracer

    # --- publishing ------------------------------------------------------------------------------

    if TYPE_CHECKING:

        def s(self, *args: Any, **kwargs: Any) -> KeyedSignature[R]:
            """Return a signature of a call, as Celery's."""

        def si(self, *args: P.args, **kwargs: P.kwargs) -> KeyedSignature[R]:
            """Return an immutable signature of a call, as Celery's."""

        def signature(self, args: Any = None, *more: Any, **options: Any) -> KeyedSignature[R]:
            """Return a signature of a call with its options, as Celery's."""

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        idempotency_key: str | EllipsisType | None = ...,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Publish a call, as Celery does; ``idempotency_key`` is an explicit key for this call.

        With ``idempotency_key=None`` the call is not deduplicated. With
        ``idempotency_on_enqueue`` ``"attach"`` or ``"raise"`` a duplicate of a call that is queued,
        under way or done is not published, where that is safe: the first call's result is returned,
        or, with ``"raise"`` and a first call that is not done, an error is raised.

        Raises:
            ConfigurationError: ``options`` has an unknown ``idempotency_*``.
            KeyDerivationError: no key can be derived; nothing is published.
            IdempotencyInProgress: the first call is not done; the error has its ``task_id`` and its
                ``result``. Nothing is published.
        """
        # Passed on by name, so that other base classes accept it.
        named = {"producer": producer, "link": link, "link_error": link_error, "shadow": shadow}
        options.update({name: value for name, value in named.items() if value is not None})
        call_id, headers, call_key = self._addressed(
            args, kwargs, task_id, idempotency_key, headers, options
        )
        publish = functools.partial(
            super().apply_async, args, kwargs, task_id=call_id, headers=headers, **options
        )
        return self._publish(publish, call_key, call_id, options, named=task_id is not None)

    def _publish(
        self,
        publish: Callable[[], Any],
        call_key: CallKey | None,
        call_id: str,
        options: Mapping[str, Any],
        *,
        named: bool,
        raises: bool = True,
    ) -> Any:
        """Publish a call; where the task reserves its keys, unless another takes its place.

        Args:
            named: whether its caller chose its id.
        """
        setup = self._setup()
        # What goes on with a call that was delivered reserves no key.
        again = goes_on(options.get("retries"), options.get("replaced_task_nesting"))
        if call_key is None or setup is None or not setup.reserves or again:
            return publish()
        attaches = not named and not any(map(options.get, _COMPOSED))
        return publish_reserved(
            self, setup, call_key, call_id, options, publish, attaches=attaches, raises=raises
        )

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Publish a call once Django's transaction is committed: see ``apply_async_on_commit``."""
        self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        idempotency_key: str | EllipsisType | None = ...,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Publish a call once Django's transaction is committed, as Celery's ``DjangoTask`` does.

        The call gets its key now, from the context of its caller, and its errors are raised now,
        while the transaction can still be rolled back. With ``idempotency_on_enqueue`` set to
        ``"attach"`` or ``"raise"`` a duplicate is left out after the commit, without an error.

        Raises:
            ConfigurationError: ``options`` has an unknown ``idempotency_*``, or Django is not
                installed.
            KeyDerivationError: no key can be derived.
        """
        try:
            from django.db import transaction
        except ImportError as exc:
            raise ConfigurationError(
                f"task {self.name!r}: there is no Django here, and no transaction to wait for: use "
                "delay() or apply_async()"
            ) from exc
        named = {"producer": producer, "link": link, "link_error": link_error, "shadow": shadow}
        options.update({name: value for name, value in named.items() if value is not None})
        call_id, headers, call_key = self._addressed(
            args, kwargs, task_id, idempotency_key, headers, options
        )
        # Its headers have the key already, so this one reserves nothing.
        publish = functools.partial(
            self.apply_async, args, kwargs, task_id=call_id, headers=headers, **options
        )
        transaction.on_commit(
            functools.partial(
                self._publish,
                publish,
                call_key,
                call_id,
                options,
                named=task_id is not None,
                raises=False,
            )
        )

    def apply(
        self,
        args: Any = None,
        kwargs: Any = None,
        *more: Any,
        task_id: str | None = None,
        idempotency_key: str | EllipsisType | None = ...,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run a call in this process, guarded. It can't wait: a busy key raises.

        Raises:
            ConfigurationError: ``options`` has an unknown ``idempotency_*``.
            KeyDerivationError: no key can be derived.
        """
        watch_body(self, IdempotentTask)
        task_id, headers, _ = self._addressed(
            args, kwargs, task_id, idempotency_key, headers, options
        )
        return super().apply(args, kwargs, *more, task_id=task_id, headers=headers, **options)

    def _addressed(
        self,
        args: Any,
        kwargs: Any,
        task_id: str | None,
        explicit: str | EllipsisType | None,
        headers: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> tuple[str, Mapping[str, Any] | None, CallKey | None]:
        """Return a call's task id, its headers with its key in them, and that key."""
        check_call(options, f"task {self.name!r}")
        args, kwargs, setup = args or (), kwargs or {}, self._setup()
        # Celery takes a UUID; all else here, and other brokers, take text.
        task_id = str(task_id or id_of_call(self, setup, args, kwargs, explicit) or uuid())
        return task_id, *with_key(self, setup, args, kwargs, task_id, explicit, headers)

    def _setup(self) -> TaskSetup | None:
        setup = self._idempotency
        if setup is not None and self._idempotency_of == self.name:
            return setup
        self._get_app()  # binds a class that was not registered
        if self._idempotency is not None and self._idempotency_of != self.name and self.name:
            setup = task_setup(type(self), self.app, _METHODS, self.name)
            self.__dict__.update(_idempotency=setup, _idempotency_of=self.name)
        return self._idempotency

    # --- delivery --------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        request = self.request
        if request.called_directly or "_idempotency" in request.__dict__:
            # A direct call, or one from inside the body: Celery gives it a request of its own.
            return run_without_claim(super().__call__, *args, **kwargs)
        setup = self._setup()
        state = request._idempotency = RequestState()
        if setup is None or setup.options.mode == "off":
            with suppress(KeyDerivationError):
                own = read_own(vars(request), request.id)
                if own is not None:
                    ignore_what_is_not_to_run(request, own[1])
            say_started(self, request)
            return run_without_claim(super().__call__, *args, **kwargs)
        # Celery sets this in super().__call__, for calls from inside the body.
        request._protected = 1
        delivery = None
        try:
            delivery = Delivery.of(self, setup, request, state, args, kwargs)
        except TypeError:
            if _fits(self.run, args, kwargs):
                raise  # its declared arguments are not those that it takes: no key can be derived
            return self.run(*args, **kwargs)  # raises the same, in words that Celery users know
        except KeyDerivationError as exc:
            if setup.options.mode != "shadow":
                raise
            log.warning("shadow: %s[%s] would fail: %s", self.name, request.id, exc)
            state.call = None, WaitState()
        if delivery is None:
            say_started(self, request)
            return run_without_claim(self.run, *args, **kwargs)
        return guard(delivery, args, kwargs)

    def _key_of(
        self, request: Any, args: Sequence[Any], kwargs: Mapping[str, Any], task_id: str
    ) -> CallKey | None:
        own, setup = read_own(vars(request), request.id), self._setup()
        if own is None and setup is not None:
            own = identify(self, setup, request, args, kwargs, task_id)
        return None if own is None else own[0]

    def _record_key(
        self, request: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str | None:
        """Return the name of a delivery's record, for the worker's parent process.

        ``None``: it has none, or ``idempotency_mode`` is ``"off"``, and the store is left alone.
        """
        setup = self._setup()
        is_off = setup is None or setup.options.mode == "off"
        call_key = None if is_off else self._key_of(request, args, kwargs, request.id)
        if call_key is None:
            return None
        return record_key(environment_of(self.app).prefix, call_key)

    @property
    def idempotency(self) -> RunContext:
        """The run that asks: its key, token, attempt, and more.

        Raises:
            ConfigurationError: a thread that runs no task asks, while another runs this one's body.
        """
        request = self.request
        if self.request_stack.top is None:
            if self.app.current_task is None and is_under_way(self):
                raise ConfigurationError(
                    f"task {self.name!r}: self.idempotency was read in a thread that the body "
                    "started, and is not known there: read it in the body, run = self.idempotency, "
                    "and have its threads use run"
                )
            return self._unguarded(request)  # outside of any call
        state = state_of(request)
        if state is None:
            if not request.called_directly:
                return self._unguarded(request)  # a handler that is called before the guard
            state = request._idempotency = RequestState()
        if not isinstance(state.context, RunContext):
            made = state.context
            state.context = self._unguarded(request) if made is None else made()
        return state.context

    def _unguarded(self, request: Any) -> RunContext:
        task_id = request.id or uuid()
        try:
            call_key = self._key_of(request, request.args or (), request.kwargs or {}, task_id)
        except (TypeError, KeyDerivationError):
            call_key = None
        setup, began = self._setup(), ""
        if setup is not None and not setup.options.ttl:
            began = Owner(task_id).pack().hex()
        return RunContext(
            key=None if call_key is None else call_key.key,
            identity=task_id if call_key is None else identity_of(call_key, began),
            owner_id=request.id,
            retries=request.retries if type(request.retries) is int else 0,
            why=self._why_unguarded(request),
            store=lambda: environment_of(self.app).store,
        )

    def _why_unguarded(self, request: Any) -> str:
        setup = self._setup()
        if request.called_directly:
            return "it was called directly"
        if setup is None or setup.options.mode == "off":
            return "idempotency_mode is 'off'"
        state = state_of(request)
        if state is None or state.call is None or state.call[0] is None:
            return "its call has no key"
        return (
            "its body did not run: the call is a duplicate that is answered, waits, or is refused"
        )

    # --- for clients -----------------------------------------------------------------------------

    def idempotency_key_for(
        self, *args: Any, idempotency_key: str | EllipsisType | None = ..., **kwargs: Any
    ) -> str | None:
        """Return the key of a call with these arguments; ``None``: it isn't deduplicated.

        It is the key of a call that is made here: within :func:`.use_idempotency_key`, or a request
        with a key, it is joined with that key. The same goes for the next two methods.

        Raises:
            KeyDerivationError: no key can be derived.
        """
        call_key = self._call_key(args, kwargs, idempotency_key)
        return None if call_key is None else call_key.key

    def idempotency_record(
        self, *args: Any, idempotency_key: str | EllipsisType | None = ..., **kwargs: Any
    ) -> Record | None:
        """Read the record of a call; ``None`` where there is none.

        Raises:
            KeyDerivationError: the call has no key that can be derived.
            StoreUnavailable: the store does not answer.
            RecordCorrupt: the record can't be read.
        """
        call_key = self._call_key(args, kwargs, idempotency_key)
        if call_key is None:
            return None
        environment = environment_of(self.app)
        return environment.store.get(record_key(environment.prefix, call_key))

    def forget(
        self, *args: Any, idempotency_key: str | EllipsisType | None = ..., **kwargs: Any
    ) -> bool:
        """Free the key of a call, so that the next one runs; return whether there was a record.

        A run that is under way goes on, but its outcome is refused.

        Raises:
            KeyDerivationError: the call has no key that can be derived.
            StoreUnavailable: the store does not answer.
        """
        call_key = self._call_key(args, kwargs, idempotency_key)
        if call_key is None:
            return False
        environment = environment_of(self.app)
        key = record_key(environment.prefix, call_key)
        forgotten = environment.store.forget(key, int(environment.horizon * 1000))
        if forgotten:
            environment.journal.write("forgotten", key, self.name, None, via="task.forget()")
        return forgotten

    def _call_key(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        explicit: str | EllipsisType | None,
    ) -> CallKey | None:
        setup = self._setup()
        if setup is None or explicit is None:
            return None
        if explicit is ...:
            call_key = setup.scheme.derive(args, kwargs, task=self)
            return joined_with_context(self, setup, call_key)
        if not args and not kwargs:
            return setup.scheme.named(explicit)
        return setup.scheme.derive(args, kwargs, explicit=explicit, task=self)


def _with_expected(throws: Any) -> tuple[Any, ...]:
    """Add to a task's ``throws`` what Celery is to log in one line, without a traceback."""
    known = throws if isinstance(throws, tuple) else (throws,) if throws else ()
    return (*known, *(it for it in _EXPECTED if it not in known))


def _fits(run: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of exactly this function gets as far as its body."""
    try:
        inspect.signature(run, follow_wrapped=False).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:
        pass  # it has no readable signature
    return True


#: Errors that are no fault of the task: its caller is told what another call does, or did.
_EXPECTED = (IdempotencyInProgress, IdempotencyKeyMismatch)

#: With any of these a call is a part of something else, which needs its message.
_COMPOSED = ("link", "link_error", "chain", "chord", "group_id")


#: What begins with ``idempotency_`` on a task, and is no option.
_METHODS = frozenset(
    name
    for name in vars(IdempotentTask)
    if name.startswith("idempotency_") and name not in option_names()
)
