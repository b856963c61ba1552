"""A client in a random history: one delivery of a message, as a worker holds it."""

from __future__ import annotations

from dataclasses import dataclass

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Lost, Recorded
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract import kit
from celery_idempotent.testing.contract.kit import TTL_MS, Message

MOST_RETRIES = 2
RETRY_MS = 60_000

#: How a body may end: what the run then writes.
ENDINGS = ("complete", "complete", "fail", "release failed", "release", "retry", "interrupt")


@dataclass(eq=False)
class Client:
    """One delivery in a worker's hands."""

    message: Message
    process: bytes
    nonce: bytes
    #: The owner that its last Busy named.
    awaited: bytes = b""
    #: The record as its run knows it, once it was told that the key is its own.
    held: Record | None = None
    #: How its body ended, while the store is still to be told.
    ending: str = ""
    #: What the store was told may be told again: the answer to it was lost.
    told: bool = False


def is_asking(client: Client) -> bool:
    return client.held is None


def is_running(client: Client) -> bool:
    return client.held is not None and not client.ending


def is_ending(client: Client) -> bool:
    return bool(client.ending)


def outcome_of(ending: str, held: Record) -> bytes:
    """Give an outcome that tells whose it is."""
    return (kit.RESULT if ending == "complete" else kit.FAILURE) + str(held.token).encode()


def write_end(store: Store, held: Record, ending: str) -> Recorded | Lost:
    if ending == "complete":
        return kit.complete(store, held, outcome_of(ending, held))
    if ending == "fail":
        told = outcome_of(ending, held)
        return kit.settle(store, held, State.FAILED, 0, TTL_MS, outcome=told)
    if ending == "retry":
        return kit.retry(store, held, RETRY_MS)
    if ending == "release failed":
        return kit.release_failed(store, held)
    if ending == "release":
        return kit.release(store, held)
    return kit.interrupt(store, held)
