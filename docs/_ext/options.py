"""The Sphinx directive ``options``: a page of settings from the ``#:`` comments beside them."""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

__all__ = ["setup"]

_PREFIX = "idempotency_"


def _default_of(item: dataclasses.Field[Any], comment: list[str]) -> str:
    default = item.default
    if item.default_factory is not dataclasses.MISSING:
        default = item.default_factory()
    if default is None or default == {}:
        # What holds then depends on other things: the comment says it.
        said = re.search(r"Default: (.+?)\.(?:\s|$)", " ".join(comment))
        return said[1] if said else "not set"
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return f"``{default!r}``"


class OptionsDirective(SphinxDirective):
    """``.. options:: module Class``; with ``:on-tasks:`` they can be set on a task as well."""

    required_arguments = 2
    option_spec: ClassVar[dict[str, Any]] = {"on-tasks": lambda argument: True}

    def run(self) -> list[nodes.Node]:
        module, name = self.arguments
        analyzer = ModuleAnalyzer.for_module(module)
        self.env.note_dependency(analyzer.srcname)
        comments = analyzer.find_attr_docs()
        lines: list[str] = []
        for item in dataclasses.fields(getattr(importlib.import_module(module), name)):
            if (name, item.name) not in comments:
                raise self.error(f"{name}.{item.name} has no #: comment")
            lines += self._entry(item, comments[name, item.name])
        content = StringList(lines, source=analyzer.srcname)
        parent = nodes.Element()
        self.state.nested_parse(content, self.content_offset, parent)
        return list(parent.children)

    def _entry(self, item: dataclasses.Field[Any], comment: list[str]) -> list[str]:
        full = _PREFIX + item.name
        setting = f"``app.conf.{full}``; in Django's settings ``CELERY_{full.upper()}``"
        places = f"app setting {setting}"
        if "on-tasks" in self.options:
            places = f"task attribute ``{full}``; {places}"
        return [
            f".. confval:: {full}",
            f"   :default: {_default_of(item, comment)}",
            "",
            *(f"   {line}" for line in comment),
            "",
            f"   Set as: {places}.",
            "",
        ]


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("options", OptionsDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
