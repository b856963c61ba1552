"""What a message asks of the store: who it is, which record, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_idempotent.core.keys import CallKey, record_key
from celery_idempotent.core.message import MAX_DEATHS, WaitState, deaths_of
from celery_idempotent.core.options import Options
from celery_idempotent.core.record import Label, Owner, Record
from celery_idempotent.core.slip import Slip, slip_key
from celery_idempotent.delivery import callbacks
from celery_idempotent.delivery.waiting import ignores_result
from celery_idempotent.errors import KeyDerivationError
from celery_idempotent.run.claimant import Claimant, Terms
from celery_idempotent.settings import Environment, TaskSetup

__all__ = [
    "awaiting",
    "identity_of",
    "is_redelivered",
    "owner_of",
    "store_call",
    "trace_of",
]

#: What a record has room for.
_MOST = 2**32 - 1

#: Gives the current span as text, where traces are kept (ops.tracing): a record then says where its
#: run is traced, in a third line of its label.
where_traced: Callable[[], str] | None = None


def trace_of(record: Record) -> str | None:
    """Give where a record's run is traced, if that is kept."""
    return Label.of(record).trace or None


def owner_of(request: Any) -> Owner:
    """Give who would own the claim of this message.

    Raises:
        KeyDerivationError: its headers say something else than Celery does.
    """
    nesting = request.replaced_task_nesting
    return Owner(str(request.id), _count(request, "replaced_task_nesting") if nesting else 0)


def _count(request: Any, name: str) -> int:
    value = getattr(request, name)
    if type(value) is int and 0 < value <= _MOST:
        return value
    raise KeyDerivationError(
        f"the message's {name!r} header is {str(value)[:100]!r}, and must be a number of times: "
        "only Celery should write it"
    )


def identity_of(call_key: CallKey) -> str:
    """Give what keys for downstream APIs are derived from: the same wherever the call runs."""
    return record_key("effect", call_key)


def _is_alone(task: Any, request: Any) -> bool:
    """Whether the call may end without a result that others could have, too."""
    return bool(request.expires) or ignores_result(task, request)


def store_call(
    task: Any,
    setup: TaskSetup,
    environment: Environment,
    request: Any,
    call_key: CallKey,
    waits: WaitState,
) -> Claimant:
    """Give what a delivery of this message asks of the store.

    Raises:
        KeyDerivationError: its headers say something else than Celery does.
    """
    terms = environment.terms.get(setup)
    if terms is None:
        terms = environment.terms[setup] = _terms(setup.options, environment)
    key = record_key(environment.prefix, call_key)
    label = call_key.label
    traced = where_traced() if where_traced is not None else ""
    alone = setup.options.on_enqueue == "attach" and _is_alone(task, request)
    if label or traced or alone or call_key.namespace != task.name:
        label = Label(task.name, label, traced, alone).text()
    owner = owner_of(request)
    retries = _count(request, "retries") if request.retries else 0
    eager = bool(request.is_eager)  # no copy of it can come
    called_back = not eager and callbacks.has_callbacks(request)
    return Claimant(
        terms,
        key,
        owner.pack(),
        retries,
        call_key.fingerprint,
        call_key.checked,
        label,
        "" if eager else slip_key(key, owner),
        Slip(
            deaths=min(waits.deaths + deaths_of(vars(request)), MAX_DEATHS),
            retries=retries,
            publication=waits.publication.encode(),
            digests=(waits.callbacks or callbacks.digest_of(request)) if called_back else b"",
        ),
        called_back,
        not (waits.publication or waits.count or is_redelivered(request)),
        waits.patient_until_ms,
        waits.compensates_only,
    )


def is_redelivered(request: Any) -> bool:
    """Whether the broker says that it delivers the message again."""
    return bool((request.delivery_info or {}).get("redelivered"))


def _terms(options: Options, environment: Environment) -> Terms:
    # With reconcile, what cut a run off is looked into before anybody calls it unknown.
    unknown = options.on_interrupted == "unknown" and options.reconcile is None
    return Terms.of(
        environment.store,
        lease_s=options.lease,
        ttl_s=options.ttl,
        horizon_s=environment.horizon,
        max_interruptions=0 if unknown else options.max_interruptions,
        max_compensations=options.max_interruptions,
    )


def awaiting(call: Claimant, awaited: tuple[str, int]) -> Claimant:
    """Give the call of a message that has waited for the run of ``awaited``."""
    owner = Owner(*awaited)
    return call._replace(awaited=owner.pack(), awaited_key=slip_key(call.key, owner))
