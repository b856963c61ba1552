"""One first execution's way through the files: ``python -m tests.meta.path [--verbose]``."""

from __future__ import annotations

import argparse
import dis
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

from celery import Celery

import celery_idempotent
from celery_idempotent import IdempotentTask
from celery_idempotent.testing.deliveries import message_of
from celery_idempotent.testing.servers import RedisServer

PACKAGE = Path(celery_idempotent.__file__).parent
_STANDARD = sysconfig.get_paths()["stdlib"]


@dataclass(frozen=True)
class Call:
    """One call of a function of ours."""

    file: str
    function: str
    #: The files of the functions on the stack, from the outermost, this one's at the end: ours by
    #: their names below the package, and None for Celery's and the body's.
    stack: tuple[str | None, ...]

    @property
    def depth(self) -> int:
        """How many functions of ours are on the stack."""
        return sum(file is not None for file in self.stack)

    @property
    def goes_back(self) -> bool:
        """Whether its file is on the stack already, and waits for a call of another file to end."""
        above: list[str | None] = []
        for file in reversed(self.stack[:-1]):
            # What Celery or the body calls is a way down of its own.
            if file is None:
                return False
            if file == self.file and set(above) - {file}:
                return True
            above.append(file)
        return False


@dataclass(frozen=True)
class Way:
    """The calls of ours that something makes, in their order."""

    calls: tuple[Call, ...]

    @property
    def files(self) -> set[str]:
        return {call.file for call in self.calls}

    @property
    def changes(self) -> int:
        """How often a call is in another file than the call before it."""
        return sum(one.file != other.file for one, other in pairwise(self.calls))

    @property
    def depth(self) -> int:
        return max(call.depth for call in self.calls)

    @property
    def back(self) -> list[str]:
        """The calls that go back up, into a file that waits for the one they come from."""
        return [f"{call.file}: {call.function}" for call in self.calls if call.goes_back]

    def __str__(self) -> str:
        return (
            f"{len(self.calls)} calls, {len(self.files)} files, {self.changes} changes of file, "
            f"{self.depth} deep, {len(self.back)} calls back up"
        )


def traced(run: Callable[[], Any]) -> Way:
    """Run something; give the calls of ours that it makes.

    Left out is what only makes a value, or reads one: ``__init__``, properties, comprehensions,
    and a generator that goes on.
    """
    calls: list[Call] = []
    properties = set(_properties())

    def note(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call" and _is_ours(code.co_filename) and not _only_a_value(frame, properties):
            stack = tuple(_stack(frame))[::-1]
            calls.append(Call(str(stack[-1]), code.co_name, stack))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return Way(tuple(calls))


def _is_ours(path: str) -> bool:
    name = path.removeprefix(f"{PACKAGE}/")
    return name != path and not name.startswith("testing/")


def _only_a_value(frame: FrameType, properties: set[CodeType]) -> bool:
    code = frame.f_code
    if code.co_name.startswith("<") or code.co_name in ("__init__", "__get__", "__str__"):
        return True
    if code in properties:
        return True
    resumed = [it.offset for it in dis.get_instructions(code) if it.opname == "RESUME"]
    return bool(code.co_flags & inspect.CO_GENERATOR) and frame.f_lasti > min(resumed, default=0)


def _properties() -> Iterator[CodeType]:
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{celery_idempotent.__name__}."):
            for kind in list(vars(module).values()):
                if isinstance(kind, type):
                    yield from (
                        access.__code__
                        for one in vars(kind).values()
                        if isinstance(one, property)
                        for access in (one.fget, one.fset)
                        if inspect.isfunction(access)
                    )


def _stack(frame: FrameType | None) -> Iterator[str | None]:
    """From the innermost: our files, None for others'; the standard library's are no step."""
    while frame is not None:
        path = frame.f_code.co_filename
        if _is_ours(path):
            yield path.removeprefix(f"{PACKAGE}/")
        elif "site-packages" in path or not path.startswith((_STANDARD, "<")):
            yield None
        frame = frame.f_back


def first_execution() -> Way:
    """Deliver a call by Celery's own tracer, on a Redis that has met none with its key."""
    app = Celery("shop", broker="memory://", set_as_current=False)

    @app.task(name="shop.charge", base=IdempotentTask, idempotency_key="{order}", shared=False)
    def charge(order: int) -> str:
        return f"order {order} is charged"

    # The first delivery has the journal request a turn of the heartbeat. Until that turn comes, no
    # delivery requests another: on a busy machine it must not come in between.
    with RedisServer() as server, mock.patch("celery_idempotent.run.heartbeat._RETRY_S", 60.0):
        app.conf.idempotency_store_url = server.url()
        # What is done once a process is no part of the way.
        message_of(charge, (1,)).deliver()
        return traced(message_of(charge, (2,)).deliver)


def main() -> None:
    """Print the way, its calls too if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.meta.path", description=__doc__)
    parser.add_argument("-v", "--verbose", action="store_true", help="print each call")
    options = parser.parse_args()
    way = first_execution()
    if options.verbose:
        before = ""
        for call in way.calls:
            place = call.file if call.file != before else ""
            mark = "  <- back up" if call.goes_back else ""
            print(f"{place:28} {'  ' * (call.depth - 1)}{call.function}{mark}")
            before = call.file
    print(way)


if __name__ == "__main__":
    main()
