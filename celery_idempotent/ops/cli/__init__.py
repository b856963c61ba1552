"""``celery -A app idempotency ...``: see records, find out why, free and settle keys."""

from __future__ import annotations

from typing import Any

import click

from celery_idempotent.ops import remote
from celery_idempotent.ops.cli.act import (
    forget_command,
    init_db_command,
    resolve_command,
    resume_command,
)
from celery_idempotent.ops.cli.check import doctor_command
from celery_idempotent.ops.cli.flower import flower_command
from celery_idempotent.ops.cli.look import list_command, show_command, stats_command, why_command
from celery_idempotent.ops.cli.move import export_command, import_command
from celery_idempotent.ops.cli.relay import relay_command
from celery_idempotent.worker.boot import watch_workers

__all__ = ["idempotency"]


@click.group("idempotency", context_settings={"help_option_names": ["-h", "--help"]})
def idempotency(**_: Any) -> None:
    """See which calls were deduplicated, of what and why; free keys and settle them.

    What is asked for goes to stdout, as text on a terminal and as JSON, one document a line, into
    a pipe (--json and --text choose). Exit codes: 0, done, or filters found nothing; 1, what was
    named was not found, something to be told of, or it could not be done; 2, wrongly asked.
    """


for _command in (
    list_command,
    show_command,
    why_command,
    forget_command,
    resolve_command,
    resume_command,
    stats_command,
    doctor_command,
    export_command,
    import_command,
    init_db_command,
    relay_command,
    flower_command,
):
    idempotency.add_command(_command)

# Whoever runs `celery inspect` or `celery control` has to know the workers' commands too.
remote.register()
# Whoever runs `celery worker` may have forgotten base=IdempotentTask everywhere.
watch_workers()
