"""Recognizes what has not run when its call returns: async functions, generators, awaitables."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any

#: The types of nearly every result: none of them has to be run or awaited.
FINISHED = frozenset((type(None), bool, int, float, str, bytes, dict, list, tuple))


def kind_of(function: Any) -> str:
    """Return what a call of this returns instead of a result: "async", "generator" or ""."""
    called = inspect.getattr_static(type(function), "__call__", None)  # of a callable object
    for it in (function, called):
        if inspect.iscoroutinefunction(it) or inspect.isasyncgenfunction(it):
            return "async"
        if inspect.isgeneratorfunction(it):
            return "generator"
    return ""


def is_awaitable(result: Any) -> bool:
    """Whether a result still has to be awaited; then close it, since nobody will await it."""
    if type(result) in FINISHED or not isinstance(result, Awaitable):
        return False
    if hasattr(result, "close"):
        result.close()
    return True
