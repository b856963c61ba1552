"""Turn ``app.conf`` and a task's attributes into options, key scheme and store."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from celery.utils.quorum_queues import detect_quorum_queues

from celery_idempotent.core.binding import Binder
from celery_idempotent.core.keyfunctions import TaskFunction
from celery_idempotent.core.keys import KeyScheme
from celery_idempotent.core.options import (
    Options,
    Settings,
    check_settings,
    check_unknown,
)
from celery_idempotent.errors import ConfigurationError
from celery_idempotent.run.claimant import Terms
from celery_idempotent.run.journal import Journal
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.journal import journal_key
from celery_idempotent.stores.urls import mask_url, store_class, store_from_url

__all__ = ["Environment", "TaskSetup", "check_conf", "environment_of", "everywhere", "task_setup"]

log = logging.getLogger("celery_idempotent")

_REDIS: Final = ("redis", "rediss", "redis+socket", "sentinel")
#: Visibility timeouts that hold where ``broker_transport_options`` has none, in seconds.
_VISIBILITY_S: Final = {**dict.fromkeys(_REDIS, 3600), "sqs": 1800}
#: How long a copy of a message may come late where the broker has no visibility timeout.
_HORIZON_S: Final = 3600.0
_LONGEST_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class TaskSetup:
    """A task's options, checked: made once, when it is bound to its app."""

    app: Any
    options: Options
    scheme: KeyScheme
    #: ``idempotency_reconcile``.
    reconcile: TaskFunction | None

    @property
    def reserves(self) -> bool:
        """Whether a call is reserved when it is published, and duplicates are stopped then."""
        return self.options.on_enqueue != "publish" and self.options.mode == "enforce"

    @property
    def environment(self) -> Environment:
        """What the settings of its app come to; errors as :func:`environment_of`."""
        return _environments.get(self.app) or environment_of(self.app)


@dataclass(frozen=True, slots=True)
class Environment:
    """An app's settings, checked: made when the first task needs them."""

    store: Store
    #: The store's URL without its password.
    where: str
    prefix: str
    #: After how long the broker delivers a message again that a worker still holds; 0: never.
    visibility: float
    #: For how long a copy of a message may still come, in seconds.
    horizon: float
    #: The longest time that a delivery is put back for, in seconds.
    longest_wait: float
    #: Whether the queue delays by itself, in whole seconds (quorum queues on RabbitMQ).
    whole_seconds: bool
    #: Whether Celery's events name keys and duplicates.
    events: bool
    #: The journal of deliveries, for operators.
    journal: Journal
    #: The terms of each task's claims.
    terms: dict[TaskSetup, Terms] = field(default_factory=dict)


def task_setup(cls: type, app: Any, methods: frozenset[str], name: str) -> TaskSetup:
    """Check a task class's options and compile its key scheme.

    Raises:
        ConfigurationError: an option is wrong.
    """
    if app not in _checked:
        check_conf(app)
        _checked.add(app)
    where = f"task {name!r}"
    names = {attribute for klass in cls.__mro__ for attribute in vars(klass)}
    check_unknown(names, where, methods)

    def lookup(option: str) -> object | None:
        value: object | None = _attribute(cls, option)
        if value is None:
            value = app.conf.get(option)
        return value

    _refuse_endless(cls, app, where)

    options = Options.from_lookup(lookup, where)
    if options.after_wait != "answer" and options.ttl:
        raise ConfigurationError(
            f'{where}: idempotency_after_wait = "{options.after_wait}" is for a window of 0, and '
            f"idempotency_ttl is {options.ttl:g}: within a window a duplicate is answered. Set "
            "idempotency_ttl = 0"
        )
    if options.after_wait == "last":
        for name, needed in (("on_running", "wait"), ("on_enqueue", "publish")):
            if getattr(options, name) != needed:
                raise ConfigurationError(
                    f'{where}: idempotency_after_wait = "last" has the newest call wait and run, '
                    f'so idempotency_{name} has to be "{needed}"'
                )
    signature, reconcile = _signature(cls), None
    if options.reconcile is not None:

        def wrong(reason: str) -> ConfigurationError:
            return ConfigurationError(f"{where}: idempotency_reconcile: {reason}")

        reconcile = TaskFunction(options.reconcile, Binder(signature), wrong)
    scheme = KeyScheme(
        task_name=name,
        signature=signature,
        key=options.key,
        namespace=options.namespace,
        fingerprint=options.fingerprint,
        redact=options.redact_key,
    )
    return TaskSetup(app, options, scheme, reconcile)


def _refuse_endless(cls: type, app: Any, where: str) -> None:
    """Refuse a window of ``None``: elsewhere that means no end, here it would mean a day."""
    name = "idempotency_ttl"
    # The last class that has it is the base class, where None is the default.
    *chosen, _ = [vars(it)[name] for it in cls.__mro__ if name in vars(it)] or [0]
    missing = object()
    if (chosen and chosen[0] is None) or app.conf.get(name, missing) is None:
        raise ConfigurationError(
            f"{where}: {name} is None, and there is no window without an end: set seconds, for "
            "instance 30 * 86400, or 0 to free the key when the run ends, or leave it out for a day"
        )


