"""Calls as producers make them, and as workers claim them."""

from kombu.utils.uuid import uuid

from celery_idempotent import IdempotentTask, State
from celery_idempotent.core.keys import Owner, record_key
from celery_idempotent.core.message import OWN
from celery_idempotent.core.record import Record
from celery_idempotent.core.reservation import queued_key
from celery_idempotent.core.verdicts import Claim, Settle
from celery_idempotent.settings import environment_of


def task_of(app, **options):
    """A task whose duplicates are stopped when they are made."""

    @app.task(
        base=IdempotentTask,
        **{
            "idempotency_key": "order:{order_id}",
            "idempotency_on_enqueue": "attach",
            "name": "charge",
            **options,
        },
    )
    def charge(order_id, amount=1):
        return amount

    return charge


def keys(published):
    return [headers[OWN]["key"] for _, _, headers in published]


def key_of(task, *args, explicit=...):
    """The name of a call's record."""
    return record_key(environment_of(task.app).prefix, task._call_key(args, {}, explicit))


def first(charge, store, *args, until_ms=30_000, state=None, outcome=b"", explicit=..., label=""):
    """Claim the key of a call, as its worker would; give the task id."""
    task_id = uuid()
    call_key = charge._call_key(args, {}, explicit)
    key = record_key(environment_of(charge.app).prefix, call_key)
    candidate = Record(
        State.RUNNING,
        0,
        owner=Owner(task_id).pack(),
        fingerprint=call_key.fingerprint,
        label=label,
    )
    ask = Claim(candidate, until_ms, 86_400_000, queued_key=queued_key(key))
    claimed = store.claim(key, ask)
    if state is not None:
        record = Record(
            state,
            claimed.token,
            owner=candidate.owner,
            fingerprint=call_key.fingerprint,
            label=label,
            outcome=outcome,
        )
        store.settle(key, Settle(record, until_ms, 86_400_000))
    return task_id
