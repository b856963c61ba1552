"""The guards of where a call's key comes from, and of tasks that would be silently plain."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages

__all__ = ["KEYS"]

_HEADERS: Stages = (("tests/unit/test_headers.py",),)
_NESTED: Stages = (("tests/unit/test_seam.py", "-k", "nests"),)

KEYS: list[Mutant] = [
    Mutant(
        "headers: nested ones are read",
        "headers.py",
        "if nested and isinstance(nested, Mapping):",
        "if False:",
        _HEADERS,
    ),
    Mutant(
        "headers: all of a request's are read",
        "task.py",
        "headers = vars(request)",
        "headers = request.headers",
        _NESTED,
    ),
    Mutant(
        "headers: what is published again keeps them",
        "retrying.py",
        "ours = ours_in(vars(request))",
        "ours = {}",
        _NESTED,
    ),
    Mutant(
        "headers: bytes are not guessed",
        "headers.py",
        'value.decode("utf-8")',
        'value.decode("utf-8", "replace")',
        _HEADERS,
    ),
]
