"""The settings that the demo passes to its processes: the server, the ledger and the side."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Briefing"]

_PREFIX = "CELERY_IDEMPOTENT_DEMO_"


@dataclass(frozen=True)
class Briefing:
    """The settings, in environment variables, because a worker is started by its command line.

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
        """Return the variables from which :meth:`read` reads it."""
        return {_PREFIX + name.upper(): value for name, value in asdict(self).items()}

    @classmethod
    def read(cls) -> Briefing:
        """Read the briefing of this process; outside of the demo it has no server that answers."""
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
