"""The command that says what is wrong with a configuration: ``doctor``."""

from __future__ import annotations

import textwrap
from typing import Final

import click

from celery_idempotent.errors import IdempotencyError
from celery_idempotent.ops.cli.console import MISCONFIGURED, Console, command, format_option
from celery_idempotent.ops.doctor import LEVELS, WARNING, Finding, examine
from celery_idempotent.ops.lookup import setups

_WIDTH: Final = 96


@click.command("doctor")
@click.option(
    "--fail-on",
    type=click.Choice([*LEVELS, "never"]),
    default=WARNING,
    show_default=True,
    help="Exit with 1 where something of this level is found, or worse.",
)
@format_option
@click.pass_context
@command
def doctor_command(ctx: click.Context, fail_on: str, as_json: bool | None) -> None:
    """Say what is wrong with the configuration, why that matters, and what to set.

    Looks at the app's settings and tasks, at its periodic tasks, and at the servers that hold
    records, results and messages, and makes a trial run with a key of its own. Workers check the
    same when they start, without the trial run. What you accept goes into idempotency_accept, by
    the name of the finding.

    Exit codes: 0, nothing of that level was found; 1, something was; 2, wrongly asked; 3, the
    configuration is so wrong that nothing can be examined.
    """
    console = Console(ctx.obj, as_json)
    try:
        environment = console.environment()
        found = examine(console.app)
    except IdempotencyError as exc:
        console.remark(f"Error: {exc}")
        ctx.exit(MISCONFIGURED)
    if console.as_json:
        console.write_lines(finding.as_dict() for finding in found)
    elif not found:
        count = sum(1 for _ in setups(console.app))
        console.say(f"Nothing found: {count} tasks, and the store at {environment.where}.")
    for number, finding in enumerate(() if console.as_json else found):
        if number:
            console.say()
        _say(console, finding)
    failing = LEVELS[: LEVELS.index(fail_on) + 1] if fail_on in LEVELS else ()
    if any(finding.level in failing for finding in found):
        ctx.exit(1)


def _say(console: Console, finding: Finding) -> None:
    what = finding.what[:1].upper() + finding.what[1:].rstrip(".")
    console.say(f"{console.coloured(finding.level)} {console.bold(finding.name)}")
    for line in textwrap.wrap(f"{what}. {finding.why}", _WIDTH - 2, break_long_words=False):
        console.say(f"  {line}")
    console.say(f"  {finding.fix}:")
    console.say(f"    {finding.value}")
