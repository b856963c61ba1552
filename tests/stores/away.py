"""Many callers of one process, and a store that is away; run as a program, they are greenlets."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.verdicts import Claim, Reserve
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.outage import Outage
from celery_idempotent.stores.urls import store_from_url
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

CALLERS = 20
#: For how long a store of these tests waits for an answer, in seconds: longer than a test does.
PATIENCE_S = 300
#: For how long a test waits for an answer.
_SOON_S = 60
CANDIDATE = Record(State.RUNNING, 0, owner=b"owner", process=b"process", nonce=b"nonce")
CLAIM = Claim(CANDIDATE, 30_000, 60_000)

Ask = Callable[[Store], Any]


def claim(store: Store) -> Any:
    return store.claim("idempotent:{away:1}", CLAIM)


def reserve(store: Store) -> Any:
    reservation = Reservation(owner=b"owner")
    return store.reserve("idempotent:{away:2}", Reserve(reservation, 10_000, False, False))


def store_through(url: str, port: int) -> Store:
    """Make a store whose connections go through the proxy at a port."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    through = parts._replace(netloc=f"{login}{at}127.0.0.1:{port}").geturl()
    if parts.scheme.startswith("redis"):
        return store_from_url(through, {"socket_timeout": PATIENCE_S})
    return store_from_url(through, {"timeout": PATIENCE_S})


def proxy_to(url: str) -> Proxy:
    """Make a proxy to the server that a URL names."""
    parts = urlsplit(url)
    return Proxy(parts.hostname or "", parts.port or 0)


def outage_of(store: Any) -> Outage:
    """Return what a store knows of its server."""
    outage: Outage = store._wire.outage if hasattr(store, "_wire") else store.rows.outage
    return outage


def ask_while_it_hangs(
    store: Store, proxy: Proxy, ask: Ask, done: Callable[[], None] = lambda: None
) -> list[str]:
    """Return what callers are told while one of them asks a store that hangs.

    Args:
        done: each caller calls it when it has its answer.
    """
    outage = outage_of(store)

    def told(_: int = 0) -> str:
        try:
            return type(ask(store)).__name__
        except StoreUnavailable as exc:
            return "away" if not exc.may_have_arrived else "lost"
        finally:
            done()

    ask(store)
    proxy.refuse()
    assert told() in ("away", "lost")
    assert outage.is_away
    proxy.freeze()
    proxy.accept()
    with ThreadPoolExecutor(CALLERS + 1) as callers:
        outage.failed_at = -math.inf  # not just now
        first = callers.submit(told)
        eventually(lambda: proxy.is_frozen, "somebody asks", _SOON_S)
        outage.failed_at = -math.inf
        try:
            given = list(callers.map(told, range(CALLERS), timeout=_SOON_S))
            assert not first.done()
        finally:
            proxy.thaw()
        first.result(_SOON_S)
        # Now that it answers, nobody is refused.
        outage.failed_at = -math.inf
        assert told() not in ("away", "lost")
        assert not outage.is_away
        assert not {"away", "lost"} & set(callers.map(told, range(CALLERS), timeout=_SOON_S))
    return given


def main(url: str) -> None:
    """Ask the store at a URL from greenlets, and print what they were told."""
    proxy = proxy_to(url)
    store = store_through(url, proxy.port)
    try:
        sys.stdout.write(" ".join(ask_while_it_hangs(store, proxy, claim)))
    finally:
        store.close()
        proxy.close()


if __name__ == "__main__":
    main(sys.argv[1])
