"""What watches an app: each counts one error, the failure's, and none for a duplicate or a wait."""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from celery import Celery, signals

from celery_idempotent.signals import task_waiting
from tests.ecosystem.adapter import Adapter, Figure
from tests.ecosystem.world import World

__all__ = ["Datadog", "Elastic", "NewRelic", "OldSentry", "OpenTelemetry", "Sentry"]

Note = Callable[..., None]


class Sentry(Adapter):
    """Sentry's SDK, with the envelopes that it would send."""

    def install(self, app: Celery, note: Note) -> None:
        import sentry_sdk
        from sentry_sdk.transport import Transport

        class Noting(Transport):
            def capture_envelope(self, envelope: Any) -> None:
                for item in envelope.items:
                    if item.headers.get("type") not in ("event", "transaction"):
                        continue
                    event = item.payload.json
                    trace = event.get("contexts", {}).get("trace", {})
                    note(
                        item.headers["type"],
                        op=trace.get("op"),
                        status=trace.get("status"),
                        transaction=event.get("transaction"),
                    )

        sentry_sdk.init(
            dsn="https://public@sentry.invalid/1", transport=Noting, traces_sample_rate=1.0
        )

    def figures(self, world: World) -> Iterator[Figure]:
        # What the starting worker says of its store is one, too, and is meant to be.
        tasks = [it["transaction"] for it in world.ledger.entries("event") if it["transaction"]]
        yield Figure("errors of tasks", tasks, ["shop.decline"])
        failed = world.ledger.count("transaction", op="queue.task.celery", status="internal_error")
        yield Figure("transactions that failed", failed, 1)
        right = world.ledger.count("transaction", op="queue.task.celery", status="ok")
        answered = world.ledger.count("finished", state="SUCCESS")
        yield Figure("transactions that succeeded", right, answered)
        left = world.ledger.count("transaction", op="queue.task.celery", status="aborted")
        yield Figure("transactions of waits and retries", left, _left(world))


class OldSentry(Sentry):
    """A release that nests the headers of a message."""


class OpenTelemetry(Adapter):
    """OpenTelemetry's instrumentation, with an exporter of our own."""

    def install(self, app: Celery, note: Note) -> None:
        from opentelemetry import trace
        from opentelemetry.instrumentation.celery import CeleryInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import (
            SimpleSpanProcessor,
            SpanExporter,
            SpanExportResult,
        )

        from celery_idempotent.ops import tracing

        class Noting(SpanExporter):
            def export(self, spans: Any) -> SpanExportResult:
                for span in spans:
                    found = dict(span.attributes or {})
                    note(
                        "span",
                        kind=span.kind.name,
                        status=span.status.status_code.name,
                        id=found.get("messaging.message.id") or found.get("celery.task_id"),
                        outcome=found.get("celery.idempotency.outcome"),
                        linked=len(span.links),
                    )
                return SpanExportResult.SUCCESS

        def instrument(**_: Any) -> None:
            provider = TracerProvider()
            provider.add_span_processor(SimpleSpanProcessor(Noting()))
            trace.set_tracer_provider(provider)
            CeleryInstrumentor().instrument()
            tracing.install()

        if "worker" in sys.argv:
            signals.worker_process_init.connect(instrument, weak=False)
        else:
            instrument()

    def figures(self, world: World) -> Iterator[Figure]:
        ledger = world.ledger
        errors = {it["id"] for it in ledger.entries("span", status="ERROR")}
        yield Figure("spans with an error", errors, world.failures)
        consumed = {it["id"] for it in ledger.entries("span", kind="CONSUMER")}
        yield Figure("calls that have a span", consumed >= set(world.calls), True)
        dups = {it["id"] for it in ledger.entries("span", outcome="deduplicated")}
        yield Figure("spans that say they are a duplicate's", dups, world.duplicates)
        linked = {it["id"] for it in ledger.entries("span", outcome="deduplicated") if it["linked"]}
        yield Figure("duplicates' spans that link to the run's", linked, world.duplicates)


