"""The names of the remote commands; what they do is imported by the worker that does it."""

from __future__ import annotations

from typing import Any

from celery.worker.control import Panel


def register() -> None:
    """Have the commands known, in a worker or to whoever asks workers."""
    Panel.register(type="inspect", name="idempotency")(_inspect)
    Panel.register(
        type="control",
        name="idempotency_forget",
        args=[("key", str), ("token", int)],
        signature="KEY [TOKEN]",
    )(_control_forget)


def _inspect(state: Any, **_: Any) -> list[dict[str, Any]] | dict[str, str]:
    """List the keys that this worker's tasks hold now, and the messages that wait for a key."""
    from celery_idempotent.ops import remote

    return remote.holdings(state.app)


def _control_forget(state: Any, key: str, token: int | None = None, **_: Any) -> dict[str, str]:
    """Free a key, so that its next call runs; with TOKEN only if that is still its token."""
    from celery_idempotent.ops import remote

    return remote.forget(state.app, key, token)
