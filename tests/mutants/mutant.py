"""One guard, how it is taken out, and which tests have to notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["LUA", "PYTHON", "Mutant", "SourceChanged", "Stages", "pair"]

#: Arguments of pytest: the stages are tried in turn until one fails.
Stages = tuple[tuple[str, ...], ...]

#: Decisions in Python, by the memory store, which is nothing else.
PYTHON: Stages = (
    ("tests/stores/test_contract.py::TestMemory",),
    ("tests/core/test_transitions.py",),
)
#: The same decisions in Lua.
LUA: Stages = (("tests/stores/test_contract.py::TestRedisByAVirtualClock",),)


class SourceChanged(Exception):
    """A mutant's source text is not there any more, or is there twice."""


@dataclass(frozen=True)
class Mutant:
    """A guard that is taken out."""

    guard: str
    #: Below the package.
    path: str
    old: str
    new: str
    stages: Stages
    #: Where ``old`` is to be looked for: after this text.
    after: str = ""

    @property
    def language(self) -> str:
        """Where the guard stands: in Python or in Lua."""
        return "Lua" if self.path.endswith(".lua") else "Python"

    def apply(self, tree: Path) -> None:
        """Take the guard out of a copy of the project.

        Raises:
            SourceChanged: the text that it replaces is not there exactly once.
        """
        path = tree / "celery_idempotent" / self.path
        source = path.read_text()
        head, after, tail = source.partition(self.after) if self.after else ("", "", source)
        found = tail.count(self.old)
        # After a mark it is the first one that is meant.
        if (self.after and not after) or not found or (found > 1 and not self.after):
            raise SourceChanged(
                f"{self.guard}: its text is {found} times in {self.path}: put the mutant right"
            )
        path.write_text(head + after + tail.replace(self.old, self.new, 1))


def pair(
    guard: str,
    python: tuple[str, str] | tuple[str, str, str],
    script: str,
    lua: tuple[str, str] | tuple[str, str, str],
    path: str = "core/transitions.py",
) -> list[Mutant]:
    """Give a guard of a store's decision in both languages.

    Args:
        python: what is replaced, by what, and (if it is there twice) after which text;
            ``lua``: the same.
    """
    return [
        Mutant(guard, path, python[0], python[1], PYTHON, *python[2:]),
        Mutant(guard, f"stores/redis/lua/{script}.lua", lua[0], lua[1], LUA, *lua[2:]),
    ]
