"""Names of settings as the project writes them: ``CELERY_BROKER_URL`` in Django's settings."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any, Final

from celery.app.defaults import NAMESPACES, flatten

from celery_idempotent.core.options import setting_names
from celery_idempotent.ops.doctor.findings import Finding

#: What belongs on a task, though a setting may have that name.
_ON_TASKS: Final = frozenset(("idempotency_key",))


@cache
def _settings() -> re.Pattern[str]:
    names = {name for name, _ in flatten(NAMESPACES)} | setting_names()
    longest_first = sorted((name for name in names if "_" in name), key=len, reverse=True)
    return re.compile(rf"(?<![\w'\"])({'|'.join(longest_first)})(?!\w)")


def prefix_of(app: Any) -> str:
    """Return what the names of settings begin with where the app takes them from; or nothing."""
    return str(app.conf.prefix or "")


def with_prefix(finding: Finding, prefix: str) -> Finding:
    """Return a finding whose fix names settings with the project's prefix; empty: it has none."""
    if not prefix or finding.fix.endswith("set on the task"):
        return finding

    def named(found: re.Match[str]) -> str:
        name = found[1]
        return name if name in _ON_TASKS else f"{prefix}{name}".upper()

    return replace(
        finding,
        fix=_settings().sub(named, finding.fix),
        value=_settings().sub(named, finding.value),
    )
