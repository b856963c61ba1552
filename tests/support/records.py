"""Records in a store, made in few words: one in each state, for what shows them."""

from __future__ import annotations

import uuid

import redis

from celery_idempotent.core.codec import Kind, Outcome
from celery_idempotent.core.keys import CallKey, Owner, record_key
from celery_idempotent.core.record import Process, Record, State
from celery_idempotent.core.verdicts import Claim, Claimed, Settle
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.testing.contract.kit import replace

TTL_MS = 100_000
JSON = ("application/json", "utf-8")


class StoredRecords:
    """A store, and what a test puts there.

    Args:
        raw: a client of the same server, to write what the store would not.
    """

    def __init__(self, store: Store, prefix: str, raw: redis.Redis | None = None) -> None:
        self.store = store
        self.prefix = prefix
        self.raw = raw

    def hold(
        self, key: str = "order:42", task: str = "shop.charge", owner: str = "", label: str = ""
    ) -> tuple[str, Record]:
        """Claim a key and leave it running."""
        name = record_key(self.prefix, CallKey(task, key, "", b"", False))
        record = Record(
            State.RUNNING,
            0,
            owner=Owner(owner or str(uuid.uuid4())).pack(),
            process=Process("host-1", 77, "boot").pack(),
            nonce=uuid.uuid4().bytes[:8],
            label=label,
        )
        claimed = self.store.claim(name, Claim(record, 30_000, TTL_MS))
        assert isinstance(claimed, Claimed)
        return name, replace(record, token=claimed.token)

    def done(
        self,
        key: str = "order:42",
        task: str = "shop.charge",
        outcome: bytes = b"",
        owner: str = "",
        label: str = "",
    ) -> str:
        """Claim a key and complete it."""
        name, held = self.hold(key, task, owner, label)
        outcome = outcome or Outcome(Kind.RESULT, *JSON, b'{"receipt": 7}').pack()
        self.end(name, held, State.SUCCEEDED, outcome)
        return name

    def freed(
        self, key: str = "order:42", task: str = "shop.charge", kind: Kind = Kind.RESULT
    ) -> str:
        """Claim a key, and free it with the outcome of its run, as with a window of 0."""
        name, held = self.hold(key, task)
        self.end(name, held, State.RELEASED, Outcome(kind, *JSON, b'{"receipt": 7}').pack())
        return name

    def cut_off(self, key: str = "order:42", task: str = "shop.charge", owner: str = "") -> str:
        """Claim a key, and end the lease of its run, which counts as running still."""
        name, held = self.hold(key, task, owner)
        self.end(name, held, State.RUNNING)
        return name

    def unknown(self, key: str = "order:42", task: str = "shop.charge") -> str:
        """Claim a key, have its run cut off, and ask again where that makes it unknown."""
        name, held = self.hold(key, task)
        self.end(name, held, State.RUNNING)
        again = replace(held, owner=Owner("another").pack(), token=0, nonce=uuid.uuid4().bytes[:8])
        self.store.claim(name, Claim(again, 30_000, TTL_MS, max_interruptions=0))
        found = self.store.get(name)
        assert found is not None
        assert found.state is State.UNKNOWN
        return name

    def end(self, name: str, held: Record, state: State, outcome: bytes = b"") -> None:
        """Record how a run ended."""
        ended = replace(held, state=state, process=b"", nonce=b"", outcome=outcome)
        self.store.settle(name, Settle(ended, 0, TTL_MS))

    def write(self, name: str, packed: bytes) -> None:
        """Put something under a name, past the store."""
        if isinstance(self.store, MemoryStore):
            self.store._records[name] = (packed, self.store.now_ms() + TTL_MS)
        else:
            assert self.raw is not None
            self.raw.set(name, packed)
