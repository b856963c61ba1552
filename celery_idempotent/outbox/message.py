"""A call in the outbox: a task's signature with its key and times, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from numbers import Real
from typing import Any, Final

from celery.canvas import Signature
from kombu.utils import json
from kombu.utils.uuid import uuid

from celery_idempotent.core.message import OWN, explicit_key
from celery_idempotent.core.options import check_call
from celery_idempotent.delivery.waiting import publish_again
from celery_idempotent.errors import ConfigurationError
from celery_idempotent.publishing import id_of_call, new_header, with_key
from celery_idempotent.task import IdempotentTask

#: The longest task id, in characters.
LONGEST_ID: Final = 255

# kombu has no types for this.
_json: Any = json

_COMPOSED: Final = ("celery.chain", "celery.group", "celery.chord")


@dataclass(frozen=True)
class PendingCall:
    """One call that waits in the outbox, ready to be sent."""

    task_id: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    #: The other arguments of ``apply_async``: queue, eta, priority, headers, link, ...
    options: dict[str, Any]
    #: Whether its id comes from a request's key: then a waiting row with this id is the same call.
    is_of_request: bool = False

    @classmethod
    def of(cls, signature: Any) -> PendingCall:
        """Make it of a signature: settle its task id, its key and when it is due.

        Raises:
            ConfigurationError: it has an ``idempotency_*`` option that a call can't have, or a key
                whose task is not an ``IdempotentTask``.
            KeyDerivationError: its key can't be derived.
            TypeError: it is not the signature of one task, or its arguments don't fit.
        """
        if not isinstance(signature, Signature):
            raise TypeError(f"outbox.publish() takes a signature, task.s(...), not {signature!r}")
        if signature.task in _COMPOSED:
            raise TypeError(
                f"outbox.publish() takes the signature of one task, not a {signature.task}: "
                "publish the members one by one, or the first task with the others as its link"
            )
        app = signature.app
        options = dict(signature.options)
        args, kwargs = list(signature.args), dict(signature.kwargs)
        task = app.tasks.get(signature.task)
        chosen, of_request = options.pop("task_id", None), None
        if chosen is None and isinstance(task, IdempotentTask):
            explicit = options.get("idempotency_key", ...)
            of_request = id_of_call(task, task._setup(), args, kwargs, explicit)
        task_id = str(chosen or of_request or uuid())
        if len(task_id) > LONGEST_ID:
            raise TypeError(f"a task id in the outbox has at most {LONGEST_ID} characters")
        if isinstance(task, IdempotentTask):
            check_call(options.keys() - {"idempotency_key"}, f"task {signature.task!r}")
            options["headers"] = _with_key(task, args, kwargs, task_id, options)
        elif "idempotency_key" in options:
            raise ConfigurationError(
                f"task {signature.task!r}: this app has no IdempotentTask of this name, so that "
                "nothing reads idempotency_key: if another app has the task, set "
                "headers={'idempotency-key': ...}"
            )
        elif task is not None and task.typing:
            task.__header__(*args, **kwargs)  # raises TypeError, as apply_async does
        _settle_times(app, options)
        options.setdefault(
            "reply_to", app.thread_oid
        )  # the result is for this process, not the relay
        parent = app.current_worker_task
        if parent is not None:
            options.setdefault("root_id", parent.request.root_id or parent.request.id)
            options.setdefault("parent_id", parent.request.id)
        return cls(task_id, signature.task, args, kwargs, options, of_request is not None)

    def published(self, app: Any) -> Any:
        """Return its result, and list it among the children of the task that publishes it."""
        result = app.AsyncResult(self.task_id)
        parent = app.current_worker_task
        if parent is not None and self.options.get("add_to_parent", True):
            parent.add_trail(result)
        return result

    @property
    def route(self) -> str:
        """A text that is equal for calls that go to the same queue."""
        names = ("queue", "exchange", "routing_key")
        return repr((self.task, *(self.options.get(name) for name in names)))

    def to_json(self) -> str:
        """Return arguments and options as text.

        Raises:
            TypeError: an argument or option can't be written as JSON.
        """
        for name, part in (
            *((f"argument {number + 1}", value) for number, value in enumerate(self.args)),
            *((f"argument {name!r}", value) for name, value in self.kwargs.items()),
            *((f"option {name!r}", value) for name, value in self.options.items()),
        ):
            try:
                _json.dumps(part, default=_plain)
            except (TypeError, ValueError) as exc:
                raise TypeError(
                    f"{self.task}: {name} can't be kept in the outbox, which keeps calls as JSON: "
                    f"{exc}"
                ) from exc
        kept = {"args": self.args, "kwargs": self.kwargs, "options": self.options}
        return str(_json.dumps(kept, default=_plain))

    @classmethod
    def from_row(cls, task_id: str, task: str, text: str) -> PendingCall:
        """Read what :meth:`to_json` returned.

        Raises:
            ValueError, LookupError: the text can't be read.
        """
        kept = _json.loads(text)
        return cls(task_id, task, kept["args"], kept["kwargs"], kept["options"])

    def send(self, app: Any, producer: Any) -> None:
        """Publish the call once, without retries."""
        task = app.tasks.get(self.task)
        more = {**self.options, "task_id": self.task_id, "producer": producer, "retry": False}
        if task is None:
            app.send_task(self.task, self.args, self.kwargs, **more)
        elif isinstance(task, IdempotentTask):
            publish_again(task, self.args, self.kwargs, **more)  # it was enqueued with its row
        else:
            task.apply_async(self.args, self.kwargs, **more)


def _plain(value: Any) -> Any:
    """Return a form of a value that JSON can hold: dates and such as kombu does, and models."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return _json.JSONEncoder().default(value)


def _with_key(
    task: IdempotentTask,
    args: list[Any],
    kwargs: dict[str, Any],
    task_id: str,
    options: dict[str, Any],
) -> Mapping[str, Any] | None:
    """Return the call's headers with its key; a task without a key of its own gets its id."""
    explicit = options.pop("idempotency_key", ...)
    setup = task._setup()
    given: Mapping[str, Any] | None = options.get("headers")
    headers, call_key = with_key(task, setup, args, kwargs, task_id, explicit, given)
    if setup is None or call_key is None or setup.options.key is not None:
        return headers
    chosen = explicit is not ... or explicit_key(given) is not None
    if chosen or call_key != setup.scheme.derive(args, kwargs, task_id=task_id, task=task):
        return headers  # the call, or its context, has a key
    key, label = setup.scheme.identity(task_id)
    own = new_header(task_id, call_key._replace(key=key, label=label))
    return {**(headers or {}), OWN: own}


def _settle_times(app: Any, options: dict[str, Any]) -> None:
    """Count from now, as without an outbox, and not from when a relay sends it."""
    countdown = options.pop("countdown", None)
    if countdown:
        options["eta"] = app.now() + timedelta(seconds=float(countdown))
    expires = options.get("expires")
    if isinstance(expires, Real):
        options["expires"] = app.now() + timedelta(seconds=float(expires))
