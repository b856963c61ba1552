"""The same histories against the store on Django's ORM."""

from __future__ import annotations

import pytest

from tests.django import test_contract as contract
from tests.stores.histories import run_histories

alias = contract.alias


@pytest.mark.long(5)
def test_in_django(alias: str) -> None:
    """Whatever happens in whatever order, on each of Django's databases."""
    store = contract.empty(alias)
    store.rows.now_us = "(SELECT now_us FROM virtual_clock)"
    clock = contract.VirtualClock(alias)

    def reset() -> None:
        contract.empty(alias)
        clock.reset()

    run_histories(store, clock, reset, 10)
