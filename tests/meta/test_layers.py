"""The layers hold: imports go one way, nothing runs in a circle, and the core is pure."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "celery_idempotent"
SPEC = importlib.util.find_spec(PACKAGE)
assert SPEC is not None
assert SPEC.origin is not None
ROOT = Path(SPEC.origin).parent

#: Who may import whom: a room sees itself, and the rooms of the rows above its own.
LAYERS = (
    ("errors", "observers", "fencing"),
    ("core",),
    ("stores",),
    ("run",),
    # Nothing here imports `signals`: they are an observer, and Celery's.
    ("due", "settings", "signals"),
    ("delivery", "publishing"),
    ("worker", "http"),
    # `request` is the documented home of the worker's request class.
    ("task", "request"),
    ("outbox", "testing"),
    ("ops",),
    ("django",),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FIRST_WITH_CELERY = RANKS["settings"]

#: What names a module above it by text: Celery resolves the first one by itself, and the table of
#: stores loads Django's store only where a URL asks for it.
BY_TEXT = {
    ("worker.boot", "ops.check_up"),
    ("stores.urls", "django.store"),
}

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


def name_of(path: Path) -> str:
    """``core/keys.py`` is ``core.keys``, a package is its own name, and the top is empty."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


#: Each module's path below the package, by its name in it.
MODULES = {
    name_of(path.relative_to(ROOT)): path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))
}
INNER = [name for name in MODULES if name]


@functools.cache
def parse(module: str) -> ast.Module:
    return ast.parse((ROOT / MODULES[module]).read_text(encoding="utf-8"))


@functools.cache
def nodes(module: str) -> tuple[ast.AST, ...]:
    """All of a module's syntax tree, for each test that looks through it."""
    return tuple(ast.walk(parse(module)))


def imports(module: str) -> Iterator[str]:
    """The full name of each module or name that this one imports, wherever the import stands."""
    package = [PACKAGE, *filter(None, module.split("."))]
    if MODULES[module].name != "__init__.py":
        package = package[:-1]
    for node in nodes(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from celery_idempotent import settings` names a module, `... import State` a name.
            yield from (f"{name}.{alias.name}" for alias in node.names)


def module_in(name: str) -> str | None:
    """The module of ours that a full name is, or is in; None for the package's top and others."""
    inner = name.removeprefix(f"{PACKAGE}.") if name.startswith(f"{PACKAGE}.") else ""
    while inner and inner not in MODULES:
        inner = inner.rpartition(".")[0]
    return inner or None


def named_by_text(module: str) -> Iterator[str]:
    """The modules of ours that a string of this one names, docstrings left out."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in nodes(module)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in nodes(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.replace(":", ".")
            whole = re.fullmatch(rf"{PACKAGE}(\.\w+)+", text)
            found = module_in(text) if whole and id(node) not in docstrings else None
            # The name of a package may be that of Django's app.
            if found and MODULES[found].name != "__init__.py":
                yield found


def rank(module: str) -> int:
    return RANKS[module.split(".")[0]]


@functools.cache
def graph() -> dict[str, set[str]]:
    """Which modules of ours each imports."""
    return {
        module: {found for name in imports(module) if (found := module_in(name))} - {module}
        for module in INNER
    }


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle of imports, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        circle: list[str] = exc.args[1]
        return circle
    return []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_its_job(module: str) -> None:
    """Each module opens with a docstring."""
    assert ast.get_docstring(parse(module)), f"{module} has no docstring"


def test_every_module_has_a_layer() -> None:
    """No module stands outside of the layers, and no layer is empty."""
    assert {module.split(".")[0] for module in INNER} == set(RANKS)


@pytest.mark.parametrize("module", INNER)
def test_imports_go_one_way(module: str) -> None:
    """A module imports from its own room and from those below it, never from above or beside."""
    own = module.split(".")[0]
    wrong = {
        name
        for name in graph()[module]
        if name.split(".")[0] != own and rank(name) >= rank(module) and rank(module)
    }
    assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize("module", INNER)
def test_nothing_above_is_named_by_text(module: str) -> None:
    """A name as a string would run past the order unseen: those that have to be are known."""
    above = {(module, name) for name in named_by_text(module) if rank(name) > rank(module)}
    assert above == {pair for pair in BY_TEXT if pair[0] == module}


def test_no_circles() -> None:
    """No module comes back to itself: not by an import in a function, nor by one for types."""
    assert " <- ".join(circle_in(graph())) == ""


def test_circles_are_found() -> None:
    """The search itself works."""
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert not circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize("module", INNER)
def test_no_module_comes_in_by_the_front_door(module: str) -> None:
    """The package's top is for users: inside, a name is imported from where it is defined."""
    if module.split(".")[0] != "testing":
        front = [name for name in imports(module) if re.match(rf"{PACKAGE}\.\w", name)]
        assert not [name for name in front if module_in(name) is None]


@functools.cache
def defined_in(module: str) -> frozenset[str]:
    """The names that a module itself defines, also within ``if`` and ``try``."""
    found: set[str] = set()
    left: list[ast.AST] = [*parse(module).body]
    while left:
        node = left.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        left += ast.iter_child_nodes(node)
    return frozenset(found)


def test_a_name_is_imported_from_where_it_is_defined() -> None:
    """A module that only uses a name hands it to nobody; a package's ``__init__`` may."""
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    handed_on = {
        f"{name} to {module}"
        for module in INNER
        for name in imports(module)
        if (home := module_in(name)) is not None
        and home not in packages
        and name != f"{PACKAGE}.{home}"
        and name.rpartition(".")[2] not in defined_in(home)
    }
    assert not handed_on


def named_by_the_docs() -> set[str]:
    """The modules that README, the pages and the examples name."""
    docs = ROOT.parent / "docs"
    pages = [*docs.glob("*.rst"), *docs.glob("cookbook/*.rst"), *docs.glob("examples/*.*")]
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in [ROOT.parent / "README.md", *pages]
    )
    named = set(re.findall(rf"\b{PACKAGE}(?:\.\w+)+", text))
    for package, names in re.findall(rf"from ({PACKAGE}[.\w]*) import ([\w, ]+)", text):
        named |= {f"{package}.{name.strip()}" for name in names.split(",")}
    return {module for name in named if (module := module_in(name)) is not None}


def test_public_is_what_the_docs_name() -> None:
    """Such a module lists its names in ``__all__``; the others are the library's own."""
    modules = {name for name in INNER if MODULES[name].name != "__init__.py"}
    listing = {name for name in modules if "__all__" in defined_in(name)}
    assert listing == modules & named_by_the_docs()


def test_celery_begins_at_the_settings() -> None:
    """Nothing below knows Celery, kombu or billiard."""
    celery = {"celery", "kombu", "billiard", "vine", "amqp"}
    knowing = {
        module
        for module in INNER
        if rank(module) < FIRST_WITH_CELERY
        and {name.split(".")[0] for name in imports(module)} & celery
    }
    assert not knowing


@pytest.mark.parametrize("module", [one for one in INNER if one.split(".")[0] == "core"])
def test_the_core_is_pure(module: str) -> None:
    """The core has no clock, no input or output, no chance: it is told all that it decides on."""
    # When
    imported = {
        ".".join(parts[:depth])
        for full in imports(module)
        for parts in [full.split(".")]
        for depth in (1, 2)
    }
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in nodes(module)
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
