"""Celery tasks that run once per key: what users import, and nothing else."""

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
    "use_idempotency_key",
]

__version__ = "0.1.0"
