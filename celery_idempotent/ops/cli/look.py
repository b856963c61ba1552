"""The commands that only look: ``list``, ``show``, ``why`` and ``stats``."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import click

from celery_idempotent.core.step import CHECKPOINT
from celery_idempotent.ops.cli.console import (
    Column,
    Console,
    NotFound,
    as_seconds,
    command,
    first,
    format_option,
    none_found,
    not_found,
    plain,
    scan_option,
)
from celery_idempotent.ops.history import History, when
from celery_idempotent.ops.lookup import look_up, search
from celery_idempotent.ops.records import count, show
from celery_idempotent.ops.sentences import duration, in_its_queue
from celery_idempotent.ops.unsettled import advice
from celery_idempotent.ops.views import LEASE_OVER, LISTED, Filter, RecordDetail, RecordView
from celery_idempotent.ops.why import why, why_queued
from celery_idempotent.settings import Environment

_LIMIT: Final = 100
_DUPLICATES: Final = 20


@click.command("list")
@click.option("--task", help="Only this task's; a pattern such as 'shop.*' is one too.")
@click.option(
    "--state",
    type=click.Choice(LISTED),
    help="Only in this state; lease-over: held by a run that nobody keeps alive any more.",
)
@click.option("--match", help="Only keys with all of these words in them, or of these task ids.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=_LIMIT,
    show_default=True,
    help="At most so many; 0: all.",
)
@click.option(
    "--since",
    metavar="TIME",
    callback=as_seconds,
    help="Only what something happened to in this time, by the journal alone: 30s, 15m, 2h, 1d.",
)
@scan_option
@format_option
@click.pass_obj
@command
def list_command(
    context: Any,
    task: str | None,
    state: str | None,
    match: str | None,
    limit: int,
    since: float | None,
    scan: bool,
    as_json: bool | None,
) -> None:
    """List records, the latest first.

    The journal says what happened last; what it doesn't reach back to follows in no order. Rows
    are written as they are found, and the store is never asked for more than a thousand at a time.
    What --match names exactly comes first. What is unknown is listed by the store, and what is held
    by a lease that is over: all records are gone through for these only with --scan. The list of a
    Redis store misses a run that was cut off in its first half second together with its worker. For
    --state queued all keys of the store are gone through: the calls that are in their queues, and
    stop others with their keys, have no record.
    """
    console = Console(context, as_json)
    environment = console.environment()
    now_ms = environment.store.now_ms()
    wanted = Filter(task, state, match, now_ms)
    since_ms = 0 if since is None else now_ms - int(1000 * since)
    found = search(
        console.app,
        environment,
        wanted,
        since_ms=since_ms,
        scan=scan,
        gone_through=console.gone_through,
    )
    rows = first((view for batch in found for view in batch), limit)
    if console.as_json:
        written = console.write_lines(view.as_dict(now_ms) for view in rows)
    else:
        written = console.table(_columns(now_ms), rows)
    if limit and written == limit:
        console.remark(f"These are the first {limit}; --limit 0 gives all.")
    elif not written:
        console.remark(none_found(console.app, wanted))


def _columns(now_ms: int) -> tuple[Column, ...]:
    def age(view: RecordView) -> str:
        return duration(max(0.0, now_ms / 1000 - view.claimed_at)) if view.claimed_at else ""

    return (
        ("STATE", lambda view: view.state),
        ("TASK", lambda view: view.task),
        ("KEY", lambda view: view.key),
        ("OWNER", lambda view: view.owner_id or "-"),
        ("CLAIMED", lambda view: f"{age(view)} ago" if view.claimed_at else ""),
        ("LEFT", lambda view: _left(view, now_ms)),
    )


def _left(view: RecordView, now_ms: int) -> str:
    if view.is_lease_over(now_ms):
        return "lease over"
    return view.freed or duration(view.lease_left(now_ms))


@click.command("show")
@click.argument("text", metavar="KEY|TASK_ID")
@scan_option
@format_option
@click.pass_obj
@command
def show_command(context: Any, text: str, scan: bool, as_json: bool | None) -> None:
    """Show all that is known of a record.

    KEY is a key as the tasks use it (order:42), with its namespace (shop.charge:order:42), or a
    record's whole name. TASK_ID is a call that owns the record, or was answered with its outcome.
    Exits with 1 where nothing is found.
    """
    console = Console(context, as_json)
    environment = console.environment()
    found = look_up(console.app, environment, text, console.gone_through if scan else None)
    details = [show(environment.store, environment.prefix, view.name) for view in found]
    told = [detail for detail in details if detail is not None]
    if not told:
        raise not_found(console.app, environment, text, scan)
    for number, detail in enumerate(told):
        duplicates = _duplicates(environment, detail.view.name)
        claimed = History(environment.store, environment.prefix).claimed_at(detail.view)
        if console.as_json:
            console.write_json(
                {**detail.as_dict(), "claimed_at": claimed, "duplicates": duplicates}
            )
            continue
        if number:
            console.say()
        _show(console, detail, duplicates, claimed)
        if detail.queued is not None:
            place = "next" if detail.queued.waits else "queued"
            console.tell(f"  {place}: {in_its_queue(detail.queued)}")


def _duplicates(environment: Environment, name: str) -> list[str]:
    told = History(environment.store, environment.prefix).duplicates(name, _DUPLICATES)
    return [one.task_id or "" for one in told]


def _show(
    console: Console, detail: RecordDetail, duplicates: list[str], claimed: float | None
) -> None:
    view = detail.view
    left = detail.lease_left
    held = {"running": "lease left", "compensating": "lease left", "retrying": "due in"}
    console.pairs(
        [
            ("key", view.key),
            ("task", view.task),
            ("state", f"{view.state}, {view.freed}" if view.freed else view.state),
            ("owner", view.owner_id or "nobody"),
            ("process", f"{view.pid} on {view.host}" if view.pid else ""),
            (held.get(view.state, "delivery lease left"), duration(left) if left else ""),
            ("lease", LEASE_OVER if detail.is_lease_over else ""),
            ("attempt", str(view.attempt or "") if view.owner_id else ""),
            ("interruptions", str(view.interruptions or "")),
            ("claimed", when(int(claimed * 1000)) if claimed else ""),
            ("token", str(view.token or "")),
            ("kept for", duration(detail.window_left)),
            (view.outcome or "result", detail.result or ("" if view.outcome is None else "-")),
            ("duplicates", ", ".join(duplicates)),
            ("problem", view.problem),
            ("name", view.name),
        ]
    )
    for step in detail.steps:
        undo = ", can be undone" if step.compensated_by and step.state == "done" else ""
        if step.name.startswith(CHECKPOINT):
            name = step.name.removeprefix(CHECKPOINT)
            console.tell(f"  checkpoint{name and ' '}{name}: {step.result}")
        else:
            console.tell(f"  step {step.name}: {step.state}{undo}: {step.result}")
    if view.state == "unknown":
        for line in advice(view):
            console.tell(line)


@click.command("why")
@click.argument("task_id", metavar="TASK_ID")
@scan_option
@format_option
@click.pass_obj
@command
def why_command(context: Any, task_id: str, scan: bool, as_json: bool | None) -> None:
    """Say what happened to a call, in words.

    A call that is in its queue is found by its key (order:42), too, where that is reserved for it.
    Exits with 1 where nothing is known of it.
    """
    console = Console(context, as_json)
    environment = console.environment()
    account = why(environment, task_id, console.gone_through if scan else None)
    account = account or why_queued(console.app, environment, task_id)
    if account is None:
        views = look_up(console.app, environment, task_id)
        raise NotFound(_is_no_call(views, task_id) or _nothing_known(environment, task_id, scan))
    if console.as_json:
        console.write_json(account.as_dict())
        return
    console.say(console.bold(plain(f"{account.task}[{task_id}], key {account.key}")))
    console.tell(account.summary)
    for at, text in account.story:
        console.tell(f"  {at}" if text == account.summary else f"  {at}  {text}")
    if account.duplicates:
        shown = ", ".join(account.duplicates[:_DUPLICATES])
        calls = "call" if len(account.duplicates) == 1 else f"{len(account.duplicates)} calls"
        console.tell(f"Its outcome answered the {calls} {shown}")
    record = account.record
    if record is None:
        console.say("There is no record of the key any more.")
    elif record.is_free or record.owner_id is None:
        console.say("The key is free now: its next call runs.")
    else:
        by = "this call" if record.owner_id == account.task_id else f"task {plain(record.owner_id)}"
        lease = f"; its lease is {LEASE_OVER}" if account.is_lease_over else ""
        console.say(f"The key is {console.coloured(record.state)} now, by {by}{lease}.")
    for line in account.advice:
        console.tell(line)


def _is_no_call(views: list[RecordView], text: str) -> str:
    """Say that a key was given, and whose it is; empty where there is no such key."""
    keys = [view for view in views if text in (view.key, view.name, f"{view.namespace}:{view.key}")]
    if not keys:
        return ""
    owners = " or ".join(dict.fromkeys(view.owner_id for view in keys if view.owner_id))
    whose = f"its owner is {owners}" if owners else "no call owns it now"
    return plain(
        f"why wants the id of a call, and {text} is a key: {whose}. `show` has its record."
    )


def _nothing_known(environment: Environment, task_id: str, scanned: bool) -> str:
    reason = (
        "the journal is off (idempotency_journal)"
        if not environment.journal.most
        else "the journal has forgotten it since (idempotency_journal says how much it keeps)"
    )
    return (
        f"Nothing is known of {task_id}: it was not delivered yet, has no key, is no call of an "
        f"IdempotentTask, or {reason}.{'' if scanned else ' --scan looks for its record.'}"
    )


@click.command("stats")
@click.option("--exact", is_flag=True, help="Go through all records, however many there are.")
@format_option
@click.pass_obj
@command
def stats_command(context: Any, exact: bool, as_json: bool | None) -> None:
    """Count the records, by state and by task.

    Where there are many, some of them are looked at, and the numbers are estimates; how many are
    unknown is exact. --exact goes through all, and says meanwhile on stderr how far it is. It also
    says how far back the journal reaches, which is what `why` and `list --since` know of.
    """
    console = Console(context, as_json)
    environment = console.environment()
    where = environment.store, environment.prefix
    stats = count(*where, exact=exact, gone_through=console.gone_through)
    reaches_back = History(environment.store, environment.prefix).reaches_back_to()
    since = None if reaches_back is None else when(reaches_back)
    if console.as_json:
        console.write_json(
            {
                "records": stats.total,
                "exact": stats.is_exact,
                "states": dict(stats.states),
                "tasks": dict(stats.tasks),
                "journal_since": since,
            }
        )
        return
    by = "" if stats.is_exact else f"  by a sample of {stats.seen}: --exact counts all"
    console.say(f"{console.bold('records')}  {stats.total}{by}")
    console.say(f"{console.bold('journal')}  {'empty' if since is None else f'since {since}'}")
    for title, counted in (("STATE", stats.states), ("TASK", stats.tasks)):
        if counted:
            console.say()
            _count_table(console, title, counted)


def _count_table(console: Console, title: str, counted: Counter[str]) -> None:
    columns: tuple[Column, ...] = ((title, lambda row: row[0]), ("RECORDS", lambda row: row[1]))
    console.table(columns, [(name, str(number)) for name, number in counted.most_common()])
