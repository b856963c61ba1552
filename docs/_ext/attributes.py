"""Keeps the text of attributes whole: Napoleon takes what stands before a colon for a type."""

from __future__ import annotations

from typing import Any

from sphinx.ext.napoleon import GoogleDocstring

__all__ = ["setup"]

_BEFORE_NAPOLEON, _AFTER_NAPOLEON = 400, 600
_ATTRIBUTES = ("attribute", "data", "property")


def setup(app: Any) -> dict[str, Any]:
    """Register what is done before Napoleon reads a docstring, and after."""
    whole: dict[str, list[str]] = {}

    def keep(_app: Any, what: str, name: str, _object: Any, _options: Any, lines: Any) -> None:
        if what in _ATTRIBUTES:
            whole[name] = list(lines)

    def put_back(app: Any, what: str, name: str, thing: Any, options: Any, lines: Any) -> None:
        if what not in _ATTRIBUTES:
            return
        text = whole.pop(name)
        if what == "property":
            # Its sections (Raises) are read as a method's.
            text = GoogleDocstring(text, app.config, app, "method", name, thing, options).lines()
        lines[:] = text

    app.connect("autodoc-process-docstring", keep, priority=_BEFORE_NAPOLEON)
    app.connect("autodoc-process-docstring", put_back, priority=_AFTER_NAPOLEON)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
