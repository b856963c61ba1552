"""What has not run when its call returns: async functions, generators, and what they give."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any

__all__ = ["is_awaitable", "kind_of"]

#: What nearly every result is.
_RESULTS = frozenset((type(None), bool, int, float, str, bytes, dict, list, tuple))


def kind_of(function: Any) -> str:
    """Tell what a call of this gives instead of a result: "async", "generator", or nothing."""
    called = inspect.getattr_static(type(function), "__call__", None)  # where it is an object
    for it in (function, called):
        if inspect.iscoroutinefunction(it) or inspect.isasyncgenfunction(it):
            return "async"
        if inspect.isgeneratorfunction(it):
            return "generator"
    return ""


def is_awaitable(result: Any) -> bool:
    """Whether a result is none yet; then it is closed, since nobody will await it."""
    if type(result) in _RESULTS or not isinstance(result, Awaitable):
        return False
    if hasattr(result, "close"):
        result.close()
    return True
