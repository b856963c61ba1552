"""Renders chosen arguments as readable text from which each value, and its type, can be read back.

A value has no quotes where it can't be confused: ``order:42`` is the number, ``order:'42'`` the
string, ``order:A-17`` a string again. If the text that follows a field could be read as part of the
value, the value gets quotes or brackets: with ``{a}-{b}``, ``'x-y'-z`` is not ``x-y-z``. So no two
calls share a text, whatever their values contain.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple

from celery_idempotent.core.binding import Binder
from celery_idempotent.core.canonical import NoForm, field_of_model, is_model, text_of
from celery_idempotent.errors import ConfigurationError

_NUMBER = r"[-+]?(?:0[xX][0-9a-fA-F]+|(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?)"
_WORD = r"(?i:null|none|true|false|[-+]?(?:inf|infinity|nan))"
_BARE = re.compile(rf"(?!(?:{_NUMBER}|{_WORD})\Z)[A-Za-z0-9_.@+/-]+\Z")
_EMPTY = frozenset({"null", "''", "bytes()"})
_CLOSED = "'[{("  # a text that begins with one of these shows where it ends

_ABSENT: Any = object()

#: Makes the error for a reason; it names the task and the option.
Wrong = Callable[[str], ConfigurationError]


class NoKey(Exception):
    """No key can be derived; the reason names the argument, and not yet the task."""


class Field(NamedTuple):
    """One value of a call: an argument, or the value at a dotted path inside of it."""

    name: str
    position: int
    path: tuple[str, ...]

    def read(self, values: Sequence[Any]) -> Any:
        """Return the value, of a pydantic model in its json form.

        Raises NoKey if the path leads nowhere, and :class:`NoForm` for a secret.
        """
        value = values[self.position]
        for step in self.path:
            try:
                # get(), because reading an absent item of a defaultdict would add it.
                found = (
                    value.get(step, _ABSENT)
                    if isinstance(value, Mapping)
                    else (getattr(value, step, _ABSENT))
                )
            except Exception as exc:
                raise NoKey(
                    f"argument {self.name!r} has no value: reading {step!r} raised "
                    f"{type(exc).__name__}"
                ) from exc
            if found is _ABSENT:
                kind = type(value).__qualname__
                raise NoKey(f"argument {self.name!r} is missing: {kind} has no {step!r}")
            if is_model(value):
                form = field_of_model(value, step)
                found = found if form is None else form
            value = found
        return value

    def text(self, values: Sequence[Any]) -> str:
        """Return its canonical text."""
        try:
            return text_of(self.read(values))
        except NoForm as exc:
            raise no_form(self.name, exc) from exc


def no_form(name: str, exc: NoForm) -> NoKey:
    """Return the error for an argument without a canonical text."""
    place = f" at {exc.path}" if exc.path else ""
    return NoKey(f"argument {name!r} has no canonical form{place}: {exc.reason}")


class Template:
    """Alternating literals and fields, which make the text of a call."""

    def __init__(self, literals: Sequence[str], fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self._last = literals[-1]
        # The character that ends each field: "" if none can, None if the text ends there.
        ends: list[str | None] = [
            "" if not literal or literal[0] in _CLOSED else literal[0] for literal in literals[1:-1]
        ]
        self._parts = tuple(zip(literals[:-1], fields, [*ends, None], strict=True))

    def text(
        self, values: Sequence[Any], task: object = None, texts: Sequence[str] | None = None
    ) -> str:
        """Return the text of a call with these bound values; no part of it may be empty.

        ``texts`` are their canonical texts, if they are known already.
        """
        parts: list[str] = []
        for literal, field, end in self._parts:
            text = field.text(values) if texts is None or field.path else texts[field.position]
            if text in _EMPTY:
                raise NoKey(
                    f"argument {field.name!r} is {'None' if text == 'null' else 'empty'}, "
                    "and would make one call of many: where that call is not to be deduplicated, "
                    "let idempotency_key be a function that returns None for it"
                )
            parts.append(literal)
            parts.append(_placed(text, end))
        parts.append(self._last)
        return "".join(parts)


def _placed(text: str, end: str | None) -> str:
    if text[0] == "'":
        bare = text[1:-1]
        if _BARE.match(bare) and (end is None or (end and end not in bare)):
            return bare
        return text
    if end is None or text[0] in _CLOSED:
        return text
    if end and end not in text.partition("(")[0]:
        return text
    return f"({text})"


# -- compiling -------------------------------------------------------------------------------------


def parse_names(names: Sequence[object], binder: Binder, wrong: Wrong) -> tuple[Field, ...]:
    """Parse a tuple of names into fields; ``wrong`` makes the error."""
    fields: list[Field] = []
    for name in names:
        if not isinstance(name, str):
            raise wrong(f"{name!r} is not a name: give the names of arguments as strings")
        if any(field.name == name for field in fields):
            raise wrong(f"{name!r} is named twice")
        fields.append(_field(name, binder, wrong))
    return tuple(fields)


def parse_template(text: str, binder: Binder, wrong: Wrong) -> tuple[list[str], list[Field]]:
    """Parse a template into literals and fields, with one literal more than fields."""
    literals = [""]
    fields: list[Field] = []
    try:
        parts = list(Formatter().parse(text))
    except ValueError as exc:
        reason = f"the template {text!r} can't be read ({exc}); write {{{{ and }}}} for braces"
        raise wrong(reason) from exc
    for literal, name, spec, conversion in parts:
        literals[-1] += literal
        if name is None:
            continue
        if spec or conversion:
            raise wrong(
                f"the field {name!r} of the template {text!r} has a format spec or a conversion: "
                "only names and dotted paths are allowed"
            )
        if not name or name.isdigit():
            raise wrong(
                f"the template {text!r} has a field without a name: name the argument, "
                "as in '{order_id}'"
            )
        fields.append(_field(name, binder, wrong))
        literals.append("")
    return literals, fields


def names_template(fields: Sequence[Field]) -> Template:
    """Return the template for a tuple of names, which renders as ``order_id=42,currency=EUR``."""
    literals = [f"{',' if i else ''}{field.name}=" for i, field in enumerate(fields)]
    return Template([*literals, ""], fields)


def _field(name: str, binder: Binder, wrong: Wrong) -> Field:
    argument, *path = name.split(".")
    for step in path:
        if step.startswith("_"):
            raise wrong(f"{name!r} reaches for {step!r}: a path can't go through a private name")
    if not all(step.isidentifier() for step in (argument, *path)):
        raise wrong(
            f"{name!r} is not the name of an argument, nor a dotted path such as 'order.id'"
        )
    if argument not in binder.index:
        known = ", ".join(binder.names) or "none"
        raise wrong(f"{argument!r} is not a parameter of the task (its parameters: {known})")
    return Field(name, binder.index[argument], tuple(path))
