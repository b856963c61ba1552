"""OpenTelemetry: keys on Celery's own spans, and links to originals: extra ``[opentelemetry]``.

The spans are those of ``opentelemetry-instrumentation-celery`` (or of any instrumentation that
makes one current while a task runs)::

    from celery_idempotent.ops import tracing

    tracing.install()

A run leaves the context of its span beside its record; a duplicate's span links to it.
"""

from __future__ import annotations

from typing import Any

from celery_idempotent.errors import missing_extra
from celery_idempotent.observers import Observation, name_spans, observe

__all__ = ["install"]

try:
    from opentelemetry import trace
    from opentelemetry.trace import Link, SpanContext, TraceFlags  # noqa: F401
except ImportError as exc:
    raise missing_extra(exc, "tracing needs", "opentelemetry") from exc

_ATTRIBUTES = ("interruptions", "attempt", "token", "delay")


def _observe(seen: Observation) -> None:
    span = trace.get_current_span()
    if not span.is_recording() or seen.what in ("claim", "complete"):
        return
    span.set_attribute("celery.idempotency.outcome", seen.what)
    span.set_attribute("celery.idempotency.key", seen.key)
    if seen.original_id is not None:
        span.set_attribute("celery.idempotency.original", seen.original_id)
    for name in _ATTRIBUTES:
        value = seen.details.get(name)
        if isinstance(value, (int, float)):
            span.set_attribute(f"celery.idempotency.{name}", value)
    context = _context_of(seen.details.get("trace"))
    if context is not None:
        span.add_link(context, {"celery.idempotency.relation": "original"})


def _context_of(text: Any) -> SpanContext | None:
    if not isinstance(text, str):
        return None
    try:
        trace_id, span_id = (int(part, 16) for part in text.split("-"))
    except ValueError:
        return None
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(1))


def _here() -> str:
    """Return the current span as text that a record can keep."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}-{context.span_id:016x}" if context.is_valid else ""


def install() -> None:
    """Put attributes and links on the spans of tasks, in this process and those it forks."""
    name_spans(_here)
    observe(_observe)
