"""Finds task classes that bypass the guard, or return before their body has run."""

from __future__ import annotations

import functools
import inspect
from types import GeneratorType
from typing import Any

from celery import Task

from celery_idempotent.core.unfinished import is_awaitable, kind_of
from celery_idempotent.delivery.delivery import state_of
from celery_idempotent.errors import ConfigurationError


def check_class(cls: type, ours: type, name: str) -> None:
    """Check that a worker's call of the task goes through the guard, and ends with its body.

    Args:
        ours: IdempotentTask.

    Raises:
        ConfigurationError: the class shows that it would not.
    """
    where = f"task {name!r}"
    _check_body(cls, where)
    _check_calls(cls, ours, where)
    strategies = ((it, vars(it).get("Strategy", "")) for it in cls.__mro__)
    owner = next((it for it, strategy in strategies if not isinstance(strategy, str)), None)
    if owner is not None:
        raise ConfigurationError(
            f"{where}: {owner.__name__} takes the messages from the worker by itself (it has a "
            "Strategy), and they would not be deduplicated: take it out of the bases; a task that "
            "works on batches of messages can't be idempotent for each of them"
        )


def _check_body(cls: type, where: str) -> None:
    run = inspect.getattr_static(cls, "run")
    if isinstance(run, (staticmethod, classmethod)):
        run = run.__func__
    kind = kind_of(run)
    if kind == "async":
        raise ConfigurationError(
            f"{where}: its body is async, and has not run when it returns: make it a plain function"
            " that runs it to its end, return asyncio.run(...)"
        )
    if kind:
        raise ConfigurationError(
            f"{where}: its body is a generator, and has not run when it returns: return a list, or "
            "call what yields from a plain function"
        )


def _check_calls(cls: type, ours: type, where: str) -> None:
    mro = cls.__mro__
    guard = mro.index(ours)
    for klass in mro:
        call = vars(klass).get("__call__")
        if klass not in (object, Task) and kind_of(call):
            raise ConfigurationError(
                f"{where}: {klass.__name__}.__call__ is async, and what it returns is not the "
                "task's result: make it a plain function"
            )
    for klass in mro[:guard]:
        names = getattr(getattr(vars(klass).get("__call__"), "__code__", None), "co_names", ())
        if ours.__name__ in names and "__call__" in names:
            break  # it calls the guard itself, and the classes in between are not called
        if "run" in names and "__call__" not in names:
            raise ConfigurationError(
                f"{where}: {klass.__name__}.__call__ calls self.run, so that nothing would "
                "be deduplicated: let it call super().__call__(*args, **kwargs)"
            )
    for klass in mro[guard + 1 :]:
        if "__call__" in vars(klass) and klass is not Task and klass is not object:
            raise ConfigurationError(
                f"{where}: {klass.__name__}.__call__ would not be called: name "
                f"{klass.__name__} before IdempotentTask among the bases, and let it call "
                "super().__call__(*args, **kwargs)"
            )


def watch_body(task: Any, ours: type) -> None:
    """Make the body refuse to run where the class's own ``__call__`` bypasses the guard.

    Where such a ``__call__`` is decorated, is an object, or uses a helper, only a delivery shows
    it. A class without its own ``__call__`` costs nothing.
    """
    if "_idempotent_watch" in task.__dict__:
        return
    task._idempotent_watch = True
    mro = type(task).__mro__
    others = [klass for klass in mro[: mro.index(ours)] if "__call__" in vars(klass)]
    if not others:
        return
    run = task.run

    @functools.wraps(run)
    def watched(*args: Any, **kwargs: Any) -> Any:
        # A delivery that came through the guard has a state on its request.
        if not task.request.called_directly and state_of(task.request) is None:
            raise ConfigurationError(
                f"task {task.name!r}: {others[0].__name__}.__call__ passes by "
                "IdempotentTask.__call__, so that nothing would be deduplicated; the body was not "
                "run: let it call super().__call__(*args, **kwargs)"
            )
        return run(*args, **kwargs)

    task.run = watched


def refuse_unfinished(task: Any, result: Any) -> None:
    """Refuse what a body returned instead of running.

    Raises:
        ConfigurationError: it is something to be awaited, or the body itself as a generator.
    """
    if is_awaitable(result):
        what = "something to be awaited"
    elif isinstance(result, GeneratorType) and _is_body(task.run, result):
        what = "a generator"
    else:
        return
    raise ConfigurationError(
        f"task {task.name!r}: its body returned {what}, which nobody runs: make it a plain "
        "function that returns the result, such as asyncio.run(...) gives it"
    )


def _is_body(run: Any, result: GeneratorType[Any, Any, Any]) -> bool:
    # Any other one came from a body that has run.
    run = inspect.unwrap(run)
    code = getattr(run, "__code__", None)
    return code is not None and result.gi_code is code
