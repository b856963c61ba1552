"""A process that claims and completes as many keys in a store as its standard input says."""

from __future__ import annotations

import os
import sys
import time

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Claim, Claimed, Settle
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.urls import store_from_url

__all__ = ["DAY_MS", "execute"]

DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
_LEASE_MS = 30_000
#: A result of 64 bytes, as the codec packs it.
_OUTCOME = b"\1\1" + b'"' + b"x" * 62 + b'"'


def execute(store: Store, name: str, number: int) -> str:
    """Claim and complete one key, as a first execution does, and return the key."""
    key = f"idempotent:{{shop.charge:order:{name}:{number}}}"
    owner = b"U" + os.urandom(16)
    candidate = Record(
        State.RUNNING, 0, owner=owner, process=b"bench", nonce=os.urandom(8), fingerprint=owner[1:]
    )
    claimed = store.claim(key, Claim(candidate, _LEASE_MS, DAY_MS + _HOUR_MS, 3))
    assert isinstance(claimed, Claimed), claimed
    done = Record(
        State.SUCCEEDED, claimed.token, owner=owner, fingerprint=owner[1:], outcome=_OUTCOME
    )
    store.settle(key, Settle(done, 0, DAY_MS))
    return key


def main() -> None:
    """Connect; for each line of input execute so many, and print the seconds that it took."""
    url, name = sys.argv[1:]
    store, done = store_from_url(url), 0
    execute(store, name, -1)
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for number in range(done, done + int(line)):
            execute(store, name, number)
        print(time.perf_counter() - began, flush=True)
        done += int(line)
    store.close()


if __name__ == "__main__":
    main()
