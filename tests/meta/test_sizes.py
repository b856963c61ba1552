"""The sizes that the documentation gives are those of its formulas, and of real records."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest
import redis

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.options import Options
from celery_idempotent.core.record import Record, State
from celery_idempotent.testing.servers import RedisServer

PAGE = (Path(__file__).parents[2] / "docs" / "performance.rst").read_text()
MILLION = 1_000_000
RECORD = SLIP = 250
DAY_S = 86_400
HORIZON_S = 2 * 3600
MANY = 10_000


def rows() -> list[list[str]]:
    """The rows of the table, below its head."""
    table = PAGE.partition(".. list-table:: Sizes")[2].partition("\nThe journal takes")[0]
    return [re.findall(r"- (.*)", row) for row in table.split("   * ")[2:]]


def test_the_table_is_what_the_formulas_say() -> None:
    """For each number of calls a day."""
    assert [row[0] for row in rows()] == ["1 million", "10 million", "100 million"]
    for calls, records, slips, commands in rows():
        number = int(calls.split()[0]) * MILLION
        days = Options().ttl / DAY_S
        assert float(records.split()[0]) == pytest.approx(number * days * RECORD / 1e9)
        assert float(slips.split()[0]) == round(number * HORIZON_S / DAY_S * SLIP / 1e9, 2)
        assert int(commands.replace(",", "")) == round(number * 2 / DAY_S)


@pytest.mark.system
def test_a_record_takes_what_the_page_says(own_server: RedisServer) -> None:
    """A finished one with a readable key, with what the server keeps beside it, no result."""
    with redis.Redis.from_url(own_server.url()) as client:
        # Given
        before = client.info("memory")["used_memory"]
        pipeline = client.pipeline(transaction=False)
        for number in range(MANY):
            record = Record(
                State.SUCCEEDED,
                1_700_000_000_000_000 + number,
                owner=Owner(str(uuid.UUID(int=number))).pack(),
                fingerprint=bytes(16),
                label="shop.charge",
            )
            pipeline.set(f"idempotent:{{shop.charge:order:{number}}}", record.pack(), px=86_400_000)
        # When
        pipeline.execute()
        taken = client.info("memory")["used_memory"] - before
    # Then
    assert 150 < taken / MANY <= RECORD
