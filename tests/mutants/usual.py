"""The guards of what is in front of two scripts: which case is the usual one."""

from __future__ import annotations

from tests.mutants.mutant import LUA, Mutant

__all__ = ["USUAL"]

_ZEROS = r"'\0\0\0\0\0\0\0\0'"


def _claim(guard: str, old: str, new: str) -> Mutant:
    return Mutant(f"usual claim: {guard}", "stores/redis/lua/claim.usual.lua", old, new, LUA)


def _settle(guard: str, old: str, new: str) -> Mutant:
    return Mutant(f"usual end: {guard}", "stores/redis/lua/settle.usual.lua", old, new, LUA)


USUAL: list[Mutant] = [
    _claim("nothing is known of the key", ", 'PX', ARGV[4], 'NX')", ", 'PX', ARGV[4])"),
    _claim(
        "nor of the owner's answer",
        " and not (KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1)",
        "",
    ),
    _claim(
        "not one that only compensates",
        "if asked % 8 < 4 and asked < 128 and (",
        "if asked < 128 and (",
    ),
    _claim(
        "not where only the newest waits",
        "if asked % 8 < 4 and asked < 128 and (",
        "if asked % 8 < 4 and (",
    ),
    Mutant(
        "usual claim: in time",
        "stores/redis/lua/claim.usual.lua",
        "(deadline_ms == 0 or now_ms < deadline_ms)",
        "true",
        (("tests/stores/redis/test_wire.py",),),
    ),
    Mutant(
        "usual claim: in time, and not in its deadline's millisecond",
        "stores/redis/lua/claim.usual.lua",
        "now_ms < deadline_ms",
        "now_ms <= deadline_ms",
        (("tests/stores/redis/test_wire.py",),),
    ),
    _claim("which succeeded", "byte(raw, 2) == 4", "true"),
    _claim(
        "of another call",
        "sub(raw, 25, owner_end) ~= sub(ARGV[1], 25, 25 + byte(ARGV[1], 25))",
        "true",
    ),
    _claim("that no claim was given up for", "byte(raw, nonce_at) == 0", "true"),
    _claim(
        "for as long as copies may come",
        "redis.call('PTTL', KEYS[1]) < struct.unpack('>I8', ARGV[3], 42)",
        "false",
    ),
    _claim("unchecked", "asked % 4 == 0", "asked % 4 < 2"),
    _claim("without callbacks", "asked % 4 == 0", "asked % 2 == 0"),
    _settle("a record of this version", r"sub(raw, 1, 3) == '\1\1\0'", r"sub(raw, 2, 3) == '\1\0'"),
    _settle(
        "of a run",
        r"sub(raw, 1, 3) == '\1\1\0'",
        r"sub(raw, 1, 1) == '\1' and sub(raw, 3, 3) == '\0'",
    ),
    _settle("that has no steps", r"sub(raw, 1, 3) == '\1\1\0'", r"sub(raw, 1, 2) == '\1\1'"),
    _settle(
        "which succeeded",
        r"sub(ARGV[1], 1, 3) == '\1\4\0'",
        r"sub(ARGV[1], 1, 1) == '\1' and sub(ARGV[1], 3, 3) == '\0'",
    ),
    _settle(
        "and claims no steps",
        r"sub(ARGV[1], 1, 3) == '\1\4\0'",
        r"sub(ARGV[1], 1, 2) == '\1\4'",
    ),
    _settle(
        "the token", "sub(raw, 4, 12) == sub(ARGV[1], 4, 12)", "byte(raw, 4) == byte(ARGV[1], 4)"
    ),
    _settle(
        "the interruptions",
        "sub(raw, 4, 12) == sub(ARGV[1], 4, 12)",
        "sub(raw, 5, 12) == sub(ARGV[1], 5, 12)",
    ),
    _settle("no instant", f"sub(ARGV[1], 13, 20) == {_ZEROS}", "true"),
    _settle("no delivery lease", "ARGV[2] == '0'", "true"),
    _settle("a lease that is an instant", "byte(raw, 13) == 0", "true"),
    _settle("a lease that is not too far", "byte(raw, 14) < 32", "true"),
    _settle("no slip to write", " and not ARGV[4]", ""),
    _settle(
        "no answer before it",
        "  and not (KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1)\n",
        "",
    ),
    _settle("no claims that were given up", " and nonce_length <= 8", ""),
    _settle("fields that are whole", "and at < #raw and at + 1", "and at + 1"),
    _settle(
        "a label that is whole",
        " and at + 1 + byte(raw, at) * 256 + byte(raw, at + 1) <= #raw then",
        " then",
    ),
]
