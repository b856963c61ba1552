"""Where an extra is not installed, each module works without it, or says what to install."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "celery_idempotent"
#: Modules, and packages with all that is in them, that an extra brings.
NEED = {
    "django",
    "fencing",
    "ops.flower",
    "ops.metrics",
    "ops.tracing",
    "outbox.publishing",
    "outbox.rows",
    "outbox.schema",
    "stores.sql",
}

#: Hides whatever the library's own needs don't bring, then imports each module of it by itself.
#: Only a test run imports what needs pytest, so that may stay.
PROGRAM = """
import importlib, importlib.metadata as metadata, json, sys
from packaging.requirements import Requirement

def closure(names):
    found, open_ = set(), list(names)
    while open_:
        wanted = Requirement(open_.pop())
        name = wanted.name.lower().replace("_", "-").replace(".", "-")
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": it}) for it in extras):
                open_.append(text)
    return found

kept = closure([*sys.argv[1:], "pytest"])

def packages(dist):
    # By the files: before 3.11 metadata.packages_distributions() knows only some distributions.
    modules = [file for file in dist.files or () if file.suffix in (".py", ".so")]
    return {file.parts[0].partition(".")[0] for file in modules} - {""}

tops = {True: set(), False: set()}
for dist in metadata.distributions():
    name = dist.metadata["Name"].lower().replace("_", "-").replace(".", "-")
    tops[name in kept] |= packages(dist)

class Hidden:
    def __init__(self):
        self.tops = tops[False] - tops[True] - {"celery_idempotent", "tests"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.tops:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

hidden = Hidden()
sys.meta_path.insert(0, hidden)

answers = {}
for name in json.loads(sys.stdin.read()):
    try:
        importlib.import_module(name)
    except Exception as exc:
        answers[name] = [type(exc).__name__, str(exc)]
    else:
        answers[name] = None
print(json.dumps([sorted(hidden.tops), answers]))
"""


def test_each_module_works_or_names_its_extra() -> None:
    """With nothing but what the package itself needs."""
    # Given
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    needs = declared["options"]["install_requires"].split("\n")[1:]
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    paths = [path.relative_to(ROOT).with_suffix("").parts for path in files]
    modules = [".".join(parts).removesuffix(".__init__") for parts in paths]
    # When
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *needs],
        cwd=ROOT,
        input=json.dumps(modules),
        capture_output=True,
        text=True,
        check=False,
    )
    # Then
    assert done.returncode == 0, done.stderr
    hidden, answers = json.loads(done.stdout.splitlines()[-1])
    assert {"sqlalchemy", "django", "flower", "tornado", "prometheus_client"} <= set(hidden)
    failed = {name: answer for name, answer in answers.items() if answer is not None}
    extras = declared["options.extras_require"]
    silent = {}
    for name, (kind, text) in failed.items():
        named = re.search(r"pip install 'celery-idempotent\[(\w+)\]'", text)
        if kind != "ImportError" or named is None or named[1] not in extras:
            silent[name] = f"{kind}: {text}"
    assert not silent
    # And it is these that need one: were nothing hidden, none would fail
    assert {need for need in NEED if any(_is_in(name, need) for name in failed)} == NEED
    assert [name for name in failed if not any(_is_in(name, need) for need in NEED)] == []


def _is_in(name: str, home: str) -> bool:
    return f"{name}.".startswith(f"{PACKAGE}.{home}.")
