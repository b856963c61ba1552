"""What Celery publishes again for a task: it keeps its key, and no broker that is away loses it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from celery import Task
from celery.canvas import Signature
from celery.exceptions import Reject, Retry
from celery.utils.log import get_logger

from celery_idempotent.core.message import OWN, ours_in, own_header, without_deaths
from celery_idempotent.core.options import check_call
from celery_idempotent.delivery.callbacks import AFTER_TRACE
from celery_idempotent.delivery.delivery import ignores_result, state_of
from celery_idempotent.delivery.origin import origin_of
from celery_idempotent.delivery.untold import AnsweringBackend
from celery_idempotent.delivery.waiting import (
    WithoutRetry,
    back_to_broker,
    broker_is_away,
    publish_again,
)
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.settings import environment_of

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, TypeVar

    P = ParamSpec("P", default=...)
    R = TypeVar("R", default=Any, covariant=True)

    class TypedTask(Task[P, R]):
        """A task with its parameters and its result, where celery-types is installed."""
else:
    from types import GenericAlias
    from typing import ParamSpec, TypeVar

    P, R = ParamSpec("P"), TypeVar("R")

    class TypedTask(Task):
        """Celery's task, which has no parameters in older releases."""

        abstract = True
        __class_getitem__ = classmethod(GenericAlias)


log = get_logger("celery_idempotent")

#: What says where a message goes.
_ROUTING: Final = ("queue", "exchange", "routing_key")


class SameMessage(Signature):
    """A call's own message: its next attempt, or its next look at a key that is busy."""

    def apply_async(
        self, args: Any = None, kwargs: Any = None, route_name: Any = None, **options: Any
    ) -> Any:
        """As Celery's, past the ``apply_async`` of every other class: see :func:`publish_again`."""
        whole = self.clone(args, kwargs, **options) if args or kwargs or options else self
        return publish_again(self.type, whole.args, whole.kwargs, **whole.options)


class RetryingTask(TypedTask[P, R]):
    """A task whose retries keep their keys, and whose RETRY is never stored over an answer."""

    abstract = True

    @property
    def backend(self) -> Any:
        """As Celery's; for the tracer, one that stores no RETRY, or loses no answer."""
        backend = self.app.backend if self._backend is None else self._backend
        after = AFTER_TRACE.get()
        if after is None:
            return backend
        if after.stores_no_retry:
            backend = WithoutRetry(backend)
        return backend if after.answered is None else AnsweringBackend(backend, after.answered)

    @backend.setter
    def backend(self, value: Any) -> None:
        self._backend = value

    def signature_from_request(
        self, request: Any = None, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """As Celery's; a message that is published again keeps its key, whatever its headers.

        And its queue, where Celery would send it to the task's.
        """
        request = self.request if request is None else request
        # The caller's choice; Celery before 5.7 takes the task's.
        options.setdefault("ignore_result", ignores_result(self, request))
        given = options.get("headers")
        known = state_of(request)
        ours = ours_in(vars(request))
        if known is not None and known.call is not None:
            call_key, waits = known.call
            ours[OWN] = own_header(request.id, call_key, waits.retried())
        if ours:
            if given is None:
                given = {**(request.headers or {}), **ours}
            # Celery 5.5 leaves in what RabbitMQ wrote of the queues in which the message expired.
            options["headers"] = without_deaths({**ours, **given})
            if not any(map(options.get, _ROUTING)):
                natively = environment_of(self.app).whole_seconds
                origin = origin_of(self.app, request.delivery_info, natively)
                # Each worker that got the last attempt gets the next one: one of them may be gone.
                if origin.reaches_all or not origin.is_fanned_out:
                    options.update(origin.route)
        same = super().signature_from_request(request, args, kwargs, **options)
        return SameMessage(self, same.args, same.kwargs, same.options, app=self.app)

    def replace(self, sig: Any) -> Any:
        """As Celery's; a run that lost its key publishes nothing under the id of its call.

        Raises:
            ClaimLost: another delivery has taken over, and answers the call.
        """
        context = self.idempotency
        if context.token is not None:
            with suppress(StoreUnavailable):  # nobody knows: as in plain Celery
                context._check_unanswered()
        return super().replace(sig)

    def retry(
        self, args: Any = None, kwargs: Any = None, exc: Any = None, *more: Any, **options: Any
    ) -> Any:
        """As Celery's; where the broker is away the message goes back to it, and comes again.

        Celery drops it there: it could not publish the next attempt, and rejects this one.

        The next attempt answers the call, also where the body goes on after this (``throw=False``)
        or catches the exception. What it returns or raises then is not told as the call's outcome.

        Raises:
            ConfigurationError: ``options`` has an ``idempotency_*``: a retry keeps its call's key.
        """
        check_call(options, f"a retry of task {self.name!r}", key=False)
        request, published = self.request, None
        try:
            published = super().retry(args, kwargs, exc, *more, **options)
            return published
        except Retry as raised:
            published = raised
            raise
        except Reject as rejected:
            ours = rejected is not exc and not rejected.requeue
            if not (ours and self.acks_late and broker_is_away(rejected.reason)):
                raise
            log.warning(
                "%s[%s] could not publish its retry, and comes again", self.name, self.request.id
            )
            raise back_to_broker(rejected.reason, 1.0) from rejected.reason
        finally:
            state = state_of(request)
            # An eager call publishes nothing, and neither does one that is made directly.
            sent = published is not None and published.sig is not None and not request.is_eager
            if state is not None and sent:
                state.retry = published
