"""Stamps: what each body sees of them."""

from __future__ import annotations

from typing import Any

from celery import chord, group
from celery.canvas import Signature, StampingVisitor

from tests.support.compositions.base import Tasks, gives


class Tenant(StampingVisitor):  # type: ignore[misc]
    """Stamp each signature with a tenant, and each kind with its own word."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    def on_signature(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        return {"tenant": self.tenant, "unlisted": 1, "stamped_headers": ["tenant"]}

    def on_group_start(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        return {"in_group": True}

    def on_callback(self, callback: Signature, **headers: Any) -> dict[str, Any]:
        return {"called_back": "yes"}

    def on_errback(self, errback: Signature, **headers: Any) -> dict[str, Any]:
        return {"called_back": "no"}


def stamped(sig: Any, tenant: str = "a") -> Any:
    sig.stamp(visitor=Tenant(tenant))
    return sig


@gives(6)
def stamps_on_a_chain(t: Tasks) -> Any:
    return stamped(t.add.s(1, 2) | t.add.s(3))()


@gives(5)
def stamps_on_a_chord(t: Tasks) -> Any:
    return stamped(chord([t.add.s(1, 1), t.add.s(2, 1)], t.total.s())).apply_async()


@gives([3, "ValueError: failed for (1,)"])
def stamps_on_callbacks(t: Tasks) -> Any:
    good = t.add.s(1, 2).set(link=[t.add.s(10)])
    bad = t.fail.s(1).set(link_error=[t.errback_by_id.s()])
    return stamped(group(good, bad))()


@gives(4)
def stamps_outlive_retry_and_replace(t: Tasks) -> Any:
    return stamped(t.twice.s(1) | t.become.s(other=t.add.s(3)))()


@gives(3)
def stamps_by_hand(t: Tasks) -> Any:
    sig = t.add.s(1, 2)
    sig.stamp(color=["red", "blue"])
    return sig.apply_async(link=t.echo.s())


class Everything(StampingVisitor):  # type: ignore[misc]
    """Stamp each thing with what it is."""

    def on_signature(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        return {"task": sig.task, "stamped_headers": ["task"]}

    def on_chord_header_start(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        super().on_chord_header_start(sig, **headers)
        return {"in_header": True, "stamped_headers": ["in_header"]}

    def on_chord_body(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        return {"in_body": True, "stamped_headers": ["in_body"]}


@gives(18)
def stamps_on_everything(t: Tasks) -> Any:
    parts = [t.add.s(1, 1) | t.add.s(2), group(t.add.s(2, 2), t.add.s(3, 3))]
    whole = chord(parts, t.total.s() | t.add.s(4))
    whole.stamp(Everything())
    return whole.apply_async()


@gives(4)
def stamps_that_are_appended(t: Tasks) -> Any:
    whole = t.add.s(1, 1) | t.add.s(2)
    whole.stamp(season="spring")
    whole.stamp(append_stamps=True, season="summer")
    return whole.apply_async()


@gives(3)
def stamps_on_a_replacement_by_a_chord(t: Tasks) -> Any:
    inner = chord([t.echo.si(1), t.echo.si(2)], t.total.s())
    inner.stamp(inner="yes")
    outer = t.become.si(other=inner)
    outer.stamp(Everything())
    return outer.apply_async()


@gives([[2], [3]])
def stamps_on_maps(t: Tasks) -> Any:
    both = group(t.add.starmap([(1, 1)]), t.total.map([[1, 2]]))
    both.stamp(season="spring")
    return both.apply_async()
