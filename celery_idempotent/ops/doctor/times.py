"""Whether the times fit together: lease, window, visibility timeout, limits, retries and waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from celery import Task as CeleryTask

from celery_idempotent.core.options import Settings
from celery_idempotent.ops.doctor.findings import (
    ERROR,
    WARNING,
    Finding,
    Patient,
    Task,
    about,
    seconds,
)

#: What a store's client waits for an answer, unless ``idempotency_store_options`` says otherwise.
_SOCKET_TIMEOUT_S: Final = 2.0
_SHORTEST_LEASE_S: Final = 3.0
#: What RabbitMQ allows a consumer to hold a message for, unless it is configured otherwise.
_CONSUMER_TIMEOUT_S: Final = 1800.0
#: What no duplicate comes later than that does not come at the same time.
_SHORTEST_WINDOW_S: Final = 1.0
#: Time limits that are advised, the longest first.
_LIMITS_S: Final = (1200.0, 600.0, 300.0, 120.0, 60.0, 30.0, 10.0)
#: Pools that can't stop a body.
_ENFORCE_NONE: Final = ("threads", "solo", "eventlet")


def check_times(patient: Patient) -> Iterator[Finding]:
    """Check the times of all tasks."""
    yield from _lease(patient)
    yield from _limits(patient)
    if patient.environment.visibility:
        yield from _visibility(patient)
    yield from _window(patient)
    yield from _wait(patient)


def _lease(patient: Patient) -> Iterator[Finding]:
    options = Settings.from_lookup(patient.app.conf.get, "this app").store_options
    timeout = float(options.get("socket_timeout") or _SOCKET_TIMEOUT_S)
    least = max(_SHORTEST_LEASE_S, 3 * timeout)
    short = _those(patient, lambda task: task.options.lease < least)
    if short:
        lease = min(task.options.lease for task in short)
        yield Finding(
            "short-lease",
            WARNING,
            f"the lease is {seconds(lease)} ({about(short)})",
            "It is renewed three times in its length, and one answer of the store may take "
            f"{seconds(timeout)}: a healthy run loses its key, and another one begins.",
            "Lengthen idempotency_lease",
            f"idempotency_lease = {max(30.0, least):g}",
        )


def _limits(patient: Patient) -> Iterator[Finding]:
    endless = _those(patient, lambda task: patient.time_limit(task) is None)
    enforces = patient.pool_name not in _ENFORCE_NONE
    if not enforces and _those(patient, lambda _: True):
        yield Finding(
            "time-limit-not-enforced",
            WARNING,
            f"the pool {patient.pool_name} enforces no time limit, whatever task_time_limit says",
            "A body that hangs holds its key for ever: its process lives and renews the lease.",
            "Give each call to another service a timeout of its own, or take another pool",
            'worker_pool = "prefork"',
        )
    elif endless:
        yield Finding(
            "no-time-limit",
            WARNING,
            f"there is no time limit ({about(endless)})",
            "A body that hangs holds its key for ever: its process lives and renews the lease.",
            "Set a limit that no healthy run reaches",
            f"task_time_limit = {_fitting_limit(patient, endless):g}",
        )
    if patient.environment.visibility:
        return
    long = _those(patient, lambda task: (patient.time_limit(task) or 0) > _CONSUMER_TIMEOUT_S)
    if long and patient.speaks_amqp:
        most = max(patient.time_limit(task) or 0 for task in long)
        yield Finding(
            "consumer-timeout",
            WARNING,
            f"a run may take {seconds(most)} ({about(long)})",
            "RabbitMQ closes the channel of a worker that holds a message for longer than "
            "consumer_timeout, half an hour by default: all of its messages come again.",
            "Set, in rabbitmq.conf, in milliseconds (and accept this finding then)",
            f"consumer_timeout = {int(2 * most * 1000)}",
        )


def _fitting_limit(patient: Patient, tasks: list[Task]) -> float:
    """Return a time limit that leads to no other finding."""
    visibility = patient.environment.visibility
    turns = 1 + max(1, int(patient.app.conf.worker_prefetch_multiplier))

    def fits(limit: float) -> bool:
        return all(
            (not task.options.ttl or limit <= task.options.ttl)
            and (
                task.options.on_running == "raise"
                or limit + retries_horizon(task) <= task.options.wait_timeout
            )
            for task in tasks
        ) and not (visibility and limit * turns >= visibility)

    return next(filter(fits, _LIMITS_S), _LIMITS_S[-1])


def _visibility(patient: Patient) -> Iterator[Finding]:
    visibility = patient.environment.visibility
    leases = _those(patient, lambda task: task.options.lease >= visibility)
    if leases:
        least = 2 * max(task.options.lease for task in leases)
        yield Finding(
            "visibility-below-lease",
            ERROR,
            f"the visibility timeout is {seconds(visibility)}, not longer than the lease "
            f"({about(leases)})",
            "Every message comes again before its process can be known dead: its copies wait "
            "and come again, and crashed runs are counted that never were.",
            "Lengthen it, at the broker",
            _visibility_of(patient, max(3600.0, least)),
        )
    runs = _those(patient, lambda task: (patient.time_limit(task) or 0) >= visibility)
    if runs:
        most = max(patient.time_limit(task) or 0 for task in runs)
        yield Finding(
            "visibility-below-run",
            WARNING,
            f"a run may take {seconds(most)}, the visibility timeout is {seconds(visibility)} "
            f"({about(runs)})",
            "The message of a run that takes longer comes again while it runs; its copies wait, "
            "and go round until it ends.",
            "Lengthen it, at the broker, or shorten the time limit",
            _visibility_of(patient, 2 * most),
        )
    delayed = _those(patient, lambda task: longest_delay(task) >= visibility)
    if delayed:
        most = max(longest_delay(task) for task in delayed)
        yield Finding(
            "visibility-below-countdown",
            ERROR,
            f"a retry may be put off for {seconds(most)}, the visibility timeout is "
            f"{seconds(visibility)} ({about(delayed)})",
            "A worker holds such a message until it is due, and the broker gives it to another "
            "one meanwhile: it multiplies.",
            "Lengthen it, at the broker, or shorten the delay",
            _visibility_of(patient, 2 * most),
        )


def _window(patient: Patient) -> Iterator[Finding]:
    visibility = patient.environment.visibility
    tiny = _those(patient, lambda task: 0 < task.options.ttl < _SHORTEST_WINDOW_S)
    if tiny:
        yield Finding(
            "tiny-window",
            WARNING,
            f"outcomes are kept for {seconds(_shortest_window(tiny))} ({about(tiny)})",
            "It is too short to answer a duplicate that comes later, and duplicates that wait ask "
            "again that often.",
            "Use 0: the key is free when the run ends, and who waited for it gets its outcome",
            "idempotency_ttl = 0",
        )

    def is_below(task: Task, least: float) -> bool:
        # Without a window, what would come after it is meant to run.
        return _SHORTEST_WINDOW_S <= task.options.ttl < least

    late = _those(patient, lambda task: is_below(task, 2 * visibility))
    if late:
        yield Finding(
            "window-below-visibility",
            ERROR,
            f"outcomes are kept for {seconds(_shortest_window(late))}, and a copy of a message may "
            f"come after {seconds(2 * visibility)} ({about(late)})",
            "A copy that comes when the outcome is gone runs the task again.",
            "Lengthen idempotency_ttl",
            f"idempotency_ttl = {max(86_400.0, 4 * visibility):g}",
        )
    runs = _those(patient, lambda task: is_below(task, patient.time_limit(task) or 0))
    if runs:
        most = max(patient.time_limit(task) or 0 for task in runs)
        yield Finding(
            "window-below-run",
            WARNING,
            f"outcomes are kept for {seconds(_shortest_window(runs))}, and a run may take "
            f"{seconds(most)} ({about(runs)})",
            "A duplicate that stands in the queue behind as few as two such runs finds nothing, "
            "and runs again.",
            "Lengthen idempotency_ttl",
            f"idempotency_ttl = {max(86_400.0, 4 * most):g}",
        )
    retried = _those(patient, lambda task: is_below(task, retries_horizon(task)))
    if retried:
        most = max(retries_horizon(task) for task in retried)
        yield Finding(
            "window-below-retries",
            WARNING,
            f"outcomes are kept for {seconds(_shortest_window(retried))}, and retries may take "
            f"{seconds(most)} ({about(retried)})",
            "Who sends a call again goes on for as long as the task is retried, and a duplicate "
            "that is as late finds nothing, and runs again.",
            "Lengthen idempotency_ttl",
            f"idempotency_ttl = {max(86_400.0, 2 * most):g}",
        )


def _wait(patient: Patient) -> Iterator[Finding]:
    def needed(task: Task) -> float:
        return (patient.time_limit(task) or 0) + retries_horizon(task)

    short = _those(
        patient,
        lambda task: (
            task.options.on_running != "raise" and task.options.wait_timeout < needed(task)
        ),
    )
    if short:
        least = min(task.options.wait_timeout for task in short)
        most = max(needed(task) for task in short)
        yield Finding(
            "short-wait",
            WARNING,
            f"a duplicate waits for {seconds(least)}, and a call may take {seconds(most)} with its "
            f"retries ({about(short)})",
            "It fails with IdempotencyInProgress though the first call is well.",
            "Lengthen idempotency_wait_timeout, or shorten the time limit",
            f"idempotency_wait_timeout = {1.5 * most:g}",
        )


def _those(patient: Patient, wrong: Callable[[Task], bool]) -> list[Task]:
    return [task for task in patient.tasks if task.options.mode != "off" and wrong(task)]


def _shortest_window(tasks: list[Task]) -> float:
    return min(task.options.ttl for task in tasks)


def _visibility_of(patient: Patient, timeout: float) -> str:
    return patient.transport_options(visibility_timeout=int(timeout))


def longest_delay(task: Task) -> float:
    """Return the longest delay of a retry of a task, as far as its options tell."""
    delays = _delays(task)
    return max(delays) if delays else 0.0


def retries_horizon(task: Task) -> float:
    """Return how long all retries of a task are put off for, as far as its options tell."""
    return sum(_delays(task))


def _delays(task: Task) -> list[float]:
    celery_task = task.task
    automatic = bool(getattr(celery_task, "autoretry_for", ()))
    chosen = (
        celery_task.max_retries != CeleryTask.max_retries
        or celery_task.default_retry_delay != CeleryTask.default_retry_delay
    )
    if not (automatic or chosen):
        return []  # Celery's defaults say nothing of whether it retries at all
    # Without an end, the first hundred are as good a measure as any.
    count = 100 if celery_task.max_retries is None else int(celery_task.max_retries)
    backoff = getattr(celery_task, "retry_backoff", False)
    if automatic and backoff:
        most = float(getattr(celery_task, "retry_backoff_max", 600))
        return [min(most, float(int(backoff) * 2**n)) for n in range(min(count, 100))]
    return [float(celery_task.default_retry_delay)] * min(count, 100)
