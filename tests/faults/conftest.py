"""Systems whose workers can be told where to die."""

from __future__ import annotations

from functools import partial

import pytest

from tests.conftest import MakeSystem


@pytest.fixture
def make_faulty(make_redis_system: MakeSystem) -> MakeSystem:
    """Make a system on Redis with the tasks of ``tests.support.faults``."""
    return partial(make_redis_system, test_faults=True)
