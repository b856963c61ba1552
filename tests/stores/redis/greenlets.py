"""Two hundred greenlets claim keys of a Redis; prints how many connections that took."""

from __future__ import annotations

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import redis

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Claim, Claimed
from celery_idempotent.stores.redis import wire
from celery_idempotent.stores.redis.store import RedisStore

GREENLETS = 200


def main(url: str) -> None:
    """Claim keys of the server at a URL, and count the store's connections there."""
    wire._IDLE_S = 600.0  # however long a busy machine takes, none is closed meanwhile
    store = RedisStore.from_url(url, {"socket_timeout": 300.0})
    server = redis.Redis.from_url(url)
    mine = b"greenlets"

    def claim(number: int) -> bool:
        nonce = os.urandom(8)
        candidate = Record(State.RUNNING, 0, owner=mine, process=mine, nonce=nonce)
        key = f"idempotent:{{greenlets:{number}}}"
        return isinstance(store.claim(key, Claim(candidate, 30_000, 60_000)), Claimed)

    with ThreadPoolExecutor(GREENLETS) as greenlets:
        # Nothing is answered until each of them has a connection or waits for one.
        server.client_pause(300_000, all=False)
        claims = greenlets.map(claim, range(5 * GREENLETS))
        while len(store._wire._made) + len(store._wire._waiting) < GREENLETS:
            time.sleep(0.01)
        server.client_unpause()
        server.close()
        claimed = sum(claims)
    clients = store._wire.command("CLIENT", "LIST").splitlines()
    sys.stdout.write(f"{claimed} {len(clients)}")
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])
