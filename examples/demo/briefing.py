"""What the demo tells each of its processes: where server and ledger are, which side it is."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Briefing"]

_PREFIX = "CELERY_IDEMPOTENT_DEMO_"


@dataclass(frozen=True)
class Briefing:
    """Handed on through the environment, because a worker is a process started by its command line.

    Attributes:
        server: the private server's URL without a database.
        ledger: the file that charges are written to.
        side: "plain" or "idempotent"; empty in the demo's own process, which runs no task.
        mode: the idempotency_mode of the whole shop.
    """

    server: str
    ledger: str
    side: str = ""
    mode: str = "enforce"

    def environment(self) -> dict[str, str]:
        """The variables that :meth:`read` finds it in again."""
        return {_PREFIX + name.upper(): value for name, value in asdict(self).items()}

    @classmethod
    def read(cls) -> Briefing:
        """The briefing of this process; outside of the demo, one that reaches nothing."""
        return cls(
            server=os.environ.get(_PREFIX + "SERVER", "redis://127.0.0.1:0"),
            ledger=os.environ.get(_PREFIX + "LEDGER", os.devnull),
            side=os.environ.get(_PREFIX + "SIDE", ""),
            mode=os.environ.get(_PREFIX + "MODE", "enforce"),
        )

    @property
    def ledger_path(self) -> Path:
        """The ledger as a path."""
        return Path(self.ledger)

    @property
    def bank_path(self) -> Path:
        """The last act's bank."""
        return self.ledger_path.with_name("bank.db")

    @property
    def vault_path(self) -> Path:
        """The database that has both payments and idempotency records."""
        return self.ledger_path.with_name("vault.db")
