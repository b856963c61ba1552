"""One thing that a configuration has wrong, and what every check is given to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from celery_idempotent.core.options import Options
from celery_idempotent.settings import Environment, TaskSetup

#: It breaks the promise: a call may run twice, or be lost.
ERROR: Final = "error"
#: It makes the promise weaker, late or dear.
WARNING: Final = "warning"
#: It breaks nothing: what could not be looked at, or would be better.
HINT: Final = "hint"
#: From the worst.
LEVELS: Final = (ERROR, WARNING, HINT)

#: What each finding may be called, for :func:`.examine` to know what ``idempotency_accept`` names.
NAMES: Final = frozenset(
    (
        *("acks-early", "always-eager", "clock", "cluster-incomplete", "cluster-node"),
        *("consumer-timeout", "delivers-once", "enqueue-without-results", "eta-limited"),
        *("eviction", "few-broker-connections", "forgetful-broker", "forgetful-result-backend"),
        *("frozen-key", "full", "journal-name-taken", "key-by-function", "key-not-chosen"),
        *("late-persistence", "late-redelivery", "left-over-option", "login-refused"),
        *("lost-with-its-process", "memory", "memory-with-processes", "missing-command"),
        *("nearly-full", "no-permission", "no-permission-to-look", "no-persistence"),
        *("no-result-backend", "no-such-finding", "no-tables", "no-time-limit", "old-server"),
        *("pickle", "prefetch", "prefetch-unlimited", "replica", "result-backend-away"),
        *("result-serializer", "server-not-seen", "shadow", "short-lease", "short-wait"),
        *("snapshots-only", "store-away", "switched-off", "tables-per-tenant"),
        *("task-serializer", "tenants-share-keys", "time-limit-not-enforced", "tiny-window"),
        *("too-few-replicas", "trial-refused", "unconfirmed-publish", "unsafe-failover"),
        *("visibility-below-countdown", "visibility-below-lease", "visibility-below-run"),
        *("volatile-argument", "window-below-retries", "window-below-run"),
        *("window-below-visibility",),
    )
)

_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    #: What it is called in ``idempotency_accept``.
    name: str
    #: One of :data:`LEVELS`.
    level: str
    #: The problem.
    what: str
    #: Why that matters.
    why: str
    #: What to do.
    fix: str
    #: What to write there.
    value: str

    def as_dict(self) -> dict[str, str]:
        """Return what goes into JSON."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The problem, why it matters, and what to write, in a line."""
        return f"{self.what.rstrip('.')}. {self.why} {self.fix}: {self.value}"

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Task:
    """An idempotent task, as far as checks look at it."""

    name: str
    task: Any
    setup: TaskSetup

    @property
    def options(self) -> Options:
        return self.setup.options


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined."""

    app: Any
    environment: Environment
    tasks: Sequence[Task]
    #: The module of the pool's class in a worker; ``None``: what the app would use.
    pool: str | None = None

    @property
    def pool_name(self) -> str:
        """What the pool is called: ``prefork``, ``threads``, ``solo``, ``gevent``, ..."""
        pool = self.pool if self.pool is not None else str(self.app.conf.worker_pool)
        name = pool.rpartition(".")[2].partition(":")[0]
        return "threads" if name == "thread" else name

    @property
    def broker_scheme(self) -> str:
        """The beginning of the broker's URL; an app without one uses AMQP."""
        conf = self.app.conf
        url = conf.broker_write_url or conf.broker_url or "amqp"
        if isinstance(url, (list, tuple)):
            url = url[0] if url else "amqp"
        return str(url).split(";")[0].partition(":")[0].lower()

    @property
    def speaks_amqp(self) -> bool:
        """Whether the broker is RabbitMQ, or another one that speaks AMQP."""
        return self.broker_scheme in ("amqp", "amqps", "pyamqp", "librabbitmq")

    def transport_options(self, **more: Any) -> str:
        """Return the setting of the transport's options, with these beside those that are set."""
        options = {**(self.app.conf.broker_transport_options or {}), **more}
        shown = {name: "..." if _is_secret(name) else value for name, value in options.items()}
        return f"broker_transport_options = {shown!r}"

    def time_limit(self, task: Task) -> float | None:
        """How long a run of a task may take; ``None``: as long as it likes."""
        hard = task.task.time_limit or self.app.conf.task_time_limit
        return float(hard) if hard else None


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in ("pass", "secret", "token", "kwargs"))


def about(tasks: Iterable[Task]) -> str:
    """Return the names of the first few tasks, and how many more there are."""
    names = sorted(task.name for task in tasks)
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def seconds(number: float) -> str:
    """Return a time as it stands in a setting."""
    return f"{number:g} s"
