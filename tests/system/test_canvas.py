"""Every way of composing tasks, run by plain Celery and by guarded tasks side by side.

All tasks of the guarded system are ``IdempotentTask`` with the key ``MESSAGE_ID``, by
``Celery(task_cls=...)`` and a setting: that has to change nothing that a composition shows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from celery_idempotent.testing.servers import RedisServer
from tests.support.comparison import ComparedSystem, differences
from tests.support.compositions import ANYTHING, COMPOSITIONS, Composition, Tasks
from tests.support.system import STORE_DB

pytestmark = pytest.mark.long(0.5)


@pytest.fixture(scope="module")
def systems(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ComparedSystem, ComparedSystem]]:
    """Both systems, started once."""
    with RedisServer() as server:
        made: list[ComparedSystem] = []
        try:
            for kind, db in (("plain", 0), ("guarded", 3)):
                made.append(ComparedSystem(kind, server, db, tmp_path_factory.mktemp(kind)))
            for system in made:
                system.worker.wait_until_ready()
            yield made[0], made[1]
        finally:
            for system in made:
                system.close()


@pytest.mark.parametrize("composition", COMPOSITIONS, ids=lambda it: it.name)
def test_a_composition_is_what_it_is_in_plain_celery(
    systems: tuple[ComparedSystem, ComparedSystem], composition: Composition
) -> None:
    """Outcome, states, children, parents, what is stored, bodies, stamps, callbacks: the same."""
    # Given
    plain, guarded = systems
    # When
    as_plain, as_guarded = plain.compose(composition), guarded.compose(composition)
    # Then
    without, with_guard = plain.observe(*as_plain), guarded.observe(*as_guarded)
    if composition.expected is not ANYTHING:
        assert without["outcome"] == composition.expected
    assert list(differences(without, with_guard)) == []


def test_the_guarded_side_was_guarded(systems: tuple[ComparedSystem, ComparedSystem]) -> None:
    """Each message whose body ran there has a record."""
    # Given
    _, guarded = systems
    sent = Tasks(guarded.system.app, guarded.ledger).add.delay(1, 2)
    assert sent.get(timeout=30) == 3
    # When
    url = guarded.system.store.url(STORE_DB)
    with redis.Redis.from_url(url) as client:
        records = b"\n".join(client.scan_iter(count=1000)).decode()
    # Then
    ran = guarded.ledger.ids("body") - {None}  # those in a map, and errbacks, are called directly
    assert sent.id in ran
    assert {task_id for task_id in ran if task_id not in records} == set()
