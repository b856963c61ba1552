"""The contract of every store, as tests: give it a store and its clock, and it holds or it fails.

A store of your own passes it like this::

    import pytest

    pytest.register_assert_rewrite("celery_idempotent.testing.contract")

    from celery_idempotent.testing.store_contract import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def clock(self):
            return MyClock()                 # now_us(), advance(ms)

        @pytest.fixture
        def store(self, clock):
            return MyStore(clock=clock.now_us)   # empty

        def write_raw(self, store, key, packed):
            store.table[key] = packed

        def read_raw(self, store, key):
            return store.table.get(key)

A store whose clock cannot be moved passes :class:`StoreContractAtRest`, which asks for no ``clock``
and waits for nothing. It does not replace the other: have the store read its clock from somewhere
that a test can set, if only in a subclass.
"""

from __future__ import annotations

from celery_idempotent.testing.contract.answered import AnsweredInTimeRows, AnsweredRows
from celery_idempotent.testing.contract.answers import AnswerRows
from celery_idempotent.testing.contract.awaited import AwaitedInTimeRows, AwaitedRows
from celery_idempotent.testing.contract.claims import ClaimRows
from celery_idempotent.testing.contract.deliveries import DeadProcessRows, DeliveryRows
from celery_idempotent.testing.contract.endings import EndingRows
from celery_idempotent.testing.contract.freed import FreedRows
from celery_idempotent.testing.contract.given_back import GivenBackInTimeRows, GivenBackRows
from celery_idempotent.testing.contract.given_up import GivenUpRows
from celery_idempotent.testing.contract.instants import InstantRows
from celery_idempotent.testing.contract.kit import StoreClock
from celery_idempotent.testing.contract.latest import LatestInTimeRows, LatestRows
from celery_idempotent.testing.contract.reading import ReadingRows
from celery_idempotent.testing.contract.reserved import ReservedInTimeRows, ReservedRows
from celery_idempotent.testing.contract.resolving import HeldRows, MovedRows, ResolveRows
from celery_idempotent.testing.contract.steps import CompensationRows, RewoundRows, StepRows
from celery_idempotent.testing.contract.upkeep import StoredFormRows, UpkeepRows
from celery_idempotent.testing.contract.windows import WindowRows

__all__ = ["StoreClock", "StoreContract", "StoreContractAtRest"]


class StoreContractAtRest(
    AnsweredRows,
    AwaitedRows,
    ClaimRows,
    AnswerRows,
    EndingRows,
    GivenUpRows,
    DeliveryRows,
    DeadProcessRows,
    StepRows,
    RewoundRows,
    CompensationRows,
    ResolveRows,
    HeldRows,
    ReservedRows,
    MovedRows,
    GivenBackRows,
    LatestRows,
    StoredFormRows,
    UpkeepRows,
    ReadingRows,
):
    """All of the contract that needs nothing to run out.

    A subclass gives the fixture ``store`` (empty), and the methods ``write_raw`` and ``read_raw``.
    """


class StoreContract(
    StoreContractAtRest,
    AnsweredInTimeRows,
    AwaitedInTimeRows,
    InstantRows,
    WindowRows,
    FreedRows,
    ReservedInTimeRows,
    GivenBackInTimeRows,
    LatestInTimeRows,
):
    """The whole contract, with the instants at which things run out.

    A subclass gives the fixtures ``store`` (empty) and ``clock`` (:class:`StoreClock`), and the
    methods ``write_raw`` and ``read_raw``.
    """
