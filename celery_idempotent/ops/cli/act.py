"""The commands that change something: ``forget``, ``resolve``, ``resume`` and ``init-db``."""

from __future__ import annotations

import getpass
import json
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.step import name_of
from celery_idempotent.errors import StoreError
from celery_idempotent.ops import resume, settle
from celery_idempotent.ops.cli.console import (
    Console,
    NotFound,
    command,
    format_option,
    none_found,
    not_found,
    plain,
    scan_option,
)
from celery_idempotent.ops.lookup import look_up, search
from celery_idempotent.ops.records import queued_call
from celery_idempotent.ops.views import QUEUED, STATES, Filter, RecordView
from celery_idempotent.settings import Environment

#: So many of the records that are meant are shown.
_SHOWN: Final = 20
_NO_ARGUMENTS: Final = (
    "Its arguments are not known, so nothing is published: call the task again with the same key."
)

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_yes = click.option("--yes", is_flag=True, help="Don't ask.")


def _many(function: F) -> F:
    """Add the options that mean many records at once."""
    for option in (
        click.option(
            "--count",
            type=click.IntRange(min=1),
            help="Do it to what the filters find, if that is so many.",
        ),
        click.option("--dry-run", is_flag=True, help="Show what is meant, and do nothing."),
        click.option("--match", help="All with all of these words in their key."),
        click.option("--task", help="All of this task; a pattern such as 'shop.*' is one too."),
    ):
        function = option(function)
    return function


@click.command("forget")
@click.argument("texts", metavar="[KEY|TASK_ID...]", nargs=-1)
@_many
@click.option("--state", type=click.Choice(STATES), help="All in this state.")
@_yes
@scan_option
@format_option
@click.pass_obj
@command
def forget_command(
    context: Any,
    texts: tuple[str, ...],
    task: str | None,
    match: str | None,
    dry_run: bool,
    count: int | None,
    state: str | None,
    yes: bool,
    scan: bool,
    as_json: bool | None,
) -> None:
    """Free keys, so that the next call with each of them runs.

    What its steps and checkpoints recorded is lost: to keep the first of them, use resume.

    A run that is under way goes on, but its outcome is refused. Asks on a terminal; elsewhere it
    wants --yes. Exits with 1 where one of them is not found, and then frees none.

    --task, --state and --match mean all records that they find. Begin with --dry-run, which shows
    them and how many they are; --count repeats that number, and nothing is done if it is another
    by then.
    """
    console = Console(context, as_json)
    environment = console.environment()
    wanted = Filter(task, state, match) if task or state or match else None
    meant = _meant(console, environment, texts, wanted, scan)
    if _is_left(console, meant, "Forget", wanted, dry_run, count, yes):
        return
    for view in meant:
        if wanted is None:
            console.confirm(f"Forget {_told(view)}?", yes)
        elif not _is_as_it_was(environment, view):
            console.remark(plain(f"{view.name} has changed since: left as it is."))
            continue
        done = settle.forget(environment, view, _via())
        if console.as_json:
            console.write_json({"name": view.name, "forgotten": done})
        else:
            console.tell(f"{view.key} of {view.task} {'is free' if done else 'was free already'}.")


