"""A second checkout: the next release of the library, whose records have one more field.

It is made from this one by the changes that such a release would need. Where one of them finds its
place no more, :class:`DoesNotFit` says so: change it as the code was changed.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from celery_idempotent.core.record import VERSION
from tests.support.workers import ROOT

NEXT = VERSION + 1

#: Written by the next release between a record's label and its outcome.
FIELD = b"written by the next release"

_PYTHON_FIELD = '''

def _with_field(record):
    return bytes((len(record.more),)) + record.more + record.outcome


def _rest(version, rest):
    """Outcome and field; the older version has an outcome only."""
    if version < VERSION:
        return rest, b""
    if len(rest) < 1 + rest[0]:
        raise ValueError("cut short")
    return rest[1 + rest[0] :], rest[1 : 1 + rest[0]]
'''

_LUA_PARSE = """
  if string.byte(raw, 1) < VERSION then
    raw = struct.pack('B', VERSION) .. string.sub(raw, 2, outcome_at - 1) .. '\\0'
      .. string.sub(raw, outcome_at)
  end
  if outcome_at > #raw then return false end
  outcome_at = outcome_at + 1 + string.byte(raw, outcome_at)
  if outcome_at > #raw + 1 then return false end
  local done ="""

#: By file: what is looked for, once, as a regular expression; and what takes its place.
_CHANGES: dict[str, list[tuple[str, str]]] = {
    "core/record.py": [
        (rf"VERSION: Final = {VERSION}\n", f"VERSION: Final = {NEXT}\n"),
        (
            r"    is_awaited: bool = False\n",
            f"    is_awaited: bool = False\n    more: bytes = {FIELD!r}\n",
        ),
        (r"is_awaited,\n        \) = self", "is_awaited,\n            _,\n        ) = self"),
        (r"return head \+ label \+ outcome", "return head + label + _with_field(self)"),
        (r"if version != VERSION:", f"if version not in ({VERSION}, VERSION):"),
        (
            r"\n                packed\[outcome_at:\],",
            "\n                _rest(version, packed[outcome_at:])[0],",
        ),
        (
            r"flags & _IS_AWAITED != 0,\n",
            "flags & _IS_AWAITED != 0,\n                _rest(version, packed[outcome_at:])[1],\n",
        ),
        (r"\Z", _PYTHON_FIELD),
    ],
    "core/message.py": [
        (r'"id": task_id, "key": None\}', f'"id": task_id, "key": None, "v": {NEXT}}}')
    ],
    "stores/redis/lua/record.lua": [
        (rf"local VERSION = {VERSION}\n", f"local VERSION = {NEXT}\n"),
        (
            r"or string\.byte\(raw, 1\) ~= VERSION",
            f"or string.byte(raw, 1) ~= {VERSION} and string.byte(raw, 1) ~= VERSION",
        ),
        (r"\n  local done =", _LUA_PARSE),
        (
            r"return record, raw\n",
            "return record, record and record.raw or raw\n",
        ),
    ],
    # A mark would write the older release's record so that its own run can't read it.
    "stores/redis/lua/claim.lua": [
        (
            r"if not is_awaited\(",
            "if string.byte(redis.call('GET', KEYS[1])) == VERSION and not is_awaited(",
        )
    ],
    "stores/redis/lua/forget.lua": [
        (r"pack\('>BI2', 0, 0\)", "pack('>BI2B', 0, 0, 0)"),
    ],
    "stores/redis/lua/resolve.lua": [(r"\.\. ARGV\[2\]", r".. '\0' .. ARGV[2]")],
    "stores/redis/lua/claim.usual.lua": [
        (rf"pack\('>BBBBI8I8', {VERSION}, 1,", f"pack('>BBBBI8I8', {NEXT}, 1,"),
    ],
    "stores/redis/lua/settle.usual.lua": [
        (rf"'\\{VERSION}\\1\\0' and", f"'\\{NEXT}\\1\\0' and"),
        (rf"'\\{VERSION}\\4\\0'", f"'\\{NEXT}\\4\\0'"),
    ],
}


class DoesNotFit(AssertionError):
    """The code has changed where the next release would be made from it."""


def next_release(directory: Path) -> Path:
    """Make the checkout in a directory that is not there yet, and give that.

    Raises:
        DoesNotFit: a change finds its place not at all, or more than once.
    """
    for package in ("celery_idempotent", "tests/support", "benchmarks/playing"):
        no_waste = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, directory / package, ignore=no_waste)
    for package in ("tests", "benchmarks"):
        shutil.copy(ROOT / package / "__init__.py", directory / package / "__init__.py")
    for name, changes in _CHANGES.items():
        path = directory / "celery_idempotent" / name
        text = path.read_text()
        for wanted, change in changes:
            before, *after = re.split(wanted, text)
            if len(after) != 1:
                raise DoesNotFit(f"{name}: {wanted!r} is there {len(after)} times")
            text = before + change + after[0]
        path.write_text(text)
    return directory
