"""What a worker does for operators when it starts: the doctor's checks, and the remote commands."""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from celery import bootsteps
from celery.utils.log import get_logger

from celery_idempotent.core.options import Settings
from celery_idempotent.errors import ConfigurationError
from celery_idempotent.ops import panel
from celery_idempotent.ops.doctor import ERROR, HINT, WARNING, Finding, examine
from celery_idempotent.settings import environment_of

log = get_logger("celery_idempotent")

#: How long a worker's start waits for the checks: a server that hangs must not hang it.
_PATIENCE_S: Final = 5.0
#: What a store that is away is called: tasks wait for it, and so can the checks.
_AWAY: Final = frozenset(("store-away", "result-backend-away"))


#: A worker's log shows hints where it is asked for INFO.
_LEVELS: Final = {ERROR: logging.ERROR, WARNING: logging.WARNING, HINT: logging.INFO}


class CheckUpStep(bootsteps.StartStopStep):
    """Warns of what ``doctor`` finds; with ``idempotency_strict`` the worker does not start."""

    requires = ("celery.worker.components:Pool",)

    def create(self, parent: Any) -> None:
        """Check, before anything runs.

        Raises:
            ConfigurationError: something was found, and ``idempotency_strict`` is set.
        """
        panel.register()
        found = _examine(parent.app, getattr(parent.pool_cls, "__module__", ""))
        for finding in found:
            # Not one template for all: whoever groups log records has a group for each finding.
            log.log(
                _LEVELS[finding.level],
                f"check-up: {finding.name}: %s",
                finding.sentence,
                extra={"idempotency": {"finding": finding.name, **finding.as_dict()}},
            )
        strict = Settings.from_lookup(parent.app.conf.get, "this app").strict
        wrong = [it.name for it in found if it.name not in _AWAY and it.level != HINT]
        if strict and wrong:
            raise ConfigurationError(
                f"idempotency_strict is set, and the check-up found {', '.join(wrong)}: put it "
                "right, or name what you accept in idempotency_accept"
            )


def _examine(app: Any, pool: str) -> list[Finding]:
    """Run the checks; none of them may hurt a start, nor hold it up for long."""
    found: list[Finding] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.extend(examine(app, pool=pool))
        except Exception as exc:
            failed.append(exc)

    checking = threading.Thread(target=run, name="idempotency-check-up", daemon=True)
    checking.start()
    checking.join(_PATIENCE_S)
    if checking.is_alive():
        log.warning("the check-up takes too long, and is left: the store may not answer")
        return []
    if failed and isinstance(failed[0], ConfigurationError):
        raise failed[0]
    if failed:
        log.warning("the check-up failed: %r", failed[0])
    # The pool's processes are made next: they need no connections of ours.
    environment_of(app).store.close()
    return found
