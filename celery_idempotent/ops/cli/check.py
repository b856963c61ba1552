"""The command that says what is wrong with a configuration: ``doctor``."""

from __future__ import annotations

import textwrap
from typing import Final

import click

from celery_idempotent.ops.cli.console import Console, command, format_option
from celery_idempotent.ops.doctor import Finding, examine
from celery_idempotent.ops.lookup import setups

__all__ = ["doctor_command"]

_WIDTH: Final = 96


@click.command("doctor")
@format_option
@click.pass_context
@command
def doctor_command(ctx: click.Context, as_json: bool | None) -> None:
    """Say what is wrong with the configuration, why that matters, and what to set.

    Looks at the app's settings and tasks, at its periodic tasks, and at the servers that hold
    records and results. Workers check the same when they start. Exits with 1 where something is
    found; what you accept goes into idempotency_accept, by the name of the finding.
    """
    console = Console(ctx.obj, as_json)
    environment = console.environment()
    found = examine(console.app)
    if console.as_json:
        console.write_lines(finding.as_dict() for finding in found)
    elif not found:
        count = sum(1 for _ in setups(console.app))
        console.say(f"Nothing found: {count} tasks, and the store at {environment.where}.")
    for number, finding in enumerate(() if console.as_json else found):
        if number:
            console.say()
        _say(console, finding)
    if found:
        ctx.exit(1)


def _say(console: Console, finding: Finding) -> None:
    what = finding.what[:1].upper() + finding.what[1:]
    console.say(f"{console.coloured(finding.level)} {console.bold(finding.name)}")
    for line in textwrap.wrap(f"{what}. {finding.why}", _WIDTH - 2, break_long_words=False):
        console.say(f"  {line}")
    console.say(f"  {finding.fix}:")
    console.say(f"    {finding.value}")
