"""The guards of the stores: nothing deletes, rows are as they were read, sessions."""

from __future__ import annotations

from tests.mutants.mutant import LUA, PYTHON, Mutant, Stages, pair

__all__ = ["STORES"]

_SQL: Stages = (("tests/stores/sql/test_contract.py::TestSqlByAVirtualClock", "-k", "sqlite"),)
_SESSIONS: Stages = (("tests/stores/sql/test_transaction.py", "-k", "sqlite or postgresql"),)
_LOCKS: Stages = (("tests/stores/sql/test_store.py", "-k", "changed_after or locked_record"),)
_DJANGO: Stages = (("tests/django/test_transaction.py",),)
_WRITTEN = "        self._records[key] = (record.pack(), expires_ms)\n"
_REFUSED = (
    "        if isinstance(answer, Lost):\n            self.rollback()\n            return answer\n"
)


def _deletes(what: str, when: str) -> list[Mutant]:
    """A write that deletes the row of some records instead."""
    end = f'        if str(record.state) == "released" and {when}:\n            %s\n'
    deleted = "at.execute(delete(records).where(records.c.record_key == fit(key)))"
    return [
        Mutant(
            f"nothing deletes: {what}",
            "stores/memory.py",
            _WRITTEN,
            _WRITTEN + end % "self._records.pop(key, None)",
            PYTHON,
        ),
        Mutant(
            f"nothing deletes: {what}, in SQL",
            "stores/sql/rows.py",
            "        values: dict[str, Any] = {\n",
            end % f"{deleted}\n            return True" + "        values: dict[str, Any] = {\n",
            _SQL,
            after="def write_record(",
        ),
    ]


_SCHEMA = [
    Mutant(
        "schema: each table and index by itself",
        "stores/sql/schema.py",
        "    for table in tables.sorted_tables:\n"
        "        _twice(partial(table.create, engine, checkfirst=True))\n"
        "        for index in table.indexes:\n"
        "            _twice(partial(index.create, engine, checkfirst=True))\n",
        "    _twice(partial(tables.create_all, engine))\n",
        (("tests/stores/sql/test_store.py", "-k", "made_by_two and sqlite"),),
    ),
]

_NOTHING_DELETES = [
    *_deletes("release", "record.owner and not record.nonce"),
    Mutant(
        "nothing deletes: release",
        "stores/redis/lua/settle.lua",
        "save(with_holder(new, new.process, new.nonce), ttl_ms)\n",
        "save(with_holder(new, new.process, new.nonce), ttl_ms)\n"
        "if new.state == RELEASED then redis.call('DEL', KEYS[1]) end\n",
        LUA,
    ),
    *_deletes("forget", "not record.owner"),
    Mutant(
        "nothing deletes: forget",
        "stores/redis/lua/forget.lua",
        ", tonumber(ARGV[1]))\nreturn {1}",
        ", tonumber(ARGV[1]))\nredis.call('DEL', KEYS[1])\nreturn {1}",
        LUA,
    ),
    *_deletes("a claim that was given up", "record.nonce"),
    Mutant(
        "nothing deletes: a claim that was given up",
        "stores/redis/lua/abandon.lua",
        "save(remembering(record, '', record.nonce), ttl_ms)",
        "redis.call('DEL', KEYS[1])",
        LUA,
    ),
]

_REPLICAS = [
    Mutant(
        "an end that is told again is written again",
        "stores/redis/lua/settle.lua",
        "  redis.call('SET', KEYS[1], raw, 'KEEPTTL')\n  return record.token",
        "  return record.token",
        (("tests/faults/test_failover.py", "-k", "told_again and complete"),),
    ),
    Mutant(
        "an end that is told again is written again, also of a run that gave its key up",
        "stores/redis/lua/settle.lua",
        "    save_slip(slip_key, slip)\n    return gave_up_before",
        "    return gave_up_before",
        (("tests/faults/test_failover.py", "-k", "gave_its_key_up and complete"),),
    ),
]