class Datadog(Adapter):
    """Datadog's tracer, with distributed tracing, and a processor that takes the traces."""

    def environment(self) -> dict[str, str]:
        return {
            "DD_CELERY_DISTRIBUTED_TRACING": "true",
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
            "DD_REMOTE_CONFIGURATION_ENABLED": "false",
            "DD_TRACE_STARTUP_LOGS": "false",
        }

    def prepare(self) -> None:
        from ddtrace import patch

        patch(celery=True)

    def install(self, app: Celery, note: Note) -> None:
        from ddtrace.trace import TraceFilter, tracer

        class Noting(TraceFilter):
            def process_trace(self, trace: Any) -> None:
                for span in trace:
                    note(
                        "span",
                        name=span.name,
                        error=span.error,
                        id=span.get_tag("celery.id"),
                        state=span.get_tag("celery.state"),
                    )

        tracer.configure(trace_processors=[Noting()])

    def figures(self, world: World) -> Iterator[Figure]:
        ledger = world.ledger
        errors = [it["id"] for it in ledger.entries("span", name="celery.run", error=1)]
        yield Figure("spans with an error", errors, list(world.failures))
        ids = {it["id"] for it in ledger.entries("span", name="celery.run")}
        yield Figure("calls that have a span", ids >= set(world.calls), True)
        left = ledger.count("span", name="celery.run", state="RETRY", error=0)
        yield Figure("spans of waits and retries", left, _left(world))


class Elastic(Adapter):
    """Elastic's agent, and a server that takes what it sends."""

    def start(self) -> None:
        events = self.events = []  # type: ignore[var-annotated]

        class Intake(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(b'{"version": "8.0.0"}')

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    raw = gzip.decompress(raw)
                events.extend(json.loads(line) for line in raw.splitlines())
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(202 if not body else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Intake)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        return {
            "ELASTIC_APM_SERVER_URL": f"http://127.0.0.1:{self._server.server_port}",
            "ELASTIC_APM_SERVICE_NAME": "shop",
            "ELASTIC_APM_METRICS_INTERVAL": "0s",
            "ELASTIC_APM_CENTRAL_CONFIG": "false",
            "ELASTIC_APM_CLOUD_PROVIDER": "none",
            "ELASTIC_APM_API_REQUEST_TIME": "500ms",
        }

    def install(self, app: Celery, note: Note) -> None:
        from elasticapm import Client
        from elasticapm.contrib.celery import register_exception_tracking, register_instrumentation

        if "worker" in sys.argv:
            task_waiting.connect(_is_no_failure, weak=False)
            client = Client()
            register_exception_tracking(client)
            register_instrumentation(client)

    def figures(self, world: World) -> Iterator[Figure]:
        done = [it["transaction"] for it in self.events if "transaction" in it]
        tally = {
            outcome: len([it for it in done if it["outcome"] == outcome])
            for outcome in ("success", "failure", "unknown")
        }
        # A body that asks for a retry is a failure to it, in plain Celery, too.
        retried = 1
        yield Figure("transactions that failed", tally["failure"], 1 + retried)
        yield Figure("transactions of waits", tally["unknown"], _left(world) - retried)
        right = world.ledger.count("finished", state="SUCCESS")
        yield Figure("transactions that succeeded", tally["success"], right)
        yield Figure("errors", len([it for it in self.events if "error" in it]), 1)


def _left(world: World) -> int:
    """Count the deliveries that left with ``Retry``."""
    return world.ledger.count("finished", state="RETRY")


def _is_no_failure(**_: Any) -> None:
    """As the page says it."""
    import elasticapm

    elasticapm.set_transaction_outcome("unknown")


class NewRelic(Adapter):
    """New Relic's agent, which in its developer mode writes down what it would send."""

    #: As the page says it.
    ignored = "celery.exceptions:Retry celery.exceptions:Ignore"

    def environment(self) -> dict[str, str]:
        return {"NEW_RELIC_CONFIG_FILE": str(self.directory / "newrelic.ini")}

    def start(self) -> None:
        (self.directory / "newrelic.ini").write_text(
            "[newrelic]\n"
            "license_key = 0000000000000000000000000000000000000000\n"
            "app_name = shop\n"
            "developer_mode = true\n"
            "startup_timeout = 30\n"  # else the first tasks of a process are not watched
            "shutdown_timeout = 30\n"
            f"log_file = {self.directory}/newrelic.log\n"
            f"audit_log_file = {self.directory}/audit.log\n"
            f"error_collector.ignore_classes = {self.ignored}\n"
        )

    def worker_command(self, command: list[str]) -> list[str]:
        return [command[0], "-m", "newrelic.admin", "run-program", *command]

    def figures(self, world: World) -> Iterator[Figure]:
        audit = (self.directory / "audit.log").read_text("utf-8", "replace")
        errors = set(re.findall(r"'error\.class': '(.+?)'", audit))
        yield Figure("classes of errors", errors, {"builtins:ValueError"})
        found = re.findall(r"'OtherTransaction/Celery/shop\.(\w+)'", audit)
        yield Figure("tasks", set(found), {"charge", "decline", "flaky", "tail", "total"})
