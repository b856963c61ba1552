"""Celery tasks that run once per key: what users import, and nothing else.

Names are looked up when they are first asked for, so that importing a part of the library (its
errors, the pytest plugin) does not import Celery.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_idempotent.core.keys import MESSAGE_ID
    from celery_idempotent.core.options import RERUN, UNKNOWN
    from celery_idempotent.core.record import Record, State
    from celery_idempotent.errors import (
        ClaimLost,
        ConfigurationError,
        IdempotencyError,
        IdempotencyInProgress,
        IdempotencyKeyMismatch,
        KeyDerivationError,
        OutcomeUnknown,
        RecordCorrupt,
        RecordTooNew,
        ResultNotKept,
        StoreError,
        StoreUnavailable,
        UnknownStep,
    )
    from celery_idempotent.publishing import use_idempotency_key
    from celery_idempotent.task import IdempotentTask

__all__ = [
    "MESSAGE_ID",
    "RERUN",
    "UNKNOWN",
    "ClaimLost",
    "ConfigurationError",
    "IdempotencyError",
    "IdempotencyInProgress",
    "IdempotencyKeyMismatch",
    "IdempotentTask",
    "KeyDerivationError",
    "OutcomeUnknown",
    "Record",
    "RecordCorrupt",
    "RecordTooNew",
    "ResultNotKept",
    "State",
    "StoreError",
    "StoreUnavailable",
    "UnknownStep",
    "use_idempotency_key",
]

__version__ = "0.1.0"

_HOMES = {
    "IdempotentTask": "task",
    "MESSAGE_ID": "core.keys",
    "RERUN": "core.options",
    "UNKNOWN": "core.options",
    "Record": "core.record",
    "State": "core.record",
    "use_idempotency_key": "publishing",
}


#: Parts of the library that are found after ``import celery_idempotent``, too.
_PARTS = ("errors", "outbox", "signals", "testing")


def __getattr__(name: str) -> object:
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
