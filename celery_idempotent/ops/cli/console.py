"""What the commands have in common: the app they ask, tables and JSON, errors in a sentence."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final, NoReturn, TypeVar

import click

from celery_idempotent.errors import ConfigurationError, IdempotencyError
from celery_idempotent.ops.lookup import nearly, no_such_task
from celery_idempotent.ops.views import Filter
from celery_idempotent.settings import Environment, environment_of

F = TypeVar("F", bound=Callable[..., Any])

#: The exit code where an app's configuration is so wrong that nothing can be done.
MISCONFIGURED: Final = 3
#: The exit code where nobody reads the output any more (`... | head`), as a shell has it for a
#: program that SIGPIPE has ended.
_NO_READER: Final = 128 + 13
#: So many rows are looked at to see how wide a table's columns are.
_MEASURED: Final = 100
#: So many keys are given where one may have been meant.
_NEAR: Final = 3
#: After so many seconds a command says how far it is.
_SOON_S: Final = 1.0
#: What would move a terminal's cursor, or hide what stands there, or can't be written at all.
_UNSEEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_COLOURS: Final = {
    "queued": "cyan",
    "running": "cyan",
    "retrying": "cyan",
    "compensating": "yellow",
    "succeeded": "green",
    "failed": "red",
    "unknown": "magenta",
    "unreadable": "red",
    "error": "red",
    "warning": "yellow",
    "hint": "cyan",
}


def as_seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """Read an option that is a length of time, such as ``15m``: as many seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no time: write 30s, 15m, 2h or 1d", ctx, param)
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


Row = Mapping[str, Any]
#: A column's title, and how its text is made of a row.
Column = tuple[str, Callable[[Any], str]]


class NotFound(click.ClickException):
    """What was asked for is not there."""

    exit_code = 1


class Misconfigured(click.ClickException):
    """The app's configuration is so wrong that nothing can be asked."""

    exit_code = MISCONFIGURED


