"""Editors help: they complete the library's names, a task's options and what a body may ask."""

from __future__ import annotations

import typing
from pathlib import Path

import jedi
import pytest

from celery_idempotent import IdempotentTask
from celery_idempotent.core.options import option_names

ROOT = Path(__file__).parents[2]

PUBLIC = """
from celery_idempotent import Idem"""

TESTING = """
from celery_idempotent.testing import de"""

OPTIONS = """
from celery_idempotent import IdempotentTask

class ShopTask(IdempotentTask):
    idempotency_on_"""

METHOD = """
from celery_idempotent import IdempotentTask

class ShopTask(IdempotentTask):
    def run(self, order_id):
        self.idempotency."""

FUNCTION = """
from celery_idempotent import IdempotentTask

@app.task(base=IdempotentTask, bind=True)
def charge(self: IdempotentTask, order_id):
    self.idempotency."""

SIGNATURE = """
from celery_idempotent import IdempotentTask

def call(charge: IdempotentTask[[int], str]):
    charge.s(1).set(idempotency_"""

CONTEXT = {"attempt", "check", "interrupted", "key", "key_for", "session", "step", "token"}


def completed(source: str) -> set[str]:
    """The names that an editor offers at the end of a text."""
    script = jedi.Script(source, project=jedi.Project(ROOT))
    return {found.name for found in script.complete() if not found.name.startswith("_")}


@pytest.mark.long(1)
@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (PUBLIC, {"IdempotencyError", "IdempotencyInProgress", "IdempotentTask"}),
        (TESTING, {"Delivered", "deliver"}),
        (OPTIONS, {"idempotency_on_enqueue", "idempotency_on_running"}),
        (METHOD, CONTEXT),
        (FUNCTION, CONTEXT),
        (SIGNATURE, {"idempotency_key="}),
    ],
    ids=["names", "testing", "options", "method", "function", "signature"],
)
def test_jedi_completes(source: str, wanted: set[str]) -> None:
    """Jedi, which IPython and many editors use, offers every public name that fits."""
    assert wanted <= completed(source)


def test_every_option_has_a_type() -> None:
    """Each option on the class says what it may be: type checkers and editors show it."""
    # When
    types = typing.get_type_hints(IdempotentTask)
    # Then
    untyped = {name for name in option_names() if types.get(name, typing.Any) is typing.Any}
    assert not untyped
