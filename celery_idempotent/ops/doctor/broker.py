"""Whether the broker keeps the messages that it is given, and delivers them again in time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from kombu.transport import redis as kombu_redis

from celery_idempotent.errors import ConfigurationError, StoreError
from celery_idempotent.ops.doctor.findings import ERROR, HINT, WARNING, Finding, Patient
from celery_idempotent.ops.doctor.store import keeps_nothing
from celery_idempotent.stores.base import Server
from celery_idempotent.stores.urls import mask_url, store_from_url

_REDIS: Final = ("redis", "rediss")


class CelerysServers:
    """The Redis servers that Celery uses beside the store's; each is asked once.

    Args:
        store_where: the URL of the store, which is checked for itself.
    """

    def __init__(self, store_where: str) -> None:
        self._said: dict[Any, list[Server] | StoreError] = {_place(store_where): []}

    def at(self, url: str, tls: Any = None) -> list[Server]:
        """Ask the servers at a URL; none where that is the store, or no Redis.

        Raises:
            StoreUnavailable: one does not answer.
        """
        place = _place(url)
        if place not in self._said:
            self._said[place] = _ask(url, dict(tls) if isinstance(tls, Mapping) else {})
        said = self._said[place]
        if isinstance(said, StoreError):
            raise said
        return said


def _ask(url: str, options: dict[str, Any]) -> list[Server] | StoreError:
    try:
        store = store_from_url(url, options)
    except ConfigurationError:
        return []  # Celery knows options here that a store doesn't
    try:
        return store.askable.servers() if store.askable is not None else []
    except StoreError as exc:
        return exc
    finally:
        store.close()


def _place(url: str) -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port or 6379
    except ValueError:
        return None, None


def check_broker(patient: Patient, servers: CelerysServers) -> Iterator[Finding]:
    """Check the broker."""
    yield from _confirms(patient)
    yield from _delivers_again(patient)
    if patient.broker_scheme not in _REDIS:
        return
    yield from _restores(patient)
    yield from _greenlets(patient)
    url = str(patient.app.conf.broker_write_url or patient.app.conf.broker_url)
    try:
        found = servers.at(url, patient.app.conf.broker_use_ssl)
    except StoreError:
        return  # whoever uses it is told so by Celery
    for server in found:
        yield from _keeps(server, mask_url(url))


def _confirms(patient: Patient) -> Iterator[Finding]:
    options = patient.app.conf.broker_transport_options or {}
    if patient.speaks_amqp and not options.get("confirm_publish"):
        yield Finding(
            "unconfirmed-publish",
            WARNING,
            "calls are published without waiting for RabbitMQ to confirm them",
            "Where it dies, or has no memory or disk left, apply_async() returns and the call is "
            "lost.",
            "Wait for its confirmation",
            patient.transport_options(confirm_publish=True),
        )


def _delivers_again(patient: Patient) -> Iterator[Finding]:
    """Look whether what a dead worker had taken comes again."""
    transport = patient.broker_scheme.partition("+")[0]  # sqla+postgresql
    if transport in _DELIVERS_ONCE:
        yield Finding(
            "delivers-once",
            ERROR,
            f"kombu removes a message from the broker ({transport}) as a worker takes it",
            "The calls of a worker that dies are lost, whatever task_acks_late says.",
            "Take Redis, RabbitMQ or SQS as the broker",
            'broker_url = "redis://..."',
        )


def _restores(patient: Patient) -> Iterator[Finding]:
    """Look at how often kombu looks for messages whose visibility timeout is over."""
    options = patient.app.conf.broker_transport_options or {}
    channel: Any = kombu_redis.Channel
    if not hasattr(channel, _RESTORE[1]):
        return  # this kombu has no such options
    every, turns = (float(options.get(name, getattr(channel, name))) for name in _RESTORE)
    late = every * turns
    if late > _LATE_S:
        yield Finding(
            "late-redelivery",
            HINT,
            f"the message of a worker that died comes again up to {late:g} s after the visibility "
            "timeout",
            "kombu looks for such messages only so often.",
            "Let it look more often",
            patient.transport_options(unacked_restore_throttle=1),
        )


def _greenlets(patient: Patient) -> Iterator[Finding]:
    """Look at how many greenlets can acknowledge at one moment: see docs/guarantees.rst."""
    options = patient.app.conf.broker_transport_options or {}
    if patient.pool_name in _GREENLETS and not options.get("max_connections"):
        most = kombu_redis.Channel.max_connections
        yield Finding(
            "few-broker-connections",
            ERROR,
            f"under {patient.pool_name} kombu has {most} connections for acknowledgements",
            "Where more calls end at one moment, the messages of the others stay unacknowledged, "
            "and come again after the visibility timeout; a message that comes at that moment is "
            "lost.",
            "Give it more than the worker has greenlets",
            patient.transport_options(max_connections=1000),
        )


#: Where kombu's ``_get`` deletes the message, or hides it for good. In memory nothing outlives the
#: process anyway.
_DELIVERS_ONCE: Final = (
    *("filesystem", "sqlalchemy", "sqla", "mongodb", "consul", "etcd", "zookeeper"),
    *("azurestoragequeues", "pyro"),
)
_GREENLETS: Final = ("gevent", "eventlet")
_RESTORE: Final = ("unacked_restore_interval", "unacked_restore_throttle")
_LATE_S: Final = 30.0


def _keeps(server: Server, where: str) -> Iterator[Finding]:
    policy = server.info.get("maxmemory_policy", "noeviction")
    fix = "Set, in that server's configuration"
    if policy != "noeviction":
        # Only what expires is evicted by the "volatile" ones, and messages don't.
        level = ERROR if policy.startswith("allkeys") else WARNING
        yield Finding(
            "forgetful-broker",
            level,
            f"the broker at {where} evicts ({policy})",
            "It throws queues away when memory is short: their calls are lost.",
            fix,
            "maxmemory-policy noeviction",
        )
    elif keeps_nothing(server):
        yield Finding(
            "forgetful-broker",
            ERROR,
            f"the broker at {where} keeps nothing on disk",
            "When it restarts, all calls that waited are lost.",
            fix,
            "appendonly yes and appendfsync everysec",
        )
