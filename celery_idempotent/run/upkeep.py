"""What a store needs done now and then, if it is one that deletes nothing by itself."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

from celery_idempotent.errors import StoreError
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.stores.base import Store

__all__ = ["now_and_then"]

log = logging.getLogger("celery_idempotent")

#: Every process that runs tasks has its turn once in about that time, in seconds.
_EVERY_S: Final = 60.0
#: ... and sooner, where a turn was not enough.
_SOON_S: Final = 2.0


_due: WeakKeyDictionary[Store, tuple[int, float]] = WeakKeyDictionary()


def now_and_then(store: Store) -> None:
    """Have the heartbeat tend a store, if it needs that and its turn has come.

    Such a store has a method ``tend``, which does a part of what has to be done and says whether
    there is more.
    """
    tend: Callable[[], bool] | None = getattr(store, "tend", None)
    if tend is None:
        return
    now, pid = time.monotonic(), os.getpid()
    whose, due = _due.get(store, (0, 0.0))
    if whose == pid and now < due:
        return
    # The first time, too: the processes of a worker begin together.
    _due[store] = (pid, now + _EVERY_S * random.uniform(0.5, 1.5))
    if whose != pid:
        return

    def tell() -> None:
        try:
            more = tend()
        except StoreError as exc:
            log.info("what expired is deleted later: %s", exc)
        else:
            if more:
                _due[store] = (pid, time.monotonic() + _SOON_S)

    heartbeat.later(tell, "what expired is deleted", 0.0, must=False)