@click.command("resolve")
@click.argument("texts", metavar="[KEY|TASK_ID...]", nargs=-1)
@click.option("--succeeded", metavar="JSON", help="It happened, and this is its result.")
@click.option(
    "--failed",
    metavar="MESSAGE",
    help="It did not happen, or is to be undone: its finished steps are, then the key is free.",
)
@click.option("--rerun", is_flag=True, help="It may happen again: the next call with the key runs.")
@_many
@_yes
@scan_option
@format_option
@click.pass_obj
@command
def resolve_command(
    context: Any,
    texts: tuple[str, ...],
    succeeded: str | None,
    failed: str | None,
    rerun: bool,
    task: str | None,
    match: str | None,
    dry_run: bool,
    count: int | None,
    yes: bool,
    scan: bool,
    as_json: bool | None,
) -> None:
    """Say how runs ended whose outcome is unknown.

    Only for records in the state "unknown". Exits with 1 for any other, and where one is not
    found; then none is resolved.

    --task and --match mean all unknown records that they find. Begin with --dry-run, which shows
    them and how many they are; --count repeats that number, and nothing is done if it is another
    by then.
    """
    if [succeeded is not None, failed is not None, rerun].count(True) != 1:
        raise click.UsageError("Say one of --succeeded JSON, --failed MESSAGE and --rerun.")
    how, answer = State.RELEASED, None
    if succeeded is not None:
        how, answer = State.SUCCEEDED, _parsed(succeeded)
    elif failed is not None:
        how, answer = State.FAILED, failed
    words = {
        State.SUCCEEDED: f"as succeeded, with the result {succeeded}",
        State.FAILED: "as failed",
        State.RELEASED: "to be rerun",
    }
    if failed in {name for one in click.get_current_context().command.params for name in one.opts}:
        raise click.UsageError(f"--failed wants a message, and {failed} is an option.")
    console = Console(context, as_json)
    environment = console.environment()
    wanted = Filter(task, str(State.UNKNOWN), match) if task or match else None
    meant = _meant(console, environment, texts, wanted, scan)
    for view in meant if wanted is None else ():
        settle.refuse_what_is_known(environment, view)  # before anybody is asked
    if _is_left(console, meant, f"Resolve {words[how]}", wanted, dry_run, count, yes):
        return
    for view in meant:
        if wanted is None:
            console.confirm(f"Resolve {_told(view)}, {words[how]}?", yes)
        try:
            published = settle.resolve(console.app, environment, view, how, answer, _via())
        except settle.NotUnknown as exc:
            if wanted is None:
                raise
            console.remark(plain(f"{exc}: left as it is."))
            continue
        if console.as_json:
            document = {"name": view.name, "resolved": str(how), "compensation": published}
            console.write_json(document)
            continue
        told = f"{view.key} of {view.task} is resolved {words[how]}."
        if published:
            told += f" Task {published} undoes its finished steps."
        console.tell(told)


@click.command("resume")
@click.argument("text", metavar="KEY|TASK_ID")
@click.option(
    "--from",
    "start",
    metavar="STEP",
    help="Do this step again, and all that come after it. Without it all that is recorded stays.",
)
@click.option("--args", metavar="JSON", help="A list: what the task is called with.")
@click.option("--kwargs", metavar="JSON", help="An object: the keyword arguments.")
@click.option("--dry-run", is_flag=True, help="Show what is meant, and do nothing.")
@_yes
@scan_option
@format_option
@click.pass_obj
@command
def resume_command(
    context: Any,
    text: str,
    start: str | None,
    args: str | None,
    kwargs: str | None,
    dry_run: bool,
    yes: bool,
    scan: bool,
    as_json: bool | None,
) -> None:
    """Run a call again, behind the steps that it has finished.

    With --from, what this step and the later ones recorded is dropped, and they are done again.
    What they did is not undone. A late end of an earlier run is refused. Then the call is published
    anew, under an id of its own, without the callbacks of the first one.

    Its arguments are those that the result backend keeps (result_extended), or --args and --kwargs.
    Where they are not known, nothing is published: call the task again yourself, with the same key.
    If this is cut off, all is as before, or the message does what is left.

    Exits with 1 where the record is not found, where a run holds it, or where no such step is
    recorded; then nothing is changed.
    """
    console = Console(context, as_json)
    environment = console.environment()
    given = None
    if args is not None or kwargs is not None:
        given = resume.Arguments(
            _parsed_as(list, "--args", args), _parsed_as(dict, "--kwargs", kwargs)
        )
    view = _the_one(console, environment, text, scan)
    plan = resume.plan(console.app, environment, view, start, given)
    names = {"kept": plan.kept, "dropped": plan.dropped}
    if dry_run and console.as_json:
        console.write_json(plan.as_dict())
    elif dry_run or not yes:
        console.remark(plain(f"  {_told(view)}"))
        for what, steps in names.items():
            if steps:
                console.remark(plain(f"  {what}: {', '.join(name_of(step) for step in steps)}"))
        if plan.arguments is None:
            console.remark(f"  {_NO_ARGUMENTS}")
        else:
            shown = plan.arguments
            console.remark(plain(f"  called with {list(shown.args)!r} {dict(shown.kwargs)!r}"))
    if dry_run:
        console.remark(f"Resume {plan.text}: nothing was done.")
        return
    console.confirm(f"Resume {_told(view)} {plan.text}?", yes)
    task_id = resume.resume(console.app, environment, plan, _via())
    if console.as_json:
        console.write_json({**plan.as_dict(), "task_id": task_id})
        return
    told = f"{view.key} of {view.task} goes on {plan.text}."
    console.tell(f"{told} Task {task_id} is published." if task_id else f"{told} {_NO_ARGUMENTS}")


