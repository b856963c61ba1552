"""Every error that this library raises, under one root.

::

    IdempotencyError
    ├── ConfigurationError        an option is wrong; raised when the task is bound to its app
    ├── KeyDerivationError        the arguments have no canonical form, or the key is empty
    ├── IdempotencyKeyMismatch    an explicit key was sent again with other arguments
    ├── IdempotencyInProgress     another call with this key is still running
    ├── OutcomeUnknown            a run was interrupted and nobody knows how it ended
    ├── ResultNotKept             the call succeeded before, its result was not kept
    ├── ClaimLost                 this run's claim has been taken over, or there is none
    ├── UnknownStep               a call is to be resumed from a step that is not recorded
    └── StoreError
        ├── StoreUnavailable      the store cannot be reached or refuses to work now
        ├── RecordCorrupt         a stored record cannot be read
        └── RecordTooNew          a stored record was written by a newer version

Each takes one message, so that a result backend which keeps only the type and the arguments of an
exception gives the same error back to the caller.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ClaimLost",
    "ConfigurationError",
    "IdempotencyError",
    "IdempotencyInProgress",
    "IdempotencyKeyMismatch",
    "KeyDerivationError",
    "OutcomeUnknown",
    "RecordCorrupt",
    "RecordTooNew",
    "ResultNotKept",
    "StoreError",
    "StoreUnavailable",
    "UnknownStep",
]


class IdempotencyError(Exception):
    """The root: ``except IdempotencyError`` catches every error of this library."""


class ConfigurationError(IdempotencyError):
    """An option or a setting is wrong; the message names it and says what it may be."""


class KeyDerivationError(IdempotencyError):
    """No key can be derived from this call; the message names the argument."""


class IdempotencyKeyMismatch(IdempotencyError):
    """The key has been used for a call with other arguments: the body was not run."""


class IdempotencyInProgress(IdempotencyError):
    """A call with the same key is under way, and this one may not wait for it, or not any longer.

    Where ``apply_async`` raises it (``idempotency_on_enqueue = "raise"``), it names that call.
    """

    #: The task id of the call that is under way; ``None``: only the message says it.
    task_id: str | None = None
    #: Its ``AsyncResult``; ``None`` in a worker.
    result: Any = None

    @classmethod
    def of(cls, message: str, task_id: str, result: Any) -> IdempotencyInProgress:
        """Make the error of a call that is refused before it is published."""
        error = cls(message)
        error.task_id, error.result = task_id, result
        return error


class OutcomeUnknown(IdempotencyError):
    """A run with this key was interrupted: a person, or ``resolve``, must settle how it ended."""


class ResultNotKept(IdempotencyError):
    """The call succeeded and is not run again, but its result was too large or not serializable."""


class ClaimLost(IdempotencyError):
    """This run does not hold its key (any more): whatever it writes now may be a second effect."""


class UnknownStep(IdempotencyError):
    """A call is to be resumed from a step that is not recorded; the message names those that are.

    Nothing was changed. A release may have renamed the step.
    """


class StoppedAtCheckpoint(BaseException):
    """A run stops behind its checkpoint, as its worker shuts down; its message comes again.

    It is no :class:`Exception`, so that ``except Exception`` and ``autoretry_for`` let it pass.
    """


class StoreError(IdempotencyError):
    """Something is wrong with the store or with what it holds."""


class StoreUnavailable(StoreError):
    """The store did not answer, or can't work now; nothing is lost."""

    #: Whether the request may have been carried out all the same, because only its answer was lost.
    may_have_arrived = True
    #: Whether the server did answer, and refuses: waiting alone won't help.
    is_refusal = False
    #: The command that makes it work, where it did answer, and its tables or its file are missing.
    to_run = ""


class RecordCorrupt(StoreError):
    """A stored record cannot be read; ``forget`` frees its key."""


class RecordTooNew(StoreError):
    """A stored record was written by a newer version of this library: upgrade this worker."""


def missing_extra(exc: ImportError, what: str, extra: str) -> ImportError:
    """Return the error of a module whose extra is not installed: it says what to install.

    Args:
        exc: the import that failed.
        what: what asked for it, and its verb: ``"metrics need"``.
        extra: the extra of this package that brings it.
    """
    return ImportError(f"{what} {exc.name}: {how_to_install(extra)}", name=exc.name)


def how_to_install(extra: str) -> str:
    """Say how an extra of this package is installed: by name, or from a clone of the project."""
    return (
        f"install the extra {extra!r} (pip install 'celery-idempotent[{extra}]', or "
        f"pip install '.[{extra}]' in a clone of the project)"
    )
