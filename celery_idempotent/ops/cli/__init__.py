"""``celery -A app idempotency ...``: see records, find out why, free and settle keys.

Whatever is typed after ``celery`` imports this, ``worker`` too. So a command is imported when it is
asked for, and not before.
"""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from typing import Any

import click
from celery import signals

from celery_idempotent.ops import panel

__all__ = ["idempotency"]


class _Commands(UserDict[str, Any]):
    """The commands by their names; until a command is asked for it is the name of its module."""

    def __getitem__(self, name: str) -> click.Command:
        known = super().__getitem__(name)
        if isinstance(known, str):
            known = getattr(
                import_module(f"{__name__}.{known}"), f"{name.replace('-', '_')}_command"
            )
            self.data[name] = known
        command: click.Command = known
        return command


_COMMANDS = _Commands(
    {
        "list": "look",
        "show": "look",
        "why": "look",
        "stats": "look",
        "forget": "act",
        "resolve": "act",
        "resume": "act",
        "init-db": "act",
        "doctor": "check",
        "export": "move",
        "import": "move",
        "relay": "relay",
        "flower": "flower",
    }
)


@click.group(
    "idempotency",
    commands=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def idempotency(**_: Any) -> None:
    """See which calls were deduplicated, of what and why; free keys and settle them.

    What is asked for goes to stdout, as text on a terminal and as JSON, one document a line, into
    a pipe (--json and --text choose). Exit codes: 0, done, or filters found nothing; 1, what was
    named was not found, the doctor found something, or it could not be done; 2, wrongly asked; 3,
    the app's configuration is so wrong that nothing could be asked (also without -A).
    """


def _check_names(instance: Any, **_: Any) -> None:
    from celery_idempotent.worker.boot import NamesStep  # only a worker needs it

    instance.app.steps["worker"].add(NamesStep)


# Whoever runs `celery inspect` or `celery control` has to know the workers' commands too.
panel.register()
# Whoever runs `celery worker` may have forgotten base=IdempotentTask everywhere.
signals.celeryd_init.connect(_check_names, dispatch_uid="celery-idempotent-names")