def _parsed_as(kind: type[T], option: str, text: str | None) -> T:
    """Read an option that is JSON of a kind; without it, an empty one."""
    if text is None:
        return kind()
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is no JSON ({exc})", param_hint=option) from exc
    if not isinstance(found, kind):
        what = "a list" if kind is list else "an object"
        raise click.BadParameter(f"{text!r} is not {what} in JSON", param_hint=option)
    return found


def _meant(
    console: Console,
    environment: Environment,
    texts: tuple[str, ...],
    wanted: Filter | None,
    scan: bool,
) -> list[RecordView]:
    """Find the records that are meant: by name, or all that a filter admits."""
    if bool(texts) == (wanted is not None):
        raise click.UsageError("Name keys or task ids, or say which by --task, --state or --match.")
    if wanted is None:
        found = [_the_one(console, environment, text, scan) for text in texts]
        return list({view.name: view for view in found}.values())
    batches = search(console.app, environment, wanted, scan=scan, gone_through=console.gone_through)
    return [view for batch in batches for view in batch if view.owner_id]


def _is_left(
    console: Console,
    meant: list[RecordView],
    what: str,
    wanted: Filter | None,
    dry_run: bool,
    count: int | None,
    yes: bool,
) -> bool:
    """Whether nothing is to be done: it was a dry run, or nothing is meant.

    Raises:
        UsageError: what the filters find is not as many as was said.
    """
    number = len(meant)
    if dry_run and console.as_json:
        console.write_lines(view.as_dict() for view in meant)
    elif dry_run or (wanted is not None and number):
        for view in meant[:_SHOWN]:
            console.remark(plain(f"  {_told(view)}"))
        if number > _SHOWN:
            console.remark(f"  and {number - _SHOWN} more")
    if dry_run:
        again = f" To do it: --count {number}." if wanted is not None and number else ""
        console.remark(f"{what}: {_records(number)}. Nothing was done.{again}")
        return True
    if wanted is None:
        return False
    if not number:
        console.remark(none_found(console.app, wanted))
        return True
    if count is None and sys.stdin.isatty() and not yes:
        question = f"{what} {_records(number)}? Type how many they are"
        count = click.prompt(question, type=int, err=True)
    if count != number:
        said = "say --count" if count is None else f"{count} was said"
        raise click.UsageError(f"{_records(number)} meant, {said}: nothing was done.")
    return False


def _records(number: int) -> str:
    return "1 record" if number == 1 else f"{number} records"


def _is_as_it_was(environment: Environment, view: RecordView) -> bool:
    (record,) = environment.store.get_many([view.name])
    if view.state == QUEUED:
        queued = queued_call(environment.store, view.name)
        return record is None and queued is not None and queued.task_id == view.owner_id
    if view.problem:
        return isinstance(record, StoreError)
    return isinstance(record, Record) and record.token == view.token


@click.command("init-db")
@click.pass_obj
@command
def init_db_command(context: Any) -> None:
    """Make the tables that records are kept in, where they are not there yet.

    For a store in a SQL database; django:// has manage.py migrate, the others need none.
    """
    console = Console(context, None)
    environment = console.environment()
    if environment.store.schema_command:
        raise click.ClickException(
            f"The tables of {environment.where} are made by {environment.store.schema_command}."
        )
    if not environment.store.needs_schema:
        raise click.ClickException(f"The store at {environment.where} needs no tables.")
    made = environment.store.create_schema()
    told = "The tables are there"
    if made is not None:
        told = f"Made {', '.join(made)}" if made else "The tables were there already"
    console.remark(f"{told}, at {environment.where}.")


def _parsed(text: str) -> Any:
    try:
        return settle.read_result(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--succeeded") from exc


def _the_one(console: Console, environment: Environment, text: str, scan: bool) -> RecordView:
    """Find the one record that is meant; what is not clear is not done."""
    found = look_up(console.app, environment, text, console.gone_through if scan else None)
    if not found:
        raise not_found(console.app, environment, text, scan)
    if len(found) > 1:
        names = "\n".join(f"  {view.name}" for view in found[:20])
        raise NotFound(f"{text} may mean {len(found)} records. Name one of them:\n{names}")
    return found[0]


def _told(view: RecordView) -> str:
    owner = f", owned by {view.owner_id}" if view.owner_id else ""
    free = f", {view.freed}" if view.freed else ""
    return f"{view.key} of {view.task} ({view.state}{free}{owner})"


def _via() -> str:
    """Say for the journal who did it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = "somebody"
    return f"celery idempotency, {user} on {socket.gethostname()}"
