"""Sphinx directives for the diagrams: ``sequence`` and ``statechart``."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from _ext import sequence, statechart

__all__ = ["setup"]


def _figure(html: str, source: str) -> list[nodes.Node]:
    # Builders that don't write HTML show the words.
    return [nodes.raw("", html, format="html"), nodes.raw("", source, format="text latex man")]


class SequenceDirective(SphinxDirective):
    """``.. sequence:: Title`` with the steps as its content."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            steps = sequence.parse(list(self.content))
        except ValueError as exc:
            raise self.error(str(exc)) from exc
        return _figure(sequence.draw(self.arguments[0], steps), "\n".join(self.content))


class StatechartDirective(SphinxDirective):
    """``.. statechart::``, the states of a record."""

    def run(self) -> list[nodes.Node]:
        words = "\n".join(
            f"{edge.source} -> {edge.target}: {' '.join(edge.label.split())}"
            for edge in statechart.EDGES
        )
        return _figure(statechart.draw(), words)


def setup(app: Any) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("sequence", SequenceDirective)
    app.add_directive("statechart", StatechartDirective)
    app.add_css_file("diagrams.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
