"""What README and documentation print besides Python: commands, and a few marked fragments."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from celery_idempotent.ops.cli import idempotency
from tests.support.printed import blocks, samples

ROOT = Path(__file__).parents[2]
BLOCKS = blocks()
COMMANDS = [
    pytest.param(command, id=f"{block.page}-{command[:60]}")
    for block in BLOCKS
    if block.language == "console"
    for command in block.commands()
]
#: What a page shows and nobody can run: a log line, a record of a session, settings in outline.
FRAGMENTS = 12


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def extras() -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(config["options.extras_require"])


def test_every_block_is_python_that_runs_or_commands_or_a_marked_fragment() -> None:
    """And the fragments are few."""
    # Then
    assert len(samples()) > 40
    assert len(COMMANDS) > 30
    others = [block for block in BLOCKS if block.language != "console"]
    unmarked = [(block.page, block.text[:40]) for block in others if not block.is_fragment]
    assert unmarked == []
    # Raise the number only if a block can't be a command or a sample.
    assert len(others) == FRAGMENTS, [(block.page, block.text[:40]) for block in others]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_command_is_one(command: str) -> None:
    """It, its subcommand and its options are there."""
    # Given
    words = [word for word in shlex.split(command) if "=" not in word or word.startswith("-")]
    # Then
    check_of(words)(words)


def check_of(words: list[str]) -> Any:
    checks: dict[str, Any] = {
        "celery": check_celery,
        "make": check_make,
        "pip": check_pip,
        "python": check_file,
        "pytest": check_sample,
        "curl": lambda _: None,  # tests/system/test_flower_browser.py asks that address
        ".ci/run": check_script,
    }
    return checks[words[0]]


def check_celery(words: list[str]) -> None:
    assert words[1:3] == ["-A", "shop"]
    if words[3] != "idempotency":
        assert words[3] in ("worker", "inspect", "control", "flower")
        return
    command = idempotency.commands[words[4]]
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words[5:]:
        assert not word.startswith("-") or word.partition("=")[0] in known, word


def check_make(words: list[str]) -> None:
    for word in words[1:]:
        assert word.startswith("ARGS") or word in targets(), word


def check_pip(words: list[str]) -> None:
    assert words[1] == "install"
    for extra in re.findall(r"\[(.+)\]", words[-1]):
        assert set(extra.split(",")) <= extras()


def check_file(words: list[str]) -> None:
    if words[1] == "manage.py":
        assert words[2] in ("migrate",)
    elif words[1] == "-m":
        assert (ROOT / words[2].replace(".", "/")).is_dir(), words
    else:
        known = {sample.name for sample in samples()}
        assert words[1] in known or (ROOT / words[1]).exists(), words


def check_sample(words: list[str]) -> None:
    assert words[1].startswith("test_")


def check_script(words: list[str]) -> None:
    assert (ROOT / words[0]).is_file()
