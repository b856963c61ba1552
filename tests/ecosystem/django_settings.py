"""The settings of the rows with Django: what their adapter says."""

from __future__ import annotations

from pathlib import Path

from tests.ecosystem.adapter import adapter_of
from tests.ecosystem.shop import row_from_environment

_row = row_from_environment()
globals().update(adapter_of(_row["adapter"])(Path(_row["directory"]), _row["server"]).django())  # type: ignore[attr-defined]
