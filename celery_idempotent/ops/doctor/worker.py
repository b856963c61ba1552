"""Whether Celery is set up so that no message is lost, and every outcome reaches its callers."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any, Final

from kombu.common import QoS
from kombu.serialization import registry

from celery_idempotent.ops.doctor.findings import (
    ERROR,
    WARNING,
    Finding,
    Patient,
    Task,
    about,
    seconds,
)

# kombu has no types for it.
_qos: Any = QoS

_PICKLE: Final = "application/x-python-serialize"
#: Result backends that forget what they are told, by the beginning of their URL.
_FORGETFUL: Final = ("rpc", "amqp", "cache", "memory")


def check_worker(patient: Patient) -> Iterator[Finding]:
    """Check what workers do with messages and results."""
    yield from _mode(patient)
    yield from _eager(patient)
    yield from _pool(patient)
    yield from _acknowledging(patient)
    yield from _results(patient)
    yield from _results_of_first_calls(patient)
    yield from _serializers(patient)
    yield from _held_messages(patient)


def _mode(patient: Patient) -> Iterator[Finding]:
    fix, value = "Turn it on, if that is over", 'idempotency_mode = "enforce"'
    off = [task for task in patient.tasks if task.options.mode == "off"]
    if off:
        yield Finding(
            "switched-off",
            WARNING,
            f"idempotency is off for {about(off)}",
            "They run as plain Celery tasks: every duplicate runs, and nothing is recorded.",
            fix,
            value,
        )
    shadow = [task for task in patient.tasks if task.options.mode == "shadow"]
    if shadow:
        yield Finding(
            "shadow",
            WARNING,
            f"idempotency only reports, and stops nothing, for {about(shadow)}",
            "Every duplicate runs.",
            fix,
            value,
        )


def _eager(patient: Patient) -> Iterator[Finding]:
    if patient.app.conf.task_always_eager:
        yield Finding(
            "always-eager",
            WARNING,
            "each call runs at once where it is made (task_always_eager)",
            "No worker gets a message: a crash of the caller loses the call, and nothing is run "
            "again.",
            "Leave it to tests",
            "task_always_eager = False",
        )


def _pool(patient: Patient) -> Iterator[Finding]:
    if patient.environment.store.is_shared:
        return
    if patient.pool_name == "prefork":
        yield Finding(
            "memory-with-processes",
            ERROR,
            f"records are kept in {patient.environment.where} and the pool is prefork",
            "Each process of the pool has records of its own: duplicates run.",
            "Use a store that processes share",
            'idempotency_store_url = "redis://localhost:6379/2"',
        )
    else:
        yield Finding(
            "memory",
            WARNING,
            "records are kept in memory://",
            "Another worker has records of its own, and a restart forgets them: duplicates run.",
            "Use a store that processes share, outside of tests",
            'idempotency_store_url = "redis://localhost:6379/2"',
        )


def _acknowledging(patient: Patient) -> Iterator[Finding]:
    early = [task for task in patient.tasks if not task.task.acks_late]
    if early:
        yield Finding(
            "acks-early",
            ERROR,
            f"messages are acknowledged before they run ({about(early)})",
            "If the worker dies then, the call is lost: there is nothing left to run again.",
            "Leave it to IdempotentTask, or set on the task",
            "acks_late = True",
        )
    lost = [
        task
        for task in patient.tasks
        if task.task.acks_late and not task.task.reject_on_worker_lost
    ]
    if lost:
        yield Finding(
            "lost-with-its-process",
            ERROR,
            f"a message is acknowledged when its process dies ({about(lost)})",
            "A process that is killed, for want of memory say, takes the call with it.",
            "Leave it to IdempotentTask, or set on the task",
            "reject_on_worker_lost = True",
        )


def _result_scheme(patient: Patient) -> str:
    """Return the beginning of the result backend's URL; empty where there is no backend."""
    scheme = str(patient.app.conf.result_backend or "").partition("://")[0].partition("+")[0]
    return "" if scheme.startswith("disabled") else scheme


def _results(patient: Patient) -> Iterator[Finding]:
    asked = [task for task in patient.tasks if not task.task.ignore_result]
    if not asked:
        return
    scheme = _result_scheme(patient)
    if not scheme:
        yield Finding(
            "no-result-backend",
            WARNING,
            f"there is no result backend ({about(asked)})",
            "Duplicates are answered with the first result, and nobody can read the answer; chords "
            "don't work.",
            "Set one, or say that nobody asks for results (task_ignore_result = True)",
            'result_backend = "redis://localhost:6379/1"',
        )
    elif scheme in _FORGETFUL:
        yield Finding(
            "forgetful-result-backend",
            WARNING,
            f"the result backend ({scheme}) keeps nothing ({about(asked)})",
            "Results are gone after a restart, or once they were read, while their keys are still "
            "done: who asks later waits for ever.",
            "Use one that keeps them",
            'result_backend = "redis://localhost:6379/1"',
        )