#: The apps whose settings were looked at when their first task was bound.
_checked: WeakSet[Any] = WeakSet()


def check_conf(app: Any) -> None:
    """Check the names and values of an app's settings: Celery ignores a misspelt one silently.

    Raises:
        ConfigurationError: one looks like ours and is unknown, or its value is wrong.
    """
    app.conf.get("timezone")  # until a setting is asked for, none is loaded
    check_settings({str(name) for name in app.conf}, "this app", app.conf.prefix or "")
    for kind in (Settings, Options):
        kind.from_lookup(app.conf.get, "this app")


def _attribute(cls: type, name: str) -> Any:
    """Return a class attribute as it was written: a function is not bound."""
    value = inspect.getattr_static(cls, name, None)
    return value.__func__ if isinstance(value, staticmethod) else value


def _signature(cls: type) -> inspect.Signature:
    run = inspect.getattr_static(cls, "run")
    if isinstance(run, (staticmethod, classmethod)):
        return inspect.signature(getattr(cls, "run"))  # noqa: B009
    signature = inspect.signature(run)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


_environments: WeakKeyDictionary[Any, Environment] = WeakKeyDictionary()


def environment_of(app: Any) -> Environment:
    """Return the app's store and times.

    Raises:
        ConfigurationError: a setting is wrong, or no store can be found.
    """
    try:
        return _environments[app]
    except KeyError:
        environment = _environments[app] = _make_environment(app)
        return environment


#: Where every app keeps its records, within :func:`everywhere`.
_instead: Store | None = None


@contextmanager
def everywhere(store: Store) -> Iterator[None]:
    """Make every app keep its records in this store, in place of its own: for tests.

    Tasks that are under way go on with what they had.
    """
    global _instead, _environments
    before = _instead, _environments
    _instead, _environments = store, WeakKeyDictionary()
    try:
        yield
    finally:
        _instead, _environments = before


def _make_environment(app: Any) -> Environment:
    settings = Settings.from_lookup(app.conf.get, "this app")
    url, options = settings.store_url, dict(settings.store_options)
    if _instead is not None:
        url = "memory://"
    if not url:
        url, found = _redis_of(app)
        options = {**found, **options}
    if settings.wait_replicas and _instead is None:
        if not store_class(url).waits_for_replicas:
            raise ConfigurationError(
                "this app: idempotency_wait_replicas is for a store in Redis, and this one is "
                f"{mask_url(url)!r}: leave it at 0"
            )
        options["wait_replicas"] = settings.wait_replicas
    broker = _scheme(_broker_url(app))
    timeout = (app.conf.broker_transport_options or {}).get("visibility_timeout")
    visibility = float(timeout or _VISIBILITY_S.get(broker, 0))
    store = _instead or store_from_url(url, options)
    return Environment(
        store=store,
        where=mask_url(url),
        prefix=settings.key_prefix,
        visibility=visibility,
        horizon=2 * visibility if visibility else _HORIZON_S,
        longest_wait=min(_LONGEST_WAIT_S, visibility / 4) if visibility else _LONGEST_WAIT_S,
        whole_seconds=_delays_natively(app, broker),
        events=settings.events,
        journal=Journal(store, journal_key(settings.key_prefix), settings.journal),
    )


def _redis_of(app: Any) -> tuple[str, dict[str, Any]]:
    """Return the result backend if it is Redis, else the broker if it is Redis, and its options."""
    backend, broker = _text(app.conf.result_backend), _broker_url(app)
    found: tuple[tuple[str, str, str], ...] = (
        (backend, "result_backend_transport_options", "redis_backend_use_ssl"),
        (broker, "broker_transport_options", "broker_use_ssl"),
    )
    for url, transport, tls in found:
        if _scheme(url) not in _REDIS:
            continue
        known = app.conf.get(transport) or {}
        options = {n: known[n] for n in ("master_name", "sentinel_kwargs") if n in known}
        secure = app.conf.get(tls)
        if isinstance(secure, Mapping):
            options.update(secure)
        return url, options
    raise ConfigurationError(
        "there is no store for idempotency records: neither the result backend "
        f"({mask_url(backend) or 'none'}) nor the broker ({mask_url(broker) or 'none'}) is Redis; "
        "set app.conf.idempotency_store_url = 'redis://host:6379/2'"
    )


def _broker_url(app: Any) -> str:
    return _text(app.conf.broker_write_url or app.conf.broker_url)


def _text(url: Any) -> str:
    if isinstance(url, (list, tuple)):
        url = url[0] if url else ""
    return url if isinstance(url, str) else ""


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _delays_natively(app: Any, broker: str) -> bool:
    if broker not in ("amqp", "amqps", "pyamqp", "librabbitmq"):
        return False
    return bool(detect_quorum_queues(app, "amqp")[0])
