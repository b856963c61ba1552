"""The demo's promises: each can break, and each is looked at on the evidence alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples.demo.acts import ACTS, Act
from examples.demo.bank import Payment, open_bank, pay, payments_of
from examples.demo.ledger import Entry, Ledger
from examples.demo.scene import Evidence

BY_NAME = {act.name: act for act in ACTS}


def good_evidence(act: Act) -> Evidence:
    """What an act shows where all went well: one order, two calls, one charge, one redelivery."""
    order, receipt = f"{act.name}-1", "r1"
    began = Entry("began", pid=7, order=order, gateway_key="k")
    attempts = 3 if act.name == "back-off" else 1
    return Evidence(
        orders=(order, order),
        answers=({"order": order, "receipt": receipt},) * 2,
        total=400,
        entries=(
            Entry("delivered", redelivered=True),
            *(began, replace(began, event="declined")) * (attempts - 1),
            began,
            *(replace(began, event="mailed"),) * (2 if act.name == "cut" else 0),
            replace(began, event="charged", receipt=receipt),
            Entry("summed"),
        ),
    )


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_good_evidence_breaks_nothing(act: Act) -> None:
    """Where all went well no promise counts as broken."""
    assert act.broken(good_evidence(act)) == []


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_each_act_sees_a_second_charge(act: Act) -> None:
    """A second charge of one order breaks every act, whatever the callers were told."""
    # Given
    good = good_evidence(act)
    charge = next(entry for entry in good.entries if entry.event == "charged")
    # When
    broken = act.broken(replace(good, entries=(*good.entries, replace(charge, receipt="r2"))))
    # Then
    assert "each order is charged once" in [promise.says for promise in broken]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
@pytest.mark.parametrize("answer", [None, RuntimeError("no"), {"receipt": "r2"}])
def test_each_act_sees_a_caller_without_its_answer(act: Act, answer: object) -> None:
    """No answer, an error, or another receipt than the ledger's breaks every act."""
    # Given
    good = good_evidence(act)
    if isinstance(answer, dict):
        answer["order"] = good.orders[0]
    # When
    broken = act.broken(replace(good, answers=(good.answers[0], answer)))
    # Then
    assert any("every call is answered" in promise.says for promise in broken)


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_a_fault_that_did_not_take_place_proves_nothing(act: Act) -> None:
    """An act that is about a redelivery is broken where nothing was redelivered."""
    # Given
    good = good_evidence(act)
    # When
    broken = act.broken(replace(good, entries=good.entries[1:]))
    # Then
    assert bool(broken) == (act.fault is not None)


def test_overlapping_bodies_are_seen() -> None:
    """Two bodies of one order at a time are an overlap; in turn, or after a kill, they are not."""
    # Given
    one = Entry("began", worker="a", pid=1, order="o")
    two = Entry("began", worker="b", pid=2, order="o")
    end = replace(one, event="charged")
    killed = Entry("killed", worker="a", pid=9)
    # Then
    assert Evidence(entries=(one, two, end)).overlaps == 1
    assert Evidence(entries=(one, end, two)).overlaps == 0
    assert Evidence(entries=(one, killed, two)).overlaps == 0
    assert Evidence(entries=(one, replace(two, order="p"))).overlaps == 0


def test_the_special_promises_can_break() -> None:
    """Attempts, overlaps, gateway keys and the chord's body are each looked at."""

    def says(act: str, **changes: Any) -> list[str]:
        good = good_evidence(BY_NAME[act])
        return [promise.says for promise in BY_NAME[act].broken(replace(good, **changes))]

    retried = good_evidence(BY_NAME["back-off"]).entries
    assert says("back-off", entries=(retried[0], *retried[3:])) == [
        "the body runs three times, once for each attempt"
    ]
    one = good_evidence(BY_NAME["overrun"]).entries
    other_key = replace(one[1], gateway_key="k2", pid=8)
    assert says("overrun", entries=(*one[:2], other_key, *one[2:])) == [
        "no two bodies run at the same time"
    ]
    kill = good_evidence(BY_NAME["kill"]).entries
    assert says("kill", entries=(kill[0], replace(kill[1], gateway_key="k2"), *kill[1:])) == [
        "every attempt hands the gateway the same key"
    ]
    twice = (*good_evidence(BY_NAME["chord"]).entries, Entry("summed"))
    assert (
        says("chord", entries=twice)
        == says("chord", total=300)
        == ["the chord's body runs once, with every part answered"]
    )


def test_a_step_that_was_repeated_without_need_is_seen() -> None:
    """The cut step is done twice: once less, and nothing was cut; once more, and one was lost."""
    # Given
    act = BY_NAME["cut"]
    good = good_evidence(act)
    mailed = next(entry for entry in good.entries if entry.event == "mailed")
    others = tuple(entry for entry in good.entries if entry.event != "mailed")
    # Then
    for times in (1, 3):
        (broken,) = act.broken(replace(good, entries=(*others, *(mailed,) * times)))
        assert broken.says == "of the steps, only the one that was cut is repeated"


def test_a_payment_under_a_key_is_made_once(tmp_path: Path) -> None:
    """The bank gives the first receipt again; without a key it pays again, and each is counted."""
    # Given
    bank = tmp_path / "bank.db"
    open_bank(bank)
    # When
    receipts = [pay(bank, Payment("plain", "1", receipt), "k") for receipt in ("r1", "r2")]
    receipts += [pay(bank, Payment("plain", "1", receipt)) for receipt in ("r3", "r4")]
    # Then
    assert receipts == ["r1", "r1", "r3", "r4"]
    assert [payment.receipt for payment in payments_of(bank, "plain")] == ["r1", "r3", "r4"]
    assert payments_of(bank, "idempotent") == []


def test_a_half_written_line_is_left_for_later(tmp_path: Path) -> None:
    """A line counts once it is whole: a reader in the middle of a write sees what was before."""
    # Given
    ledger = Ledger(tmp_path / "ledger")
    ledger.write(Entry("charged", order="1"))
    whole = ledger.path.read_bytes()
    # When
    with open(ledger.path, "ab") as file:
        file.write(whole[:10])
    first = ledger.entries()
    with open(ledger.path, "ab") as file:
        file.write(whole[10:])
    # Then
    assert [entry.order for entry in first] == ["1"]
    assert [entry.order for entry in ledger.entries()] == ["1", "1"]
    assert ledger.of("plain") == []
