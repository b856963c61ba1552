"""The commands that change something: ``forget``, ``resolve`` and ``init-db``."""

from __future__ import annotations

import getpass
import json
import socket
from typing import Any

import click

from celery_idempotent.core.record import State
from celery_idempotent.ops import settle
from celery_idempotent.ops.cli.console import Console, NotFound, command, format_option
from celery_idempotent.ops.lookup import look_up
from celery_idempotent.ops.views import RecordView
from celery_idempotent.settings import Environment

__all__ = ["forget_command", "init_db_command", "resolve_command"]

_yes = click.option("--yes", is_flag=True, help="Don't ask.")


@click.command("forget")
@click.argument("texts", metavar="KEY|TASK_ID...", nargs=-1, required=True)
@_yes
@format_option
@click.pass_obj
@command
def forget_command(context: Any, texts: tuple[str, ...], yes: bool, as_json: bool | None) -> None:
    """Free keys, so that the next call with each of them runs.

    A run that is under way goes on, but its outcome is refused. Asks on a terminal; elsewhere it
    wants --yes. Exits with 1 where one of them is not found, and then frees none.
    """
    console = Console(context, as_json)
    environment = console.environment()
    found = {view.name: view for text in texts for view in [_the_one(console, environment, text)]}
    for view in found.values():
        console.confirm(f"Forget {_told(view)}?", yes)
        done = settle.forget(environment, view, _via())
        if console.as_json:
            console.write_json({"name": view.name, "forgotten": done})
        else:
            console.tell(f"{view.key} of {view.task} is {'free' if done else 'gone already'}.")


@click.command("resolve")
@click.argument("text", metavar="KEY|TASK_ID")
@click.option("--succeeded", metavar="JSON", help="It happened, and this is its result.")
@click.option(
    "--failed",
    metavar="MESSAGE",
    help="It did not happen, or is to be undone: its finished steps are, then the key is free.",
)
@click.option("--rerun", is_flag=True, help="It may happen again: the next call with the key runs.")
@_yes
@format_option
@click.pass_obj
@command
def resolve_command(
    context: Any,
    text: str,
    succeeded: str | None,
    failed: str | None,
    rerun: bool,
    yes: bool,
    as_json: bool | None,
) -> None:
    """Say how a run ended whose outcome is unknown.

    Only for records in the state "unknown". Exits with 1 for any other.
    """
    if [succeeded is not None, failed is not None, rerun].count(True) != 1:
        raise click.UsageError("Say one of --succeeded JSON, --failed MESSAGE and --rerun.")
    how, answer = State.RELEASED, None
    if succeeded is not None:
        how, answer = State.SUCCEEDED, _parsed(succeeded)
    elif failed is not None:
        how, answer = State.FAILED, failed
    console = Console(context, as_json)
    environment = console.environment()
    view = _the_one(console, environment, text)
    words = {
        State.SUCCEEDED: f"as succeeded, with the result {succeeded}",
        State.FAILED: "as failed",
        State.RELEASED: "to be rerun",
    }
    console.confirm(f"Resolve {_told(view)}, {words[how]}?", yes)
    published = settle.resolve(console.app, environment, view, how, answer, _via())
    if console.as_json:
        console.write_json({"name": view.name, "resolved": str(how), "compensation": published})
        return
    told = f"{view.key} of {view.task} is resolved {words[how]}."
    if published:
        told += f" Task {published} undoes its finished steps."
    console.tell(told)


@click.command("init-db")
@click.pass_obj
@command
def init_db_command(context: Any) -> None:
    """Make the tables that records are kept in, where they are not there yet.

    For a store in a SQL database; the others need none.
    """
    console = Console(context, None)
    environment = console.environment()
    if not environment.store.needs_schema:
        raise click.ClickException(f"The store at {environment.where} needs no tables.")
    environment.store.create_schema()
    console.remark(f"The tables are there, at {environment.where}.")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise click.BadParameter(
            f"{text!r} is no JSON ({exc}); a text stands in quotes: --succeeded '\"done\"'",
            param_hint="--succeeded",
        ) from exc


def _the_one(console: Console, environment: Environment, text: str) -> RecordView:
    """Find the one record that is meant; what is not clear is not done."""
    found = look_up(console.app, environment, text, console.before_scan)
    if not found:
        raise NotFound(f"No record has the key, or belongs to the task, {text}.")
    if len(found) > 1:
        names = "\n".join(f"  {view.name}" for view in found[:20])
        raise NotFound(f"{text} may mean {len(found)} records. Name one of them:\n{names}")
    return found[0]


def _told(view: RecordView) -> str:
    owner = f", owned by {view.owner_id}" if view.owner_id else ""
    return f"{view.key} of {view.task} ({view.state}{owner})"


def _via() -> str:
    """Say for the journal who did it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = "somebody"
    return f"celery idempotency, {user} on {socket.gethostname()}"