class Console:
    """Where a command writes to, for a person or for a program.

    Args:
        context: Celery's own object for commands.
        as_json: whether JSON was asked for; ``None``: it is written where nobody looks on.
    """

    def __init__(self, context: Any, as_json: bool | None) -> None:
        self._context = context
        self.as_json = not sys.stdout.isatty() if as_json is None else as_json
        self._gone_through = 0
        self._next_word = time.monotonic() + _SOON_S

    @functools.cached_property
    def app(self) -> Any:
        """The app, with all of its tasks."""
        app = self._context.app
        app.loader.import_default_modules()
        app.finalize(auto=True)
        return app

    def environment(self) -> Environment:
        """Give the app's store and times.

        Raises:
            ConfigurationError: it has none.
        """
        try:
            return environment_of(self.app)
        except ConfigurationError as exc:
            if self._context.app.main not in (None, "default"):
                raise
            raise ConfigurationError(
                f"{exc} (is -A missing: celery -A yourapp idempotency?)"
            ) from exc

    def say(self, text: str = "") -> None:
        """Write a line of what was asked for."""
        try:
            self._context.echo(text)
        except OSError as exc:
            # What is still to be written would fail once more as the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(exc, BrokenPipeError):
                sys.exit(_NO_READER)
            raise click.ClickException(f"could not write the output: {exc.strerror}") from exc

    def tell(self, text: str) -> None:
        """Write a line with something in it that came from tasks or their callers."""
        self.say(plain(text))

    def remark(self, text: str) -> None:
        """Write a line that is not part of what was asked for."""
        self._context.error(text)

    def write_json(self, document: Any) -> None:
        """Write one line of JSON."""
        self.say(json.dumps(document, default=str))

    def write_lines(self, documents: Iterable[Any]) -> int:
        """Write documents as they come, one a line; how many there were."""
        written = 0
        for written, document in enumerate(documents, 1):  # noqa: B007
            self.write_json(document)
        return written

    def gone_through(self, number: int) -> None:
        """Count keys that were gone through, and say once a second how far it is."""
        self._gone_through += number
        now = time.monotonic()
        if now >= self._next_word:
            self.remark(f"{self._gone_through} keys gone through so far ...")
            self._next_word = now + _SOON_S

    def coloured(self, word: str) -> str:
        """Give a state in its colour."""
        colour = _COLOURS.get(word)
        styled: str = self._context.style(word, fg=colour) if colour else word
        return styled

    def bold(self, text: str) -> str:
        """Give a title."""
        styled: str = self._context.style(text, bold=True)
        return styled

    def table(self, columns: Sequence[Column], rows: Iterable[Any]) -> int:
        """Write rows as they come, under titles; how many there were."""
        waiting = iter(rows)
        measured = list(islice(waiting, _MEASURED))
        if not measured:
            return 0
        widths = [
            max(len(title), *(len(plain(text(row))) for row in measured)) for title, text in columns
        ]
        self.say(self.bold(_line([title for title, _ in columns], widths)))
        written = 0
        for row in chain(measured, waiting):
            texts = [plain(text(row)) for _, text in columns]
            line = _line(texts, widths)
            first = texts[0]
            self.say(self.coloured(first) + line[len(first) :])
            written += 1
        return written

    def pairs(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Write names and what they stand for, one a line."""
        told = [(name, text) for name, text in pairs if text]
        width = max((len(name) for name, _ in told), default=0)
        for name, text in told:
            self.say(f"{self.bold(name.ljust(width))}  {self.coloured(plain(text))}")

    def confirm(self, question: str, yes: bool) -> None:
        """Go on only where a person says so, or has said so with ``--yes``."""
        if yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise click.UsageError(f"{question} Say --yes to do it: nobody can be asked here.")
        click.confirm(plain(question), abort=True, err=True)


def none_found(app: Any, wanted: Filter) -> str:
    """Return what is said where a filter finds nothing, which is no error."""
    return plain(f"There is no such record. {no_such_task(app, wanted)}".rstrip())


def not_found(app: Any, environment: Environment, text: str, scanned: bool) -> NotFound:
    """Return the error of a key or a task id that no record was found for."""
    if not text.strip():
        return NotFound("Name a key, a record or a task id: this is empty.")
    keys = list(dict.fromkeys(view.key for view in nearly(app, environment, text)))[:_NEAR]
    if keys:
        # In double quotes a shell leaves the single ones, which belong to the key.
        hint = f" Did you mean {' or '.join(json.dumps(key, ensure_ascii=False) for key in keys)}?"
    else:
        hint = (
            "" if scanned else " If the journal has forgotten it since, --scan may find it still."
        )
    return NotFound(plain(f"No record has the key, or belongs to the task, {text}.{hint}"))


def plain(text: str) -> str:
    """Give a text with all that can't be seen escaped: results and failures may hold anything."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    cells = [text.ljust(width) for text, width in zip(texts, widths, strict=True)]
    return "  ".join(cells).rstrip()


def command(function: F) -> F:
    """Have what can go wrong told in a sentence, and the exit code say that it did."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except IdempotencyError as exc:
            _tell(exc)

    return wrapped  # type: ignore[return-value]


def _tell(exc: IdempotencyError) -> NoReturn:
    kind = Misconfigured if isinstance(exc, ConfigurationError) else click.ClickException
    raise kind(str(exc)) from exc


def format_option(function: F) -> F:
    """Add ``--json/--text``."""
    return click.option(
        "--json/--text",
        "as_json",
        default=None,
        help="Write JSON, one document a line. Without either: text on a terminal, else JSON.",
    )(function)


def scan_option(function: F) -> F:
    """Add ``--scan``."""
    return click.option(
        "--scan",
        is_flag=True,
        help="Where neither the store's lists nor the journal know it, go through all records.",
    )(function)


def first(rows: Iterator[Any], limit: int) -> Iterator[Any]:
    """Give up to ``limit`` rows; 0: all."""
    return islice(rows, limit or None)
