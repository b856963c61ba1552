"""Goal 2: the guard alone, in one process, against the same round trips without it."""

from __future__ import annotations

import itertools
import statistics
import uuid
from collections.abc import Iterator
from typing import Any

from celery import Celery

from benchmarks.speed.bare import Bare
from benchmarks.speed.measure import Effort, Goal, Say, ratio, rounds
from celery_idempotent import IdempotentTask
from celery_idempotent.core.record import Owner
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.servers import RedisServer

__all__ = ["measure_guard"]


def _app(url: str) -> Celery:
    app = Celery("guard", broker="memory://", backend="cache+memory://")
    # Late acknowledgement for all, as for the guarded task: Celery does more then.
    app.conf.update(idempotency_store_url=url, idempotency_journal=0, task_acks_late=True)
    return app


def measure_guard(server: RedisServer, quick: bool, say: Say) -> list[Goal]:
    """Measure an eager IdempotentTask against an eager plain one with bare round trips."""
    app, bare = _app(server.url(3)), Bare(server.url(3))
    fresh: Iterator[int] = itertools.count()

    @app.task(name="guard.plain", shared=False)
    def plain(number: int, a: int, b: int) -> int:
        return 1

    @app.task(name="guard.bare_first", shared=False)
    def bare_first(number: int, a: int, b: int) -> int:
        key, owner = f"bare:{{guard:{number}}}", Owner(str(uuid.uuid4())).pack()
        token = bare.claim(key, owner)
        assert isinstance(token, int)
        bare.complete(key, owner, token)
        return 1

    @app.task(name="guard.bare_replay", shared=False)
    def bare_replay(number: int, a: int, b: int) -> int:
        bare.claim("bare:{guard:-1}", Owner(str(uuid.uuid4())).pack())
        return 1

    @app.task(
        base=IdempotentTask, idempotency_key="order:{number}", name="guard.guarded", shared=False
    )
    def guarded(number: int, a: int, b: int) -> int:
        return 1

    owner = Owner("first").pack()
    token = bare.claim("bare:{guard:-1}", owner)
    assert isinstance(token, int)
    bare.complete("bare:{guard:-1}", owner, token)
    guarded.apply((-1, 2, 3))

    def times(task: Any, number: int | None) -> Any:
        def run(count: int) -> None:
            for _ in range(count):
                task.apply((next(fresh) if number is None else number, 2, 3))

        return run

    setup = guarded._setup()

    def derivations(count: int) -> None:
        for _ in range(count):
            setup.scheme.derive((42, 100, "EUR"), {}, task_id="x", task=guarded)

    timed = rounds(
        {
            "plain": times(plain, None),
            "bare first": times(bare_first, None),
            "guarded first": times(guarded, None),
            "bare replay": times(bare_replay, None),
            "guarded replay": times(guarded, -1),
            "a key": derivations,
        },
        40,
        Effort(60, 8) if quick else Effort(600),
        say,
    )
    environment_of(app).store.close()
    pairs = [bare.timed_scripts(40, 1000 * turn) for turn in range(50 if quick else 600)]
    micro = {name: statistics.median(one) * 1e6 for name, one in timed.items()}
    parts = ", ".join(f"{name} {value:.0f} µs" for name, value in micro.items())
    real, trivial = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    parts += f", both scripts {statistics.median(real) * 1e6:.0f} µs"
    return [
        Goal.of(
            "2a",
            "first execution: bare round trips to the guard's cost",
            ratio(timed["bare first"], timed["guarded first"], timed["plain"]),
            ">=",
            0.85,
            parts,
        ),
        Goal.of(
            "2b",
            "replay: a bare round trip to the guard's cost",
            ratio(timed["bare replay"], timed["guarded replay"], timed["plain"]),
            ">=",
            0.85,
        ),
        Goal.of(
            "2c",
            "two trivial scripts to the two real ones",
            ratio(trivial, real),
            ">=",
            0.85,
        ),
        Goal(
            "2d",
            "a key from three scalars, in round trips",
            2 * statistics.median(timed["a key"]) / statistics.median(trivial),
            "<=",
            0.2,
        ),
    ]
