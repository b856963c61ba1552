"""Every idempotency_* option: what it means, its default, and what it may be.

The comments that open with ``#:`` are the settings page of the documentation.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, ClassVar, TypeAlias, TypeVar

from celery_idempotent.core.unfinished import kind_of
from celery_idempotent.errors import ConfigurationError

__all__ = [
    "Exceptions",
    "Names",
    "Options",
    "Seconds",
    "Settings",
    "check_call",
    "check_plain",
    "check_settings",
    "check_unknown",
    "option_names",
    "setting_names",
]

PREFIX = "idempotency_"

#: The shortest duration: a shorter lease would end while a healthy worker renews it.
SHORTEST = 0.1
#: The longest duration: ten years, which is well below the limit of an expiry in Redis.
LONGEST = 10 * 365 * 86400.0

#: How an option is written, where that is more than the field of it that is kept.
Seconds: TypeAlias = float | timedelta
Names: TypeAlias = tuple[str, ...] | list[str]
Exceptions: TypeAlias = (
    type[BaseException] | tuple[type[BaseException], ...] | list[type[BaseException]]
)

Check = Callable[[Any], Any]


class Answer(enum.Enum):
    """What ``idempotency_reconcile`` may answer instead of a result."""

    #: The effect did not happen: run the task again.
    RERUN = "rerun"
    #: It is not known whether the effect happened: an operator has to decide.
    UNKNOWN = "unknown"


RERUN = Answer.RERUN
UNKNOWN = Answer.UNKNOWN
T = TypeVar("T", bound="_FromLookup")


class _Wrong(Exception):
    """A value that an option can't have; the message says what it may be."""


# -- checks: each returns the value to keep --------------------------------------------------------


def _seconds(least: float) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, timedelta):
            value = value.total_seconds()
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= LONGEST:
            raise _Wrong(
                f"seconds (a number) or a timedelta, at least {least:g} s and at most ten years"
            )
        return float(value)

    return check


def _window(value: Any) -> float:
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if number == 0 and not isinstance(number, bool):
        return 0.0
    try:
        return float(_seconds(SHORTEST)(value))
    except _Wrong as exc:
        raise _Wrong(f"0, or {exc}; with 0 the key is free when the run ends") from None


def _integer(least: int, most: int | None = None) -> Check:
    def check(value: Any) -> int:
        number = isinstance(value, int) and not isinstance(value, bool)
        if not number or value < least or (most is not None and value > most):
            limit = f" and at most {most}" if most is not None else ""
            raise _Wrong(f"a whole number, at least {least}{limit}")
        return int(value)

    return check


def _one_of(*choices: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _Wrong(" or ".join(f'"{choice}"' for choice in choices))
        return value

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("True or False")
    return value


def _anything(value: Any) -> Any:
    return value  # KeyScheme checks it against the task's signature


def _names(what: str) -> Check:
    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, (tuple, list)) or not all(isinstance(it, str) for it in value):
            raise _Wrong(f"a tuple of {what}")
        return tuple(value)

    return check


def _failures(value: Any) -> bool | tuple[type[BaseException], ...]:
    if isinstance(value, bool):
        return value
    types = (value,) if isinstance(value, type) else value
    if not isinstance(types, (tuple, list)) or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in types
    ):
        raise _Wrong("False, True, or a tuple of exception types")
    return tuple(types)


