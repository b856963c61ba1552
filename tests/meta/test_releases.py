"""The next release, beside which this one's workers are tested, can be made from this one."""

from __future__ import annotations

import compileall
from pathlib import Path

from tests.support.releases import next_release


def test_each_change_finds_its_place(tmp_path: Path) -> None:
    """What is made of this release's code is a program."""
    made = next_release(tmp_path / "next")
    assert compileall.compile_dir(made / "celery_idempotent", quiet=1)
