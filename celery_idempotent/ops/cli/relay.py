"""``celery -A app idempotency relay``: sends the calls of the outbox."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from celery_idempotent.errors import IdempotencyError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from celery_idempotent.outbox.relay import OutboxRelay

#: The time between two lines on progress, in seconds: on a terminal, and in a log.
_MOVING_S: Final = 1.0
_LOGGED_S: Final = 60.0


_OPTIONS: Final = (
    click.option("--once", is_flag=True, help="Send what is there now, and end."),
    click.option("--status", is_flag=True, help="Say what waits and for how long; send nothing."),
    click.option(
        "--batch",
        type=click.IntRange(1, 10_000),
        default=100,
        show_default=True,
        help="Rows that are sent between two commits.",
    ),
    click.option(
        "--interval",
        type=click.FloatRange(0.01, 3600),
        default=1.0,
        show_default=True,
        help="Seconds to wait where nothing is left to send.",
    ),
)


def relay_options(command: Any) -> Any:
    """Add the options of every relay to a command, whichever library reads its outbox."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("relay", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--database",
    metavar="URL",
    help="Where the outbox is. Default: idempotency_outbox_url, or the store's database.",
)
@click.option("--init-db", is_flag=True, help="Make the outbox's table, and send nothing.")
@relay_options
@click.pass_context
def relay_command(
    context: click.Context,
    database: str | None,
    init_db: bool,
    once: bool,
    status: bool,
    batch: int,
    interval: float,
) -> None:
    """Send the calls that outbox.publish() wrote, once their transactions are committed.

    Several may run at once; the order is kept where one runs. SIGTERM or Ctrl-C ends it after the
    batch that is under way.
    """
    app = context.obj.app
    try:
        engine = _engine(app, database)
        if init_db:
            _init_db(engine)
            return

        from celery_idempotent.outbox.rows import Relay

        relay = Relay(app, engine, batch=batch, interval=interval)
        if status:
            show_status(relay)
            return
        # The app's own logging, so that an outage is logged where its operators look.
        app.log.setup(loglevel="INFO", redirect_stdouts=False)
        send(relay, once=once)
    except (IdempotencyError, ImportError) as exc:
        raise click.ClickException(str(exc)) from exc


def _engine(app: Any, database: str | None) -> Engine:
    from celery_idempotent.core.options import Settings
    from celery_idempotent.errors import ConfigurationError
    from celery_idempotent.outbox.rows import engine_of

    settings = Settings.from_lookup(app.conf.get, "this app")
    url = database or settings.outbox_url or _sql(settings.store_url)
    if url is None and "DJANGO_SETTINGS_MODULE" in os.environ:
        raise ConfigurationError(
            "where is the outbox? In a Django project `manage.py idempotency relay` sends its "
            "calls; for an outbox of SQLAlchemy set app.conf.idempotency_outbox_url, or give "
            "--database"
        )
    if url is None:
        raise ConfigurationError(
            "where is the outbox? Set app.conf.idempotency_outbox_url, or give --database"
        )
    return engine_of(url)


def _sql(url: str | None) -> str | None:
    kind = (url or "").partition(":")[0].partition("+")[0]
    return url if kind in ("postgresql", "postgres", "mysql", "mariadb", "sqlite") else None


def _init_db(engine: Engine) -> None:
    from sqlalchemy.exc import DBAPIError

    from celery_idempotent.outbox.schema import create_schema, outbox

    try:
        made = create_schema(engine)
    except (DBAPIError, OSError) as exc:
        why = getattr(exc, "orig", exc)
        raise click.ClickException(f"the outbox can't be made: {why}") from exc
    click.echo(f"{outbox.name} is {'made' if made else 'there already'}")


def show_status(relay: OutboxRelay) -> None:
    """Print how many calls wait, and for how long; send nothing."""
    from celery_idempotent.outbox.waiting import DatabaseAway

    try:
        click.echo(relay.backlog())
    except DatabaseAway as exc:
        raise click.ClickException(f"the outbox can't be read: {exc}") from exc


def send(relay: OutboxRelay, *, once: bool) -> None:
    """Send the calls that wait: those that are there now, or all until a signal ends it."""
    from celery_idempotent.outbox.broker import BrokerAway
    from celery_idempotent.outbox.waiting import DatabaseAway

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: relay.stop())
    if not once:
        progress = _Progress(relay)
        click.echo(f"relay: sending from {relay.outbox.where}", err=True)
        relay.run(progress)
        progress.end()
        return
    try:
        click.echo(f"sent {relay.once()}")
    except BrokerAway as exc:
        raise click.ClickException(
            f"the broker is away, sent {relay.sent}, the rest is kept: {exc}"
        ) from exc
    except DatabaseAway as exc:
        raise click.ClickException(
            f"the outbox's database is away, sent {relay.sent}: {exc}"
        ) from exc


class _Progress:
    """Shows progress: a changing line on a terminal, or at most one line a minute in a log."""

    def __init__(self, relay: OutboxRelay) -> None:
        self._relay = relay
        self._moving = sys.stderr.isatty()
        self._every = _MOVING_S if self._moving else _LOGGED_S
        self._told_at = time.monotonic() - self._every
        self._told = -1

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._told_at < self._every:
            return
        waiting = self._relay.backlog()
        self._told_at = now
        if self._moving:
            click.echo(f"\r\x1b[Ksent {self._relay.sent}, {waiting}", nl=False, err=True)
        elif self._told != self._relay.sent or waiting.rows:
            self._told = self._relay.sent
            click.echo(f"relay: sent {self._told}, {waiting}", err=True)

    def end(self) -> None:
        """Print how many were sent in all."""
        start = "\r\x1b[K" if self._moving else ""
        click.echo(f"{start}relay: stopped, sent {self._relay.sent}", err=True)
