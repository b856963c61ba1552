"""The commands that move records to another store: ``export`` and ``import``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TextIO

import click

from celery_idempotent.ops.cli.console import Console, command
from celery_idempotent.ops.moving import export_records, import_records

#: So many lines make a word of progress.
_WORD = 1000


def _counted(console: Console, lines: Iterator[str] | TextIO) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        yield line
        if not number % _WORD:
            console.gone_through(_WORD)


@click.command("export")
@click.argument("file", type=click.File("w", encoding="utf-8"), default="-")
@click.pass_obj
@command
def export_command(context: Any, file: TextIO) -> None:
    """Write all records to FILE (by default to stdout), one a line, for `import` elsewhere.

    They hold results and keys as the store has them: keep the file as you keep the store.
    """
    console = Console(context, None)
    environment = console.environment()
    number = 0
    for line in _counted(console, export_records(environment.store, environment.prefix)):
        file.write(f"{line}\n")
        number += 1
    console.remark(f"{number} records of {environment.where} are written.")


@click.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
@click.pass_obj
@command
def import_command(context: Any, file: TextIO) -> None:
    """Read the records that `export` wrote from FILE (by default from stdin) into this app's store.

    A record that is newer there stays as it is, so the same export, or a later one, can be
    imported again.
    """
    console = Console(context, None)
    environment = console.environment()
    done = import_records(environment.store, environment.prefix, _counted(console, file))
    console.remark(
        f"{done.written} records are written to {environment.where}; "
        f"{done.newer} are newer there and stay."
    )
