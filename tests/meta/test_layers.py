"""The layers hold: imports go one way, the core is pure, and importing the library does nothing."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "celery_idempotent"
SPEC = importlib.util.find_spec(PACKAGE)
assert SPEC is not None
assert SPEC.origin is not None
ROOT = Path(SPEC.origin).parent

#: Who may import whom: a layer sees itself and what stands before it.
LAYERS = (
    ("errors", "observers"),
    ("core",),
    ("stores",),
    ("run",),
    # The seams to Celery: every module beside the package's __init__, and their rooms.
    (
        *sorted({path.stem for path in ROOT.glob("*.py")} - {"__init__", "errors", "observers"}),
        "delivery",
        "worker",
    ),
    ("outbox", "ops", "http", "django"),
    ("testing",),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FIRST_WITH_CELERY = RANKS["task"]

#: What tells the time, waits, draws lots or talks to the world has no place in the core.
IMPURE = {
    "asyncio",
    "http",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "redis",
    "secrets",
    "select",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib.request",
    "_thread",
}
IMPURE_CALLS = {"now", "utcnow", "today", "open", "print", "input", "uuid1", "uuid4"}

MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
INNER = [module for module in MODULES if module != Path("__init__.py")]


def parse(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def dotted(module: Path) -> list[str]:
    """``core/keys.py`` is ``["core", "keys"]``, and a package is its own name."""
    parts = list(module.with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(module: Path) -> Iterator[str]:
    """The full name of each module that this one imports, wherever in it the import stands."""
    package = [PACKAGE, *dotted(module)]
    if module.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield name
            # `from celery_idempotent import settings` names a module too.
            yield from (f"{name}.{alias.name}" for alias in node.names)


def layer_of(name: str) -> str | None:
    """The layer that a full name belongs to; None outside the package and for its top."""
    parts = name.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 and parts[1] in RANKS else None


def is_top_name(name: str) -> bool:
    """Whether the name is one that the package's ``__init__`` gives away."""
    return name.startswith(f"{PACKAGE}.") and name.split(".")[1] not in RANKS


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_says_its_job(module: Path) -> None:
    """Each module opens with a docstring."""
    assert ast.get_docstring(parse(module)), f"{module} has no docstring"


def test_every_module_has_a_layer() -> None:
    """No module stands outside of the layers: a new one must be given its place here."""
    outside = {dotted(module)[0] for module in MODULES if dotted(module)} - set(RANKS)
    assert not outside


@pytest.mark.parametrize("module", INNER, ids=str)
def test_imports_go_one_way(module: Path) -> None:
    """A module imports from its own layer and from those before it, never from one above."""
    # Given
    own = dotted(module)[0]
    # When
    layers = {layer for name in imports(module) if (layer := layer_of(name)) is not None}
    # Then
    above = {layer for layer in layers if RANKS[layer] > RANKS[own]}
    assert not above, f"{own} imports from {above}"


@pytest.mark.parametrize("module", INNER, ids=str)
def test_no_module_comes_in_by_the_front_door(module: Path) -> None:
    """The package's top is for users: inside, a name is imported from where it is defined."""
    if RANKS[dotted(module)[0]] < RANKS["testing"]:
        assert not [name for name in imports(module) if name != PACKAGE and is_top_name(name)]


@pytest.mark.parametrize(
    "module", [m for m in MODULES if dotted(m) and RANKS[dotted(m)[0]] < FIRST_WITH_CELERY], ids=str
)
def test_celery_begins_at_the_task(module: Path) -> None:
    """Below task.py nothing knows Celery, kombu or billiard."""
    roots = {name.split(".")[0] for name in imports(module)}
    assert not roots & {"celery", "kombu", "billiard", "vine", "amqp"}


@pytest.mark.parametrize("module", [m for m in MODULES if dotted(m)[:1] == ["core"]], ids=str)
def test_the_core_is_pure(module: Path) -> None:
    """The core has no clock, no input or output, no chance: it is told all that it decides on."""
    # Given
    tree = parse(module)
    # When
    imported = {name for full in imports(module) for name in (full, full.split(".")[0])}
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    # Then
    assert not imported & IMPURE
    assert not called & IMPURE_CALLS


def test_importing_starts_nothing() -> None:
    """Importing the library starts no thread, opens no socket and starts no process."""
    # Given an interpreter that has what the library builds on, and reports what happens from now on
    program = f"""
import sys, celery, celery.app.task, celery.worker.request, redis, uuid
seen = []
watched = {{"socket.__new__", "socket.connect", "_thread.start_new_thread", "subprocess.Popen",
            "os.fork", "os.posix_spawn"}}
sys.addaudithook(lambda event, args: seen.append(event) if event in watched else None)
import {PACKAGE}, {PACKAGE}.signals
assert not seen, seen
import threading
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
import socket; socket.socket().close()
assert "socket.__new__" in seen, "the watch itself does not work"
"""
    # When
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    # Then
    assert done.returncode == 0, done.stderr
