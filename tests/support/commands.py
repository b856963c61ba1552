"""Celery's command line in this process: what a command wrote, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from celery.bin.base import CLIContext

from celery_idempotent.ops.cli import idempotency


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """What it wrote, as the JSON documents that it is."""
        return [json.loads(line) for line in self.out.splitlines()]


class Commands:
    """Runs ``celery -A app idempotency ...``, with nobody at a terminal."""

    def __init__(self, app: Any, capture: pytest.CaptureFixture[str]) -> None:
        self.app = app
        self._capture = capture

    def __call__(self, *args: str) -> Done:
        self._capture.readouterr()
        code = 0
        try:
            idempotency.main(
                [*args],
                prog_name="celery idempotency",
                obj=CLIContext(self.app, no_color=False, workdir=None),
            )
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        out, err = self._capture.readouterr()
        return Done(code, out, err)