_ROWS = [
    Mutant(
        "a row is as it was read",
        "stores/sql/flavours.py",
        '(records.c.stamp == bindparam("seen"))',
        '(records.c.stamp != bindparam("seen") + 1)',
        _LOCKS,
    ),
    Mutant(
        "a row is as it was read, in Django",
        "django/rows.py",
        "record_key = %s AND stamp = %s AND",
        "record_key = %s AND stamp <> %s + 1 AND",
        _DJANGO,
    ),
    Mutant(
        "what is written beside a body's transaction is written whole, in Django",
        "django/rows.py",
        "if at is connections[at.alias]:",
        "if True:",
        (("tests/django/test_transaction.py", "-k", "written_whole and postgresql"),),
    ),
    Mutant(
        "only what was read is deleted, in SQL",
        "stores/sql/flavours.py",
        "delete(notes).where(self._is_slip_as_read())",
        'delete(notes).where(notes.c.note_key == bindparam("at"))',
        (("tests/stores/sql/test_store.py", "-k", "only_what_was_read and sqlite"),),
    ),
    Mutant(
        "only what was read is deleted, in Django",
        "django/rows.py",
        'f"DELETE FROM {self._notes} WHERE {as_read}", seen)',
        'f"DELETE FROM {self._notes} WHERE note_key = %s", seen[:1])',
        (("tests/django/test_transaction.py", "-k", "only_what_was_read and sqlite"),),
    ),
    Mutant(
        "a row that was made anew is another one",
        "stores/sql/rows.py",
        'int.from_bytes(os.urandom(8), "big") >> 1',
        "(row.stamp or 0) + 1",
        (("tests/stores/sql/test_store.py", "-k", "made_anew"),),
    ),
    Mutant(
        "a row that was made anew is another one, in Django",
        "django/rows.py",
        'int.from_bytes(os.urandom(8), "big") >> 1',
        "(row.stamp or 0) + 1",
        (("tests/django/test_transaction.py", "-k", "made_anew"),),
    ),
    Mutant(
        "a claim waits for no lock",
        "stores/deciding.py",
        "if locked is not None:\n                        return locked, row",
        "pass",
        _LOCKS,
    ),
]

_TRANSACTIONS = [
    Mutant(
        "session: a run that lost its key commits nothing",
        "stores/sql/transaction.py",
        _REFUSED,
        "",
        _SESSIONS,
    ),
    Mutant(
        "session: a run that lost its key commits nothing, in Django",
        "django/transaction.py",
        _REFUSED,
        "",
        _DJANGO,
    ),
    Mutant(
        "session: the completion is in its transaction",
        "stores/sql/transaction.py",
        "answer = self._store.settle_in(self._connection, key, event)",
        "answer = Recorded(event.record.token)",
        _SESSIONS,
    ),
    Mutant(
        "session: what the body commits is not durable",
        "stores/sql/transaction.py",
        'join_transaction_mode="create_savepoint"',
        'join_transaction_mode="control_fully"',
        _SESSIONS,
    ),
    Mutant(
        "session: the token is read back after a lost COMMIT",
        "stores/sql/transaction.py",
        "        return read_back(key, event, self._look, exc)",
        '        raise NotCommitted("it is not read back") from exc',
        _SESSIONS,
    ),
    Mutant(
        "session: record and slip are written together",
        "stores/sql/rows.py",
        "            with connection.begin_nested():  # it is in the transaction of a body\n"
        "                yield\n",
        "            yield\n",
        _SESSIONS,
    ),
    Mutant(
        "session: a step joins its transaction",
        "run/transaction.py",
        "        answer = self._transaction.step(one, name, packed)",
        "        answer = self._lease.store.step(one, name, packed)",
        (("tests/run/test_transaction.py",), ("tests/django/test_store.py",)),
    ),
]

