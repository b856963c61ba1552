"""The guards of reservations: which queued call stops another one, and when that ends."""

from __future__ import annotations

from tests.mutants.mutant import LUA, PYTHON, Mutant, Stages, pair

__all__ = ["RESERVED"]

_CALLS: Stages = (("tests/publishing/test_reserved.py",),)


def _python(guard: str, path: str, old: str, new: str, stages: Stages = _CALLS) -> Mutant:
    return Mutant(f"reserved: {guard}", path, old, new, stages)


def _both(guard: str, python: tuple[str, str], script: str, lua: tuple[str, str]) -> list[Mutant]:
    return pair(f"reserved: {guard}", python, script, lua)


RESERVED: list[Mutant] = [
    *_both(
        "only what is confirmed stops a call",
        ("            and queued.is_confirmed\n", ""),
        "reserve",
        ("queued and queued.is_confirmed and", "queued and"),
    ),
    *_both(
        "not a call whose result is not kept",
        ("            and queued.keeps_result\n", ""),
        "reserve",
        (" and queued.keeps_result and", " and"),
    ),
    *_both(
        "not a call that is over",
        ("            and queued.owner not in ask.over\n", ""),
        "reserve",
        (" and not is_over(queued.owner)\n", "\n"),
    ),
    *_both(
        "not the record's call that is over",
        ("or record.owner in ask.over ", ""),
        "reserve",
        (" or is_over(record.owner)", ""),
    ),
    *_both(
        "not a call that is due later",
        ("            and queued.due_ms <= due_ms\n", ""),
        "reserve",
        ("    and queued.due_ms <= new.due_ms and", "    and"),
    ),
    *_both(
        "not a call that expires sooner",
        (" or 0 < expires_ms <= queued.expires_ms)", " or True)"),
        "reserve",
        ("(queued.expires_ms == 0 or new.expires_ms > 0 and", "(true or"),
    ),
    *_both(
        "a call that never expires needs one that doesn't",
        (" or 0 < expires_ms <= queued", " or expires_ms <= queued"),
        "reserve",
        (" or new.expires_ms > 0 and new.", " or new."),
    ),
    *_both(
        "not a call with other arguments, where they are checked",
        ("return not ask.checked or fingerprint ==", "return True or fingerprint =="),
        "reserve",
        ("return not checked or", "return true or"),
    ),
    *_both(
        "what is only remembered keeps no calls apart",
        ("return not ask.checked or fingerprint ==", "return fingerprint =="),
        "reserve",
        ("return not checked or found", "return found"),
    ),
    *_both(
        "not a run whose lease, and no retry whose time, is over",
        ("return now_ms < record.until_ms and not Label", "return not Label"),
        "reserve",
        ("return now_ms < record.until_ms and label_of", "return label_of"),
    ),
    *_both(
        "not a run that may end without a result",
        (" and not Label.of(record).is_alone", ""),
        "reserve",
        (" and label_of(record)[4] ~= 'alone'", ""),
    ),
    *_both(
        "a call is due by the store's clock",
        ("    due_ms = now_ms + new.due_ms\n", "    due_ms = new.due_ms\n"),
        "reserve",
        ("new.due_ms = now_ms + new.due_ms\n", ""),
    ),
    *_both(
        "only one's own is confirmed",
        ("if queued is None or queued.owner != owner:", "if queued is None:"),
        "confirm",
        ("if not queued or queued.owner ~= ARGV[1] then", "if not queued then"),
    ),
    *_both(
        "only one's own is undone",
        ("if queued and queued.owner == owner else None", "if queued else None"),
        "unreserve",
        ("if queued and queued.owner == ARGV[1] then", "if queued then"),
    ),
    *_both(
        "until its message expires",
        ("left_ms = (queued.expires_ms or queued.due_ms", "left_ms = (queued.due_ms"),
        "confirm",
        ("if until_ms == 0 then until_ms", "if true then until_ms"),
    ),
    *_both(
        "what has expired is not confirmed",
        ("    if left_ms <= 0:\n", "    if False:\n"),
        "confirm",
        ("if left_ms > 0 then", "if true then"),
    ),
    *_both(
        "a grant ends it",
        ("isinstance(verdict, Claimed) or queued.owner ==", "queued.owner =="),
        "claim",
        ("  if reserved and not latest then redis.call('DEL', queued) end\n", ""),
    ),
    *_both(
        "its own delivery ends it",
        (
            "isinstance(verdict, Claimed) or queued.owner == ask.candidate.owner",
            "isinstance(verdict, Claimed)",
        ),
        "claim",
        ("if reserved and reserved.owner == new.owner then redis.call('DEL', queued) end\n", ""),
    ),
    *_both(
        "another's delivery that is not granted leaves it",
        ("isinstance(verdict, Claimed) or queued.owner == ask.candidate.owner", "True"),
        "claim",
        ("if reserved and reserved.owner == new.owner then", "if reserved then"),
    ),
    *_both(
        "a release ends it",
        ("drops_queued=releases and queued is not None)", "drops_queued=False)"),
        "settle",
        ("if queued and new.state == RELEASED then redis.call('DEL', queued) end\n", ""),
    ),
    *_both(
        "to forget ends it",
        (
            "return Write(freed, ttl_ms, drops_queued=queued is not None)",
            "return Write(freed, ttl_ms)",
        ),
        "forget",
        ("local queued = redis.call('DEL', KEYS[3])\n", "local queued = 0\n"),
    ),
    Mutant(
        "reserved: the usual claim ends it",
        "stores/redis/lua/claim.usual.lua",
        "    if asked >= 64 then redis.call('DEL', KEYS[#KEYS]) end\n",
        "",
        LUA,
    ),
    Mutant(
        "reserved: the usual replay is left to who ends it",
        "stores/redis/lua/claim.usual.lua",
        " and asked < 64 then",
        " then",
        LUA,
    ),
    Mutant(
        "reserved: where there is none, a claim writes nothing for it",
        "stores/deciding.py",
        "if write.queued is not None or write.drops_queued:",
        "if write.queued is not None:",
        PYTHON,
    ),
    _python(
        "a publish that fails undoes it",
        "publishing.py",
        "        _told(task, lambda: environment.store.unreserve(key, owner))\n",
        "",
    ),
    _python(
        "it is confirmed after the message was published",
        "publishing.py",
        "    _told(task, lambda: environment.store.confirm(key, owner, ttl_ms))\n",
        "",
    ),
    _python(
        "nobody attaches to a call that was revoked",
        "publishing.py",
        "return shown in READY_STATES and shown != REVOKED",
        "return shown in READY_STATES",
    ),
    _python(
        "nor to one that has failed, though its run still has the key",
        "publishing.py",
        "return shown not in PROPAGATE_STATES",
        "return shown != REVOKED",
    ),
    _python(
        "nobody attaches to a queued call that is over",
        "publishing.py",
        "return shown not in READY_STATES  #",
        "return True  #",
    ),
    _python(
        "a store that goes away afterwards changes nothing",
        "publishing.py",
        '    except StoreError as exc:\n        log.warning("what became',
        '    except ValueError as exc:\n        log.warning("what became',
    ),
    _python(
        "a call in its turn is never checked",
        "publishing.py",
        "call_key.checked and not in_turn)",
        "call_key.checked)",
    ),
    _python(
        "what is part of something else is published",
        "task.py",
        "attaches = not named and not any(map(options.get, _COMPOSED))",
        "attaches = True",
    ),
    _python(
        "what goes on with a delivered call reserves nothing",
        "task.py",
        "or not setup.reserves or again:",
        "or not setup.reserves:",
    ),
    _python(
        "only where duplicates are suppressed",
        "settings.py",
        ' and self.options.mode == "enforce"\n',
        "\n",
    ),
]
