"""``manage.py idempotency``: the commands of ``celery -A app idempotency``, relay and purge."""

from __future__ import annotations

import logging
import sys
from argparse import REMAINDER
from typing import Any

import click
from django.core.management.base import BaseCommand, CommandError

from celery_idempotent.django.project import celery_app
from celery_idempotent.django.store import DjangoStore
from celery_idempotent.errors import IdempotencyError
from celery_idempotent.ops.cli.relay import relay_options, send, show_status
from celery_idempotent.settings import environment_of

_OF_CELERY = (
    *("list", "show", "why", "forget", "resolve", "resume", "stats", "doctor", "export", "import"),
)


class Command(BaseCommand):
    """Lists, frees and settles keys; sends the calls of the outbox."""

    help = (
        "See which calls were deduplicated, of what and why; free and settle keys; delete what has "
        "expired (purge); send what the outbox holds (relay)."
    )

    def add_arguments(self, parser: Any) -> None:
        """Take the name of a command, and its arguments as Celery's command takes them."""
        parser.add_argument("command", choices=(*_OF_CELERY, "purge", "relay"))
        parser.add_argument("arguments", nargs=REMAINDER, help="its own; try --help after it")

    def handle(self, *_: Any, command: str, arguments: list[str], **__: Any) -> None:
        """Run the command.

        Raises:
            CommandError: it failed.
        """
        try:
            app = celery_app()
        except IdempotencyError as exc:
            raise CommandError(str(exc)) from exc
        app.loader.import_default_modules()
        if command in _OF_CELERY:
            self._celery(app, [command, *arguments])
        else:
            work = _relay if command == "relay" else _purge
            name = f"manage.py idempotency {command}"
            try:
                work.main(arguments, name, obj=app, standalone_mode=False)
            except click.exceptions.Exit as exc:
                sys.exit(exc.exit_code)
            except (click.ClickException, IdempotencyError) as exc:
                raise CommandError(getattr(exc, "message", None) or str(exc)) from exc

    @staticmethod
    def _celery(app: Any, arguments: list[str]) -> None:
        from celery.bin.base import CLIContext

        from celery_idempotent.ops.cli import idempotency

        context = CLIContext(app=app, no_color=not sys.stdout.isatty(), workdir=None, quiet=False)
        idempotency.main(arguments, "manage.py idempotency", obj=context)


@click.command(help="Delete records and notes whose time is over.")
@click.pass_obj
def _purge(app: Any) -> None:
    store = environment_of(app).store
    if not isinstance(store, DjangoStore):
        raise click.ClickException(
            "the purge works only with a store django://, and this app has another one"
        )
    click.echo(f"{store.purge()} rows deleted")


@click.command(help="Send the calls that outbox.publish() wrote, once they are committed.")
@click.option("--database", default="default", show_default=True, help="An alias in DATABASES.")
@relay_options
@click.pass_obj
def _relay(app: Any, database: str, once: bool, status: bool, batch: int, interval: float) -> None:
    from celery_idempotent.django.outbox import Relay

    relay = Relay(app, using=database, batch=batch, interval=interval)
    if status:
        show_status(relay)
        return
    _be_heard()
    send(relay, once=once)


def _be_heard() -> None:
    """Log to the terminal, unless the project's own logging handles the library's logger.

    Python's last resort would not be used: Celery gives its loggers a silent handler.
    """
    log = logging.getLogger("celery_idempotent")
    handlers = [*log.handlers, *(logging.root.handlers if log.propagate else ())]
    if all(isinstance(handler, logging.NullHandler) for handler in handlers):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