_WIRE = (("tests/stores/redis/test_wire.py",),)
_OUTAGE = (("tests/stores/test_outage.py", "-m", "unit"),)
_OUTAGES = (("tests/stores/test_outage.py",),)
_AWAY = [
    Mutant(
        "cluster: where a slot has moved to is remembered",
        "stores/redis/cluster.py",
        "node = self._owners[slot] = (moved",
        "node = (moved",
        (("tests/stores/redis/test_cluster.py",),),
    ),
    Mutant(
        "cluster: a slot that has moved is no slot that is being moved",
        "stores/redis/cluster.py",
        "if isinstance(moved, MovedError):",
        "if False:",
        (("tests/stores/redis/test_cluster.py",),),
    ),
    Mutant(
        "cluster: a slot that is being moved has not moved",
        "stores/redis/cluster.py",
        "if isinstance(moved, MovedError):",
        "if isinstance(moved, AskError):",
        (("tests/stores/redis/test_cluster.py",),),
    ),
    Mutant(
        "one question at a time asks whether the store is back",
        "stores/outage.py",
        "self._turn.acquire(blocking=False))",
        "self._turn.acquire(blocking=False) is not None)",
        _OUTAGE,
    ),
    Mutant(
        "a store that was asked just now is left alone",
        "stores/outage.py",
        "is_rested and ",
        "",
        _OUTAGE,
    ),
    *(
        Mutant(f"an answer shows that {store} is back", path, before, after, _OUTAGES)
        for store, path, before, after in (
            (
                "Redis",
                "stores/redis/wire.py",
                "        self.outage.is_away = False\n        if is_replica:",
                "        if is_replica:",
            ),
            (
                "a database",
                "stores/sql/rows.py",
                "                self.outage.is_away = False\n                return",
                "                return",
            ),
            (
                "Django's database",
                "django/rows.py",
                "                self.outage.is_away = False\n                return",
                "                return",
            ),
        )
    ),
    *(
        Mutant(
            f"{store} that does not answer is away", path, "self.outage.begins()", "pass", _OUTAGES
        )
        for store, path in (
            ("a Redis", "stores/redis/wire.py"),
            ("a database", "stores/sql/rows.py"),
            ("a database of Django's", "django/rows.py"),
        )
    ),
    Mutant(
        "who needs a connection more waits for one",
        "stores/redis/wire.py",
        "            if len(self._made) >= self._most:\n",
        "            if False:\n",
        _WIRE,
    ),
    Mutant(
        "a connection that nobody needs is closed",
        "stores/redis/wire.py",
        "self._idle[0][1] <= before",
        "False",
        _WIRE,
    ),
    Mutant(
        "a connection that was used a moment ago is not closed",
        "stores/redis/wire.py",
        "len(self._made) > _KEPT and self._idle[0][1] <= before",
        "len(self._made) > _KEPT",
        _WIRE,
    ),
    Mutant(
        "a child has a timer of its own",
        "stores/redis/wire.py",
        "self._lock, self._trims = threading.Lock(), False",
        "self._lock = threading.Lock()",
        _WIRE,
    ),
]
_MOVED = [
    *pair(
        "what is newer here stays",
        (
            "        if not (is_older or (record.token == new.token",
            "        if False and (is_older or (record.token == new.token",
        ),
        "put",
        ("if record and not (record.token < new.token", "if record and not (true"),
    ),
]
_REWOUND = [
    *pair(
        "rewind: only what the person has seen",
        ("record is None or record.token != token or", "record is None or"),
        "rewind",
        ("record.token ~= tonumber(ARGV[1])", "false"),
    ),
    *pair(
        "rewind: what is being undone is left",
        (" or record.state is State.COMPENSATING:", ":", "def rewind("),
        "rewind",
        (" or record.state == COMPENSATING then", " then"),
    ),
    *pair(
        "rewind: what is held is left",
        ("    if now_us // 1000 < record.until_ms:", "    if False:", "def rewind("),
        "rewind",
        ("math.floor(now / 1000) < record.until_ms", "false"),
    ),
    *pair(
        "rewind: a late run is refused",
        ("token=max(record.token + 1, now_us)", "token=record.token", "def rewind("),
        "rewind",
        ("math.max(record.token + 1, now)", "record.token"),
    ),
    *pair(
        "rewind: its copies run as after a forget",
        ('        owner=b"",', "", "def rewind("),
        "rewind",
        ("left.owner = ''", ""),
    ),
    *pair(
        "rewind: who began it stays said",
        ("    if record.owner:\n", "    if False:\n", "def rewind("),
        "rewind",
        ("if #record.owner > 0 then raw", "if false then raw"),
    ),
    Mutant(
        "rewind: later steps go",
        "stores/deciding.py",
        "for name in steps.keys() & set(kept):",
        "for name in steps:",
        PYTHON,
    ),
    Mutant(
        "rewind: later steps go",
        "stores/redis/lua/rewind.lua",
        "if not kept[name] then",
        "if false then",
        LUA,
    ),
]
_UNKNOWN = [
    Mutant(
        "a claim that is told of an unknown outcome lists it",
        "stores/redis/store.py",
        "                if isinstance(verdict, Unknown):\n",
        "                if False:\n",
        LUA,
    ),
    Mutant(
        "a run that leaves its outcome unknown lists it",
        "stores/redis/store.py",
        "        if event.record.state is State.UNKNOWN and isinstance(told, Recorded):\n",
        "        if False:\n",
        LUA,
    ),
    Mutant(
        "a listed record is asked whether it is unknown still",
        "stores/redis/lists.py",
        "if record is None or record.state not in states:",
        "if record is None:",
        LUA,
    ),
    Mutant(
        "an entry is of one run: unknown again later is another",
        "stores/redis/lists.py",
        'f"{token} {key}"',
        'f"0 {key}"',
        (("tests/stores/redis/test_lists.py",),),
    ),
    Mutant(
        "the end of a run takes no other run from the list",
        "stores/redis/journal.py",
        """[f"+{token} {key}" for key, token in runs.begun]
        changes += [f"-{token} {key}" """.rstrip(),
        """[f"+0 {key}" for key, token in runs.begun]
        changes += [f"-0 {key}" """.rstrip(),
        LUA,
    ),
    Mutant(
        "what has ended is taken from the list",
        "stores/redis/lua/journal.lua",
        "and now_ms or 0",
        "and now_ms or now_ms",
        (("tests/stores/redis/test_lists.py",),),
    ),
]
STORES: list[Mutant] = [
    *_NOTHING_DELETES,
    *_REPLICAS,
    *_ROWS,
    *_SCHEMA,
    *_TRANSACTIONS,
    *_AWAY,
    *_MOVED,
    *_REWOUND,
    *_UNKNOWN,
]
