"""Puts its column's heading into each cell of a table, for screens where rows become blocks.

``_static/pages.css`` hides the headings where the table is shown as a table.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes

__all__ = ["setup"]

#: A table of more columns takes small type.
_MANY = 4


def _label(_app: Any, doctree: nodes.document, _name: str) -> None:
    for table in doctree.findall(nodes.table):
        heads = [entry.astext() for entry in table.findall(nodes.entry) if _is_head(entry)]
        if len(heads) > _MANY:
            table["classes"].append("many")
        for row in table.findall(nodes.row):
            for heading, entry in zip(heads, row.children, strict=False):
                if heading and not _is_head(entry) and entry is not row.children[0]:
                    label = nodes.paragraph(heading, heading, classes=["column"])
                    entry.insert(0, label)


def _is_head(entry: Any) -> bool:
    return isinstance(entry.parent.parent, nodes.thead)


def setup(app: Any) -> dict[str, Any]:
    """Register what is done to each page, and the style sheet that goes with it."""
    app.connect("doctree-resolved", _label)
    app.add_css_file("pages.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
