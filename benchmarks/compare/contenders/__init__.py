"""The contenders: their purposes and their apps."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONTENDERS", "Contender"]


@dataclass(frozen=True)
class Contender:
    """One column of the comparison."""

    #: The name of its module here, and on the command line.
    name: str
    title: str
    #: The distribution whose version is reported.
    distribution: str
    #: Its purpose, in the terms of its own documentation.
    purpose: str
    #: Glob patterns of its locks in Redis, to read their time to live.
    lock_keys: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module with its app and its tasks."""
        return f"benchmarks.compare.contenders.{self.name}"


CONTENDERS = (
    Contender(
        "plain",
        "plain Celery",
        "celery",
        "Nothing against duplicates: the measure for the rest.",
    ),
    Contender(
        "celery_setting",
        "worker_deduplicate_successful_tasks",
        "celery",
        "A redelivery of one message is skipped if that message's task has succeeded. "
        "Two calls are two tasks.",
    ),
    Contender(
        "once",
        "celery-once",
        "celery-once",
        "A lock taken at the enqueue: a task isn't queued while the same one is queued or runs.",
        ("qo_*",),
    ),
    Contender(
        "singleton",
        "celery-singleton",
        "celery-singleton",
        "A lock taken at the enqueue: a second call gets the AsyncResult of the one "
        "that is queued or runs.",
        ("SINGLETONLOCK_*",),
    ),
    Contender(
        "heimdall",
        "celery-heimdall",
        "celery-heimdall",
        "A lock taken at the enqueue and looked at again by the worker: one copy of a task "
        "at a time.",
        ("order:*", "h-lock:*"),
    ),
    Contender(
        "heimdall_interval",
        "celery-heimdall, wait for expiry",
        "celery-heimdall",
        "The same, with the lock kept after the task has finished: once in an interval.",
        ("order:*", "h-lock:*"),
    ),
    Contender(
        "fencekit",
        "fencekit",
        "fencekit",
        "A guard and a lock under a Celery task: one run of a key, its result kept, and a token "
        "for the writes of its body.",
    ),
    Contender(
        "idemkit",
        "idemkit",
        "idemkit",
        "A record for each call of a function, with a lease that is renewed: a duplicate waits "
        "for the result, or gets the one that is kept.",
    ),
    Contender(
        "powertools",
        "AWS Powertools",
        "aws-lambda-powertools",
        "A record for each call of a function on Lambda: a duplicate gets the result that is kept.",
    ),
    Contender(
        "idempotent",
        "celery-idempotent",
        "celery-idempotent",
        "A record for each key, claimed by the worker: one accepted run in the window, "
        "and every duplicate gets its outcome.",
    ),
)
