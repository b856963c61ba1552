"""The module that a worker of a row loads."""

from __future__ import annotations

from pathlib import Path

from tests.ecosystem.adapter import adapter_of
from tests.ecosystem.shop import make_app, row_from_environment

_row = row_from_environment()
adapter = adapter_of(_row["adapter"])(Path(_row["directory"]), _row["server"])
app = make_app(adapter, _row["settings"])