def _results_of_first_calls(patient: Patient) -> Iterator[Finding]:
    has_backend = bool(_result_scheme(patient))
    blind = [
        task
        for task in patient.tasks
        if task.setup.reserves and (task.task.ignore_result or not has_backend)
    ]
    if blind:
        yield Finding(
            "enqueue-without-results",
            WARNING,
            f"idempotency_on_enqueue stops no duplicate: no results are kept ({about(blind)})",
            "A caller that is given the first call, or refused for it, has to get that call's "
            "result. So each duplicate is published, for two more commands to the store, and the "
            "worker deduplicates it.",
            "Keep results, or publish duplicates without looking for the first call",
            'idempotency_on_enqueue = "publish"',
        )


def _serializers(patient: Patient) -> Iterator[Finding]:
    conf = patient.app.conf
    accepted = _content_types(conf.accept_content)
    results = _content_types(conf.result_accept_content or conf.accept_content)
    task_type, result_type = (
        _content_type(conf.task_serializer),
        _content_type(conf.result_serializer),
    )
    if task_type not in accepted:
        yield Finding(
            "task-serializer",
            ERROR,
            f"tasks are sent as {conf.task_serializer}, which workers don't accept",
            "Workers throw such messages away.",
            "Accept it, or send another one",
            f"accept_content = {sorted({*conf.accept_content, conf.task_serializer})}",
        )
    if result_type not in results:
        yield Finding(
            "result-serializer",
            ERROR,
            f"results are written as {conf.result_serializer}, which nobody accepts",
            "A duplicate can't be given a result that may not be read: it fails.",
            "Accept it, or write another one",
            f"result_accept_content = {sorted({*conf.accept_content, conf.result_serializer})}",
        )
    if _PICKLE in results:
        yield Finding(
            "pickle",
            WARNING,
            "pickled results are accepted",
            "A pickle can run anything: whoever can write to the store can take over a worker.",
            "Accept others only",
            "result_serializer = 'json' and result_accept_content = ['json']",
        )


def _content_types(names: Any) -> set[str]:
    return {_content_type(name) for name in names or ()}


def _content_type(name: str) -> str:
    types: dict[str, str] = registry.name_to_type
    return types.get(name, name)


def _loses_count() -> bool:
    """Whether kombu takes one off for each message over the limit, which it had not added."""
    if "max_prefetch" not in signature(_qos.__init__).parameters:
        return False  # it knows no limit: the setting does nothing
    qos = _qos(lambda prefetch_count: None, 2, max_prefetch=2)
    qos.increment_eventually()
    qos.decrement_eventually()
    return bool(qos.value < 2)


def _held_messages(patient: Patient) -> Iterator[Finding]:
    conf, visibility = patient.app.conf, patient.environment.visibility
    if conf.get("worker_eta_task_limit") is not None and _loses_count():
        yield Finding(
            "eta-limited",
            WARNING,
            "a worker takes ever fewer messages (worker_eta_task_limit)",
            "Duplicates that wait have an ETA. With this kombu each message over the limit takes "
            "one off what the worker takes at all, down to one at a time, until it is started "
            "again.",
            "Don't limit it: docs/operations.rst says what bounds the messages that wait",
            "worker_eta_task_limit = None",
        )
    prefetched = int(conf.worker_prefetch_multiplier)
    if prefetched == 0:
        yield Finding(
            "prefetch-unlimited",
            WARNING,
            "a worker takes as many messages as there are (worker_prefetch_multiplier = 0)",
            "With acks_late it holds them all until they have run, and if it dies they all come "
            "again late.",
            "Limit it",
            "worker_prefetch_multiplier = 1",
        )
        return
    if not visibility:
        return

    def held(task: Task) -> float:
        return (patient.time_limit(task) or 0) * (1 + prefetched)

    late = [task for task in patient.tasks if prefetched > 1 and held(task) >= visibility]
    if late:
        yield Finding(
            "prefetch",
            WARNING,
            f"a message may wait in a worker for {prefetched} runs before its own, up to "
            f"{seconds(max(held(task) for task in late))} ({about(late)})",
            f"After {seconds(visibility)}, the visibility timeout, it is given to another worker "
            "too: that copy waits, and comes again until the first has run.",
            "Take fewer in advance",
            "worker_prefetch_multiplier = 1",
        )
