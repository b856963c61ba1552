"""The bank of the demo's last act: payments are rows, so that they can be counted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["PAYMENTS", "Payment", "open_bank", "pay", "payments_of"]

#: One row for each movement of money. The key is the same for every attempt of one payment.
PAYMENTS: Final = (
    "CREATE TABLE IF NOT EXISTS payments "
    "(number INTEGER PRIMARY KEY, side TEXT, paid_for TEXT, receipt TEXT, once TEXT UNIQUE)"
)
_WAIT_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Payment:
    """One payment."""

    side: str
    order: str
    receipt: str


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_WAIT_SECONDS)


def open_bank(path: Path) -> None:
    """Make the table."""
    with closing(_connect(path)) as bank, bank:
        bank.execute(PAYMENTS)


def pay(path: Path, payment: Payment, once: str | None = None) -> str:
    """Move the money, and return the receipt.

    ``once`` is a key: a payment with this key is made once, and later calls get its receipt, as
    with a payment provider that has idempotency keys.
    """
    with closing(_connect(path)) as bank, bank:
        bank.execute(
            "INSERT INTO payments (side, paid_for, receipt, once) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (once) DO NOTHING",
            (payment.side, payment.order, payment.receipt, once),
        )
        if once is None:
            return payment.receipt
        found = bank.execute("SELECT receipt FROM payments WHERE once = ?", (once,)).fetchone()
        return str(found[0])


def payments_of(path: Path, side: str) -> list[Payment]:
    """Return one side's payments, in the order in which they were made."""
    with closing(_connect(path)) as bank:
        rows = bank.execute(
            "SELECT side, paid_for, receipt FROM payments WHERE side = ? ORDER BY number", (side,)
        )
        return [Payment(*row) for row in rows]
