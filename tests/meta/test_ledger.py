"""The ledger of the tests reads on where it was: what it says is what is in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_what_others_write_is_read(ledger: Ledger) -> None:
    """Each entry once, in order, however often it is asked."""
    assert ledger.entries() == []
    for number in range(3):
        Ledger(ledger.path).write("start", number=number)
        assert [entry["number"] for entry in ledger.entries("start")] == list(range(number + 1))


def test_a_line_on_its_way_is_read_once_it_is_there(ledger: Ledger) -> None:
    """It may be written in two parts."""
    # Given
    ledger.write("start")
    with open(ledger.path, "a") as file:
        file.write('{"event": ')
        file.flush()
        # When
        assert ledger.count("start") == 1
        file.write('"end"}\n')
    # Then
    assert [entry["event"] for entry in ledger.entries()] == ["start", "end"]


def test_another_file_is_read_from_its_beginning(ledger: Ledger) -> None:
    """A test may remove the ledger, and what is written then is all there is."""
    # Given
    for _ in range(3):
        ledger.write("start")
    assert ledger.count("start") == 3
    # When
    ledger.path.unlink()
    assert ledger.count("start") == 0
    ledger.write("end")
    # Then
    assert [entry["event"] for entry in ledger.entries()] == ["end"]


def test_an_answer_is_the_askers_own(ledger: Ledger) -> None:
    """What is done to it changes no later one."""
    ledger.write("start")
    ledger.entries()[0]["event"] = "other"
    assert ledger.count("start") == 1
