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
            "   :widths: 4 30 36 30",
            "",
            "   * - ",
            "     - Fault",
            "     - Outcome",
            "     - Shown by, in ``tests/``",
        ]
        for it in _scenarios():
            lines += [f"   * - {it.number}", f"     - {it.fault}", f"     - {it.outcome}"]
            tests = [
                f"``{node.rpartition('::')[2]}`` ({node.partition('::')[0]})" for node in it.tests
            ]
            lines += [f"     - | {tests[0]}", *(f"       | {test}" for test in tests[1:])]
        content = StringList(lines, source=str(_SOURCE))
        parent = nodes.Element()
        self.state.nested_parse(content, self.content_offset, parent)
        return list(parent.children)


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("scenarios", ScenariosDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
