"""``celery -A app idempotency flower ...``: Flower with our tab, and with Flower's own options."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand


@click.command("flower", cls=CeleryCommand, context_settings={"ignore_unknown_options": True})
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def flower_command(ctx: click.Context, flower_options: tuple[str, ...]) -> None:
    """Start Flower with the page for idempotency records, and with any option of Flower's."""
    try:
        from celery_idempotent.ops.flower import install

        placed = install()
        from flower.command import flower
    except ImportError as exc:
        raise click.ClickException(str(exc)) from exc
    if not placed:
        click.echo("This version of Flower has no place for the page.", err=True)
    ctx.invoke(flower, tornado_argv=flower_options)
