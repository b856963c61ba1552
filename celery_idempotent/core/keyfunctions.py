"""Calls a user's function with a task's arguments: for a key, a namespace, or to reconcile."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery_idempotent.core.binding import Binder
from celery_idempotent.core.templates import NoKey, Wrong
from celery_idempotent.core.unfinished import kind_of
from celery_idempotent.errors import KeyDerivationError


class TaskFunction:
    """A callable of the task's arguments, defaults applied; refused if it does not take them.

    It is called by name if its parameters are named like the task's, else by position. It gets the
    task first if its first parameter is called ``self``.
    """

    def __init__(self, function: Callable[..., Any], binder: Binder, wrong: Wrong) -> None:
        self._function = function
        self._binder = binder
        self._wants_task = False
        self._by_name = False
        if kind_of(function):
            raise wrong("the callable is async or a generator, and nobody would run it")
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return  # a builtin without a signature
        parameters = list(signature.parameters.values())
        self._wants_task = bool(parameters) and parameters[0].name == "self"
        if self._wants_task:
            parameters = parameters[1:]
        signature = signature.replace(parameters=parameters)
        sample = binder.sample()
        args, kwargs = binder.as_call(sample)
        # A function that takes *args expects them by position.
        starred = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
        by_name = not starred and not binder.variadic
        self._by_name = by_name and _takes(signature, [], binder.as_keywords(sample))
        if not self._by_name and not _takes(signature, args, kwargs):
            raise wrong(
                "the callable must take the task's arguments, "
                f"({', '.join(binder.names)}), or (*args, **kwargs)"
            )

    def answer(self, args: Sequence[Any], kwargs: Mapping[str, Any], task: object) -> Any:
        """Return what the function returns for a call."""
        return self._called(self._binder.bind(args, kwargs), task)

    def _called(self, values: Sequence[Any], task: object) -> Any:
        args: list[Any] = []
        if self._by_name:
            kwargs = self._binder.as_keywords(values)
        else:
            args, kwargs = self._binder.as_call(values)
        if self._wants_task:
            args = [task, *args]
        return self._function(*args, **kwargs)


class KeyFunction(TaskFunction):
    """One that returns a text, or None."""

    def __init__(
        self, function: Callable[..., Any], option: str, binder: Binder, wrong: Wrong
    ) -> None:
        super().__init__(function, binder, wrong)
        self._option = option

    def text(self, values: Sequence[Any], task: object = None) -> str | None:
        """Return the function's text for a call; raise NoKey if that can't be a key."""
        try:
            text = self._called(values, task)
        except KeyDerivationError:
            raise
        except Exception as exc:
            raise NoKey(
                f"{self._option} raised {type(exc).__name__}; its text, which may hold arguments, "
                "is in this error's __cause__"
            ) from exc
        if text is None:
            return None
        if not isinstance(text, str):
            kind = type(text).__qualname__
            raise NoKey(f"{self._option} returned {kind}, and must return a string or None")
        if not text.strip():
            raise NoKey(f"{self._option} returned an empty string, and would make one call of many")
        return str.__str__(text)


def _takes(signature: inspect.Signature, args: list[Any], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True
