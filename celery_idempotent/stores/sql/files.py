"""The file of an SQLite database: only who makes the tables makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, event

#: What the error of a missing file begins with.
NO_FILE = "there is no file"


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a database; ``None``: it has none, or SQLite reads its name (file:)."""
    name = url.database
    if url.get_backend_name() != "sqlite" or not name or name.startswith((":memory:", "file:")):
        return None
    return Path(name)


def open_only_what_is_there(engine: Engine) -> None:
    """Refuse to connect to a file that is not there.

    SQLite would make it, so that a mistyped path looks like an empty database.
    """
    file = sqlite_file(engine.url)
    if file is None:
        return

    @event.listens_for(engine, "do_connect")
    def look(dialect: Any, *_: Any) -> None:
        if not file.exists():
            raise dialect.loaded_dbapi.OperationalError(f"{NO_FILE} {file}")
