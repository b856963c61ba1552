"""Where a message came from, so that it can be put back there, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from kombu import entity

# kombu has no types for it.
_entity: Any = entity

#: Transports whose consumers listen to a fanout exchange itself: what is put into the queue by its
#: name is read by nobody.
_LISTENING: Final = ("redis",)
#: The exchanges of Celery's native delay, and what it puts in front of a routing key there: a bit
#: for each power of two.
_DELAYED: Final = "celery_delayed_"
_BITS: Final = re.compile(r"^(?:[01]\.)+")
_WILD: Final = {"*": r"[^.]+", "#": r".*?"}


class Origin(NamedTuple):
    """The queue that a message came from, as ``apply_async`` reaches it."""

    #: Options for ``apply_async``; empty: where Celery sends a retry is right.
    route: Mapping[str, Any]
    #: Whether every worker got a copy of the message.
    is_fanned_out: bool = False
    #: Whether all of them get it again: it can only be sent to the exchange.
    reaches_all: bool = False


_AS_CELERY: Final = Origin({})


def origin_of(app: Any, delivery_info: Mapping[str, Any] | None, delays_natively: bool) -> Origin:
    """Give where a message is to be put back.

    Celery sends a retry to the exchange that the message came by. Where several queues are bound to
    that, as with ``Broadcast``, each of them would get a copy of each copy.

    Args:
        delays_natively: whether the broker delays messages, which it does by the exchange only.
    """
    info = delivery_info or {}
    exchange, key = info.get("exchange") or "", info.get("routing_key") or ""
    for queue in app.amqp.queues.consume_from.values():
        kind = _kind_of(queue, exchange, key)
        if kind is not None:
            # Several queues may have got a copy. Whichever this one is, each copy is put back once.
            break
    else:
        return _AS_CELERY
    if kind == "direct" and not exchange:
        return _AS_CELERY
    is_fanned_out = kind == "fanout"
    if is_fanned_out and app.connection_for_write().transport.driver_type in _LISTENING:
        # A connection that has not declared the exchange would not know that it is one of these.
        return Origin({"declare": [queue.exchange]}, is_fanned_out=True, reaches_all=True)
    if delays_natively and kind == "topic":
        return Origin({"queue": queue})
    # The queue exists, and only its consumers know how it was declared.
    nowhere = _entity.Exchange("", type="direct")
    named = _entity.Queue(queue.name, nowhere, queue.name, no_declare=True)
    return Origin({"queue": named, "exchange": "", "routing_key": queue.name}, is_fanned_out)


def _kind_of(queue: Any, exchange: str, key: str) -> str | None:
    """Give the type of the exchange by which a queue may have got a message; ``None``: by none."""
    bindings = queue.bindings or [queue]
    if not exchange:
        # By its name; what counts is where Celery would send its retry.
        first = next(iter(bindings)).exchange
        return (first.type if first else "direct") if queue.name == key else None
    for binding in bindings:
        bound = binding.exchange
        if not bound:
            continue
        delayed = _DELAYED in exchange and bound.type == "topic"
        if not delayed and exchange != bound.name:
            continue
        came = _BITS.sub("", key) if delayed else key
        if bound.type in ("fanout", "headers") or _fits(bound.type, binding.routing_key, came):
            return str(bound.type)
    return None


def _fits(kind: str, pattern: str | None, key: str) -> bool:
    if kind != "topic" or pattern == key:  # a delayed message has its queue's pattern for a key
        return pattern == key
    words = (_WILD.get(word, re.escape(word)) for word in (pattern or "").split("."))
    return re.fullmatch(r"\.".join(words), key) is not None
