"""The Sphinx directive ``scenarios``: the table of faults from ``tests/faults/scenarios.py``."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

__all__ = ["setup"]

_SOURCE = Path(__file__).resolve().parents[2] / "tests" / "faults" / "scenarios.py"


def _scenarios() -> Any:
    # By its path: the folder of the tests needs what only tests have.
    spec = util.spec_from_file_location("fault_scenarios", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    # A dataclass looks its module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.SCENARIOS


class ScenariosDirective(SphinxDirective):
    """``.. scenarios::``"""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(_SOURCE))
        lines = [
            ".. list-table::",
            "   :header-rows: 1",
            "   :widths: 34 66",
            "",
            "   * - Fault",
            "     - Outcome, and the tests in ``tests/`` that show it",
        ]
        for it in _scenarios():
            lines += [f"   * - {it.number}. {it.fault}", f"     - {it.outcome}", ""]
            for node in it.tests:
                path, _, name = node.rpartition("::")
                lines.append(f"       | ``{name}`` ({path})")
        content = StringList(lines, source=str(_SOURCE))
        parent = nodes.Element()
        self.state.nested_parse(content, self.content_offset, parent)
        return list(parent.children)


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("scenarios", ScenariosDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
