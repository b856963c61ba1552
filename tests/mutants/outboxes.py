"""The guards of the outbox, and of Django's database."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages

__all__ = ["OUTBOXES"]

_UNIT: Stages = (("tests/outbox/test_outbox.py",),)
_BOTH: Stages = (("tests/outbox/test_rows.py", "-k", "sqlite or driver"),)
_POOLERS: Stages = (("tests/stores/sql/test_poolers.py",),)
_ISOLATION: Stages = (("tests/django/test_isolation.py", "-k", "above"),)

OUTBOXES: list[Mutant] = [
    Mutant(
        "outbox: the broker confirms what it has",
        "outbox/broker.py",
        '"confirm_publish": True',
        '"confirm_publish": False',
        _UNIT,
    ),
    Mutant(
        "outbox: a full queue holds up no other",
        "outbox/broker.py",
        "_Meaning.UNSURE if isinstance(error, broken) else _Meaning.REFUSED",
        "_Meaning.AWAY",
        _UNIT,
    ),
    Mutant(
        "outbox: a connection that breaks costs no row its place",
        "outbox/broker.py",
        "                if is_last:\n",
        "                if True:\n",
        _UNIT,
    ),
    Mutant(
        "outbox: a server that takes no message is away",
        "outbox/broker.py",
        "return _Meaning.REFUSED if of_one else _Meaning.AWAY",
        "return _Meaning.REFUSED",
        _UNIT,
    ),
    Mutant(
        "outbox: a queue that never answers is waited for once a batch",
        "outbox/relay.py",
        "            silent[call.route] = exc\n",
        "",
        _UNIT,
    ),
    Mutant(
        "outbox: what was sent is not sent again where its mark was lost",
        "outbox/relay.py",
        "        self._unsettled.add((row.id, row.task_id))\n",
        "",
        _BOTH,
    ),
    Mutant(
        "outbox: whatever an error says, it can be stored",
        "outbox/waiting.py",
        '.encode(errors="backslashreplace").decode()',
        "",
        _BOTH,
    ),
    Mutant(
        "outbox: no async session",
        "outbox/publishing.py",
        "    _refuse_async(session)\n",
        "",
        _UNIT,
    ),
    Mutant(
        "outbox: no connection that commits by itself",
        "outbox/publishing.py",
        'level != "AUTOCOMMIT" and',
        "",
        _UNIT,
    ),
    Mutant(
        "outbox: nor a driver that does",
        "outbox/publishing.py",
        " and of_driver() is not True",
        "",
        _BOTH,
    ),
    Mutant(
        "outbox: a relay prepares nothing",
        "outbox/rows.py",
        'arguments.update(prepared or {"prepare_threshold": None})',
        "arguments.update(prepared)",
        _POOLERS,
    ),
    Mutant(
        "outbox: a row is due by the database's clock",
        "django/outbox.py",
        "        due=Now(),\n",
        "",
        _BOTH,
    ),
    Mutant(
        "outbox: a batch that is sent keeps nobody from publishing",
        "outbox/rows.py",
        "return self._sending.begin()",
        "return self.engine.begin()",
        (("tests/outbox/test_rows.py", "-k", "keeps_nobody and mysql"),),
    ),
    Mutant(
        "outbox: on MySQL Django's relay leaves rows for another one",
        "django/outbox.py",
        '        if connection.vendor == "mysql":\n',
        "        if False:\n",
        (("tests/outbox/test_rows.py", "-k", "one_relays and django-mysql"),),
    ),
    Mutant(
        "outbox: a call is a child of the task that publishes it",
        "outbox/message.py",
        "            parent.add_trail(result)\n",
        "            pass\n",
        _BOTH,
    ),
    Mutant(
        "outbox: a server without SKIP LOCKED is refused",
        "outbox/rows.py",
        "            self._refuse_without_skip_locked(connection.dialect)\n",
        "",
        (("tests/outbox/test_rows.py", "-k", "pass_over and postgresql"),),
    ),
    Mutant(
        "django: no isolation above read committed",
        "django/rows.py",
        "                if not self._is_checked:\n",
        "                if False:\n",
        _ISOLATION,
    ),
    Mutant(
        "django: nor in the settings, which check reads",
        "django/checks.py",
        "                configured_level(connection)  #",
        "                pass  #",
        _ISOLATION,
    ),
    Mutant(
        "tenants: a call in the outbox is for the tenant that published it",
        "django/outbox.py",
        "    with_schema(call.options)\n",
        "",
        (("tests/system/test_tenants.py", "-k", "apart and django"),),
    ),
    Mutant(
        "tenants: the doctor finds keys that don't name them",
        "ops/doctor/tenants.py",
        "    if mixed:\n",
        "    if False:\n",
        (("tests/ops/test_doctor.py",),),
    ),
    Mutant(
        "in a context: equal calls of one request are several",
        "publishing.py",
        'text = f"{call}|{context.number_of(call)}"',
        "text = call",
        (("tests/publishing/test_publishing.py",),),
    ),
    Mutant(
        "in a context: an id names the arguments",
        "core/keys.py",
        'return f"{namespace}|{_hash(self._joined(texts), _OF_ARGUMENTS).hexdigest()}"',
        'return f"{namespace}|"',
        (("tests/publishing/test_publishing.py",),),
    ),
    Mutant(
        "outbox: a call of a request that is carried out again is one row",
        "django/outbox.py",
        "ignore_conflicts=call.is_of_request",
        "ignore_conflicts=False",
        _BOTH,
    ),
    Mutant(
        "django: a body that closed its connection is not run again",
        "django/transaction.py",
        "        if self._connection.closed_in_transaction:\n",
        "        if False:\n",
        (("tests/django/test_transaction.py", "-k", "closed"),),
    ),
    Mutant(
        "tenants: their users share no answer",
        "django/middleware.py",
        "identity_of_tenant(identity), key)",
        "identity, key)",
        (("tests/django/test_tenants.py",),),
    ),
]
