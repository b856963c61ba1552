"""The recipes of docs/deploying.rst, with this machine's addresses in the place of theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["settings_of", "text_of"]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def text_of(name: str, places: Mapping[str, str] | None = None) -> str:
    """Return a recipe, with places that it names changed to others; each has to be in it."""
    text = (EXAMPLES / name).read_text("utf-8")
    for old, new in (places or {}).items():
        assert old in text, f"{name} does not name {old}"
        text = text.replace(old, new)
    return text


def settings_of(name: str, places: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the settings that a recipe makes."""
    text = text_of(name, places)
    made: dict[str, Any] = {"__name__": name}
    exec(compile(text, name, "exec"), made)
    return {found: made["app"].conf[found] for found in re.findall(r"^    (\w+)=", text, re.M)}
