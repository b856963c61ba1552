"""``celery -A app idempotency relay``: sends what the outbox holds."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from celery_idempotent.errors import IdempotencyError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from celery_idempotent.outbox.relay import Relay

__all__ = ["relay_command"]

#: How often a line tells of progress, in seconds: on a terminal, and in a log.
_MOVING_S: Final = 1.0
_LOGGED_S: Final = 60.0


@click.command("relay", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--database",
    metavar="URL",
    help="Where the outbox is. Default: idempotency_outbox_url, or the store's database.",
)
@click.option("--init-db", is_flag=True, help="Make the outbox's table, and send nothing.")
@click.option("--once", is_flag=True, help="Send what is there now, and end.")
@click.option("--status", is_flag=True, help="Say what waits and for how long; send nothing.")
@click.option(
    "--batch",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Rows that are sent between two commits.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.01, 3600),
    default=1.0,
    show_default=True,
    help="Seconds to wait where nothing is left to send.",
)
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
        if init_db or status:
            (_init_db if init_db else _show_status)(engine)
            return
        _relay(app, engine, once=once, batch=batch, interval=interval)
    except (IdempotencyError, ImportError) as exc:
        raise click.ClickException(str(exc)) from exc


def _engine(app: Any, database: str | None) -> Engine:
    from celery_idempotent.core.options import Settings
    from celery_idempotent.errors import ConfigurationError
    from celery_idempotent.outbox.rows import engine_of

    settings = Settings.from_lookup(app.conf.get, "this app")
    url = database or settings.outbox_url or _sql(settings.store_url)
    if url is None:
        raise ConfigurationError(
            "where is the outbox? Set app.conf.idempotency_outbox_url, or give --database"
        )
    return engine_of(url)


def _sql(url: str | None) -> str | None:
    kind = (url or "").partition(":")[0].partition("+")[0]
    return url if kind in ("postgresql", "postgres", "mysql", "mariadb", "sqlite") else None


def _init_db(engine: Engine) -> None:
    from celery_idempotent.outbox.schema import create_schema, outbox

    with _told():
        create_schema(engine)
    click.echo(f"{outbox.name} is there")


def _show_status(engine: Engine) -> None:
    from celery_idempotent.outbox.rows import backlog

    with _told():
        click.echo(backlog(engine))


@contextmanager
def _told() -> Iterator[None]:
    """Tell in a sentence what the database has against it."""
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except DBAPIError as exc:
        raise click.ClickException(f"the outbox can't be used: {exc.orig}") from exc


def _relay(app: Any, engine: Engine, *, once: bool, batch: int, interval: float) -> None:
    from celery_idempotent.outbox.relay import BrokerAway, Relay

    # The app's own logging, so that an outage is told where its operators look.
    app.log.setup(loglevel="INFO", redirect_stdouts=False)
    relaying = Relay(app, engine, batch=batch, interval=interval)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: relaying.stop())
    progress = _Progress(relaying)
    if not once:
        click.echo(f"relay: sending from {engine.url.render_as_string()}", err=True)
        relaying.run(progress)
        progress.end()
        return
    try:
        with _told():
            click.echo(f"sent {relaying.once()}")
    except BrokerAway as exc:
        raise click.ClickException(
            f"the broker is away, sent {relaying.sent}, the rest is kept: {exc}"
        ) from exc


class _Progress:
    """A line that moves on a terminal; in a log, one a minute where there is something to say."""

    def __init__(self, relaying: Relay) -> None:
        self._relaying = relaying
        self._moving = sys.stderr.isatty()
        self._every = _MOVING_S if self._moving else _LOGGED_S
        self._told_at = time.monotonic() - self._every
        self._told = -1

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._told_at < self._every:
            return
        from celery_idempotent.outbox.rows import backlog

        waiting = backlog(self._relaying.engine)
        self._told_at = now
        if self._moving:
            click.echo(f"\r\x1b[Ksent {self._relaying.sent}, {waiting}", nl=False, err=True)
        elif self._told != self._relaying.sent or waiting.rows:
            self._told = self._relaying.sent
            click.echo(f"relay: sent {self._told}, {waiting}", err=True)

    def end(self) -> None:
        """Say how it ended."""
        start = "\r\x1b[K" if self._moving else ""
        click.echo(f"{start}relay: stopped, sent {self._relaying.sent}", err=True)