def _function(value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise _Wrong("a function of the task's arguments")
    if kind_of(value):
        raise _Wrong("a plain function: nobody would run an async one, or a generator")
    return value  # type: ignore[no-any-return]


def _url(value: Any) -> str:
    if not isinstance(value, str) or "://" not in value:
        raise _Wrong("a URL such as redis://localhost:6379/2")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise _Wrong("a dict of the client's options by name")
    return dict(value)


def _prefix(value: Any) -> str:
    usable = isinstance(value, str) and value and len(value) <= 100
    if not usable or any(not "!" <= c <= "~" or c in "{}" for c in value):
        raise _Wrong("1 to 100 printable ASCII characters without spaces and braces")
    return str(value)


def _checked(check: Check, secret: bool = False) -> dict[str, Any]:
    return {"check": check, "secret": secret}


# -- the options -----------------------------------------------------------------------------------


class _FromLookup:
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @classmethod
    def from_lookup(cls: type[T], lookup: Callable[[str], object | None], where: str) -> T:
        """Read each option from ``lookup`` by its full name; None means that it is not set.

        Raises :class:`ConfigurationError` for a wrong value; the error names ``where`` (the task,
        or the app), the option, its value and what it may be.
        """
        values: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            name = PREFIX + item.name
            value = lookup(name)
            if value is None:
                continue
            try:
                values[item.name] = item.metadata["check"](value)
            except _Wrong as exc:
                # A URL may hold a password, and errors end up in logs.
                shown = "wrong" if item.metadata["secret"] else repr(value)[:80]
                raise ConfigurationError(f"{where}: {name} is {shown}, and must be {exc}") from None
        return cls(**values)


@dataclass(frozen=True)
class Options(_FromLookup):
    """The options of one task, checked, with the app's settings and the defaults filled in."""

    #: What makes two calls of a task the same. Default: all of its arguments. A tuple of argument
    #: names, ``("order_id", "currency")``, where dotted paths reach inside, ``("order.id",)``. Or a
    #: template, ``"order:{order_id}"``. Or a function that takes the task's arguments and returns a
    #: string, or None for a call that is not to be deduplicated. Or ``MESSAGE_ID``: only
    #: redeliveries of one message are duplicates. Set it where some arguments don't matter, such as
    #: a timestamp or a trace id, and where operators search by the key: a key over all arguments is
    #: a digest, and one that you chose stays readable.
    key: object = field(default=None, metadata=_checked(_anything))

    #: Keys in different namespaces never meet. Default: the task's name. A string, a template such
    #: as ``"tenant:{tenant_id}"``, or a function of the task's arguments that returns a string. Two
    #: tasks with the same namespace share their keys. Set it where tenants number their things
    #: alike: they are apart only if the namespace or the key names them.
    namespace: object = field(default=None, metadata=_checked(_anything))

    #: The arguments that must be the same whenever a key is used again, as a tuple of names; a call
    #: that brings the key with others gets ``IdempotencyKeyMismatch`` and does not run. Default:
    #: all arguments for a key that was sent with the call (``idempotency_key=...`` or the header),
    #: none for a key that was derived from the arguments. An empty tuple turns the check off. Set
    #: it where a retried call may differ in what doesn't matter, or to have a derived key checked.
    fingerprint: tuple[str, ...] | None = field(
        default=None, metadata=_checked(_names("argument names, such as ('amount',)"))
    )

    #: Whether to keep what you chose as key out of the store, the logs and the tools for operators:
    #: they then show a digest of it. Default: False. Set it where keys are made of personal data.
    #: A digest hides, but does not protect, what can be guessed: a number of four digits, say.
    redact_key: bool = field(default=False, metadata=_checked(_flag))

    #: How long a finished call answers for its duplicates, from the moment it completed: the
    #: window. Seconds or a timedelta, 0 or at least 0.1 s. Default: 86400 (a day). Raise it if
    #: duplicates come later than that; it should be longer than the broker's visibility timeout.
    #: Each key takes some hundred bytes and its result until then. With 0 the key is free when the
    #: run ends: calls that waited for the run get its outcome, and the next call runs. Set that to
    #: forbid only two runs at once. A window without an end can't be had: ``None`` is an error.
    ttl: float = field(default=86400.0, metadata=_checked(_window))

    #: How long a key stays taken when the process that runs its task is gone without a trace; a
    #: living one renews its lease three times in that time, so it does not limit how long a task
    #: runs. Seconds or a timedelta, at least 0.1 s. Default: 30. Shorten it to have crashed tasks
    #: taken over sooner; lengthen it where processes stall, in a C extension that holds the GIL or
    #: on an overloaded machine. A few seconds is the least that makes sense in production.
    lease: float = field(default=30.0, metadata=_checked(_seconds(SHORTEST)))

    #: What a duplicate does that finds its key running. Default: ``"wait"``: it is put back with a
    #: delay, without holding a worker, until it can give the first call's answer. ``"raise"``: it
    #: fails with ``IdempotencyInProgress``. ``"drop"``: it ends as REVOKED, with its reason; a
    #: message that others depend on (a chord's, a chain's, one with a link) waits all the same.
    on_running: str = field(default="wait", metadata=_checked(_one_of("wait", "raise", "drop")))

    #: How long a duplicate waits in all before it fails with ``IdempotencyInProgress``. Seconds or
    #: a timedelta; 0 fails at the first turn. Default: 3600 (an hour). Raise it for tasks that run
    #: for hours. A redelivery of the running call's own message waits as long as it takes.
    wait_timeout: float = field(default=3600.0, metadata=_checked(_seconds(0)))

    #: What a duplicate does once the run that it waited for has ended. Default: ``"answer"``: it
    #: gets that run's outcome. ``"run"``: it runs in its turn. The key is a mutex then: never two
    #: runs at once, and each call runs; only with ``idempotency_ttl = 0``. Waits have no order, and
    #: ``idempotency_wait_timeout`` holds. ``"last"``: of those that wait only the newest runs, and
    #: the others get its outcome; only with ``idempotency_ttl = 0``.
    after_wait: str = field(default="answer", metadata=_checked(_one_of("answer", "run", "last")))

    #: What happens to a key whose run ended without an outcome: its worker was killed or shut down.
    #: Default: ``"rerun"``: the next delivery runs the task again, with
    #: ``self.idempotency.interrupted`` true. ``"unknown"``: nothing runs, every call fails with
    #: ``OutcomeUnknown`` until an operator settles it; for effects that must rather be missing than
    #: happen twice.
    on_interrupted: str = field(default="rerun", metadata=_checked(_one_of("rerun", "unknown")))

    #: How many interruptions of a key are followed by another run. After one more its calls fail
    #: with ``OutcomeUnknown``, so that a task which kills its worker stops doing so: with 3, a body
    #: that is cut off each time runs four times. A whole number, 0 to 254; a retry, a failure or a
    #: success starts the count anew. Default: 3. Raise it for long tasks on machines that go away
    #: often.
    max_interruptions: int = field(default=3, metadata=_checked(_integer(0, 254)))

    #: A function that is asked first whether an interrupted run's effect happened, with the task's
    #: arguments (and the task before them, if its first parameter is called ``self``). It returns
    #: the result to record, or ``RERUN``, or ``UNKNOWN``; where it fails, the outcome is unknown.
    #: Default: none, ``idempotency_on_interrupted`` decides. Set it where the other side can be
    #: asked: a payment that is looked up by the key that it was made with.
    reconcile: Callable[..., Any] | None = field(default=None, metadata=_checked(_function))

    #: Whether a run stops at its next checkpoint when its worker shuts down (warm or soft), instead
    #: of holding up the shutdown until it has ended. Its message is put back, and the next run goes
    #: on behind the checkpoint. Default: False. Set it for tasks that loop for longer than a worker
    #: is given to stop; the pool must fork its processes, or have none.
    stop_at_checkpoint: bool = field(default=False, metadata=_checked(_flag))

    #: Whether a failure is an outcome that duplicates get as well, instead of running the task
    #: again. Default: False: a failed key is free again. True: each failure is kept. A tuple of
    #: exception types: those are. Set it for failures that would only repeat, such as a declined
    #: card.
    store_failures: bool | tuple[type[BaseException], ...] = field(
        default=False, metadata=_checked(_failures)
    )

    #: What a call does while the store can't be reached. Default: ``"retry"``: it waits until the
    #: store is back; nothing runs, nothing is lost. ``"raise"``: it fails with
    #: ``StoreUnavailable``. ``"run"``: it runs unprotected, and duplicates may run as well; for
    #: tasks where that is better than being late.
    on_store_error: str = field(
        default="retry", metadata=_checked(_one_of("retry", "raise", "run"))
    )

    #: The largest result that is kept for duplicates, in bytes as the result backend writes it. A
    #: larger one is given to its own caller only, and duplicates fail with ``ResultNotKept``; the
    #: task is not run again. Of a larger failure its type and the beginning of its text are kept.
    #: Default: 1048576 (1 MiB). At most 512 MiB, which is Redis's limit. Rather than raise it, keep
    #: large results elsewhere and return where they are.
    max_result_size: int = field(
        default=1024 * 1024, metadata=_checked(_integer(1, 512 * 1024 * 1024))
    )

    #: Whether a call that is a duplicate already when it is made is published at all. Default:
    #: ``"publish"``: it is, and the worker answers it. ``"attach"``: where its first call is
    #: queued, is running, waits for a retry, or is done with its result still in the result
    #: backend, nothing is published, and the caller gets the first call's result. ``"raise"``: the
    #: same where the first call is done; else ``apply_async`` raises ``IdempotencyInProgress``,
    #: which has the first call's ``task_id`` and ``result``. With ``delay_on_commit`` the
    #: duplicate is looked for after the commit, and left out without an error. Both save messages.
    #: A call that is published costs two commands in the store more: it is reserved before that,
    #: and confirmed after it. A duplicate costs one, and a look into the result backend. Some
    #: calls are published all the same: members of groups, chains and chords, those with a link or
    #: a task id of their own, retries, and calls whose arguments are checked (see
    #: ``idempotency_fingerprint``) and differ, which the worker refuses. So is a call whose first
    #: call was revoked, expires sooner, is due later, or keeps no result; and each call while the
    #: store is away.
    on_enqueue: str = field(
        default="publish", metadata=_checked(_one_of("publish", "attach", "raise"))
    )

    #: How long a queued call stops others, after it is due, where its message doesn't expire; with
    #: ``idempotency_on_enqueue`` ``"attach"`` or ``"raise"``. Its delivery ends that. So it matters
    #: where the queue was purged, or is longer than that. Seconds or a timedelta, at least 0.1 s.
    #: Default: 3600 (an hour).
    queued_ttl: float = field(default=3600.0, metadata=_checked(_seconds(SHORTEST)))

    #: ``"enforce"``: duplicates don't run. ``"off"``: tasks run as plain Celery tasks, nothing is
    #: read or recorded: the switch for an emergency. ``"shadow"``: keys are derived and records
    #: kept, every call runs, and what would have been a duplicate is reported (signals, log,
    #: journal, metrics): the way to adopt it in a running system. Default: ``"enforce"``.
    mode: str = field(default="enforce", metadata=_checked(_one_of("enforce", "shadow", "off")))


@dataclass(frozen=True)
class Settings(_FromLookup):
    """The options that can be set on the app only."""

    #: Where the records are kept: ``redis://``, ``rediss://``, ``redis+socket://`` or
    #: ``sentinel://``, as Celery writes them; ``redis+cluster://host:port,host:port``;
    #: ``postgresql://``, ``mysql://``, ``mariadb://`` or ``sqlite:////path``, as SQLAlchemy writes
    #: them (with the extra ``sql``); ``django://`` or ``django://alias``, a database of the Django
    #: project (with the extra ``django``); or ``memory://`` for tests in one process. Default: the
    #: result backend if it is Redis, else the broker if it is Redis. Set it to keep records apart
    #: from both, on a server that persists and does not evict, or beside your data, so that effects
    #: and records can be committed together. Another package may add a store, and its URL's scheme.
    store_url: str | None = field(default=None, metadata=_checked(_url, secret=True))

    #: More options for the store's client by name, such as timeouts and certificates. Default:
    #: none.
    store_options: Mapping[str, Any] = field(
        default_factory=dict, metadata=_checked(_mapping, secret=True)
    )

    #: How many replicas of a Redis must have the end of a run before it counts as recorded, by
    #: Redis's ``WAIT``, at most half of the client's ``socket_timeout`` long. Default: 0, none.
    #: With 1, a failover to that replica loses no completion, for the time that the replica takes.
    #: Where too few answer, the caller gets its result, and recording is tried again as in an
    #: outage. A claim isn't waited for: a failover may lose it, and then the task may run twice.
    wait_replicas: int = field(default=0, metadata=_checked(_integer(0, 100)))

    #: The outbox's database, for ``celery idempotency relay``, as SQLAlchemy takes it. Default: the
    #: store's, where that is a database. Set it where the application's data are elsewhere.
    outbox_url: str | None = field(default=None, metadata=_checked(_url, secret=True))

    #: What the names of all records begin with. Default: ``"idempotent"``. 1 to 100 printable
    #: ASCII characters without spaces and braces. Change it where several applications share one
    #: database; all processes of one application need the same.
    key_prefix: str = field(default="idempotent", metadata=_checked(_prefix))

    #: Whether workers that send events (``-E``) name keys and duplicates in them, so that Flower
    #: shows a duplicate as DEDUPLICATED. Default: True. Turn it off where something that reads the
    #: events can't bear a ``task-deduplicated`` after a ``task-succeeded``.
    events: bool = field(default=True, metadata=_checked(_flag))

    #: How many events the journal keeps: what was claimed, completed, answered as a duplicate, put
    #: back, refused, lost or forgotten, and by whom. It is what ``celery idempotency list`` and
    #: ``why`` know, and Flower's tab. Default: 10000. 0 turns it off. Workers add to it about twice
    #: a second, whatever they do in that time; an event takes some 200 bytes in the store. Raise it
    #: until it reaches back as far as you want to ask: an execution or a duplicate is one event.
    journal: int = field(default=10_000, metadata=_checked(_integer(0, 100_000_000)))

    #: Whether a worker refuses to start where ``celery idempotency doctor`` would find something,
    #: instead of warning of it. Default: False. Turn it on where a wrong setting must not reach
    #: production; what you know and accept goes into ``idempotency_accept``. A store that does not
    #: answer is no reason to refuse: tasks wait for it.
    strict: bool = field(default=False, metadata=_checked(_flag))

    #: What ``doctor`` and a starting worker are not to speak of, by the names of the findings, as a
    #: tuple: ``("no-time-limit",)``. Default: an empty tuple.
    accept: tuple[str, ...] = field(
        default=(), metadata=_checked(_names("names of findings, such as ('no-time-limit',)"))
    )


@cache
def option_names() -> frozenset[str]:
    """Return the full names of the options of a task."""
    return frozenset(PREFIX + item.name for item in dataclasses.fields(Options))


@cache
def setting_names() -> frozenset[str]:
    """Return the full names of the app's settings: every task option, and the app's own."""
    return option_names() | {PREFIX + item.name for item in dataclasses.fields(Settings)}


def check_unknown(names: Iterable[str], where: str, allow: Collection[str] = ()) -> None:
    """Raise :class:`ConfigurationError` for a name that looks like a task option and is none.

    A misspelt option would be ignored silently. ``allow`` has names that are something else, such
    as methods.
    """
    options = option_names()
    for name in sorted(names):
        if name in options or name in allow or not _is_meant(name, options):
            continue
        if name in setting_names():
            raise ConfigurationError(f"{where}: {name} can't be set on a task: set it on the app")
        raise ConfigurationError(
            f"{where}: there is no option {name}: {_hint(name, options, options.union(allow))}"
        )


def check_settings(names: Iterable[str], where: str, namespace: str = "") -> None:
    """Raise :class:`ConfigurationError` for a name that looks like a setting and is none.

    ``namespace`` is the prefix of settings that are written in capitals, as in Django.
    """
    settings = setting_names()
    for written in sorted(names):
        inside = bool(namespace) and written.startswith(namespace)
        name = written.removeprefix(namespace).lower() if inside else written
        if not namespace and name.isupper() and name.lower() in settings:
            raise ConfigurationError(
                f"{where}: {name} is not read: write {name.lower()}, or give config_from_object() "
                "a namespace"
            )
        if name not in settings and _is_meant(name, settings):
            known = {f"{namespace}{it.upper()}" for it in settings} if inside else settings
            start = f"{namespace}{PREFIX.upper()}" if inside else PREFIX
            raise ConfigurationError(
                f"{where}: there is no setting {written}: {_hint(written, known, known, start)}"
            )


def check_call(names: Iterable[str], where: str, *, key: bool = True) -> None:
    """Raise :class:`ConfigurationError` for a name that looks like an option of a call and is none.

    Celery would send it as a property of the message, which nobody reads.

    Args:
        key: whether ``idempotency_key`` is allowed; ``False`` for a retry, which keeps its key.
    """
    options = option_names()
    for name in names:
        if not name.startswith(_LOOKS) or not _is_meant(name, options):
            continue
        if not key:
            raise ConfigurationError(f"{where} takes no {name}: the call keeps its key")
        if name in options:
            raise ConfigurationError(
                f"{where}: {name} can't be given with a call: set it on the task"
            )
        raise ConfigurationError(
            f"{where}: a call has no option {name}: did you mean {PREFIX}key? Nothing else can be "
            "given with a call"
        )


def check_plain(names: Iterable[str], where: str) -> None:
    """Raise :class:`ConfigurationError` for an option of this library on another kind of task."""
    options = option_names()
    for name in sorted(names):
        if name in options or _is_near(name, options):
            raise ConfigurationError(
                f"{where}: {name} is set, and nothing reads it, since the task's base class is not "
                "IdempotentTask: give it base=IdempotentTask, or take the option out"
            )


#: The beginnings of names that could be meant as ours.
_LOOKS = ("idem", "indem")
#: How similar a name must be to count as misspelt: ``idempotent_key`` has 0.90.
_NEAR = 0.88


def _is_meant(name: str, known: Collection[str]) -> bool:
    return name.startswith(PREFIX) or _is_near(name, known)


def _is_near(name: str, known: Collection[str]) -> bool:
    return name.startswith(_LOOKS) and bool(_close_matches(name, known, _NEAR))


def _close_matches(name: str, known: Iterable[str], cutoff: float) -> list[str]:
    import difflib  # only where a name is wrong

    return difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)


def _hint(name: str, options: Collection[str], known: Collection[str], start: str = PREFIX) -> str:
    # Without their common beginning, which makes any two of them look alike.
    names = {it.removeprefix(start): it for it in sorted(known)}
    suffixes = names if name.startswith(start) else names.values()
    close = _close_matches(name.removeprefix(start), suffixes, 0.6)
    if not close:
        return f"there are {', '.join(sorted(options))}"
    return f"did you mean {names.get(close[0], close[0])}?"
