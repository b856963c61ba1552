"""The header field Idempotency-Key: a string in quotes, as the draft has it, or bare characters."""

from __future__ import annotations

import pytest

from celery_idempotent.http.field import MAX_KEY, BadField, read_field


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"8e03978e-40d5-43dd-bc93-6894a57f9324"', "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        (' \t"a b" ', "a b"),
        (r'"a\"b\\c"', 'a"b\\c'),
        ('"7f3a";a=1;b="x;y"; c;*d=tok/en', "7f3a"),
        ("order:42/charge", "order:42/charge"),
        ('"' + "k" * MAX_KEY + '"', "k" * MAX_KEY),
    ],
)
def test_a_string_and_bare_characters_are_keys(value: str, key: str) -> None:
    """Quotes, escapes and parameters are no part of the key."""
    assert read_field([value]) == key


def test_quotes_make_no_other_key() -> None:
    """A client that begins to send quotes keeps its keys."""
    assert read_field(['"7f3a"']) == read_field(["7f3a"])


def test_no_field_is_no_key() -> None:
    """That a request has none is no error."""
    assert read_field([]) is None


@pytest.mark.parametrize(
    "values",
    [
        [""],
        ['""'],
        ['"  "'],
        ['"7f3a'],
        ['7f3a"'],
        ['"7f3a"x'],
        ['"7f3a", "7f3b"'],
        ["7f3a, 7f3b"],
        ["a b"],
        ["caf\u00e9"],
        ['"caf\u00e9"'],
        ['"a\\b"'],
        ['"a\x00b"'],
        [":AAEC:;"],
        ["x" * (MAX_KEY + 1)],
        ["a", "b"],
        ["a", "a"],
    ],
)
def test_anything_else_is_refused(values: list[str]) -> None:
    """A key that two readers may read in two ways is none."""
    with pytest.raises(BadField):
        read_field(values)
