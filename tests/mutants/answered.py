"""The guards of answers: what a call was answered, it stays answered, whoever has its key since."""

from __future__ import annotations

from tests.mutants.mutant import PYTHON, Mutant, Stages, pair

__all__ = ["ANSWERED"]

_SLIP = "core/slip.py"
_SEAM: Stages = (("tests/delivery/test_seam.py",),)
_GUARDS: Stages = (("tests/delivery/test_guard.py",), *_SEAM)
_SQL: Stages = (("tests/stores/sql/test_contract.py::TestSqlByAVirtualClock", "-k", "sqlite"),)


def _copies() -> list[Mutant]:
    mutants = pair(
        "answered: a leftover copy runs nothing where there is no record",
        ("if answer is not None and is_copy:", "if False:", "    if record is None:\n"),
        "claim",
        ("if is_copy then return answer_again() end\n  return take(0)", "return take(0)"),
    )
    mutants += pair(
        "answered: a duplicate whose record ends before its copies leaves a slip",
        ("(it.left_ms < ttl_ms or (", "(("),
        "claim",
        ("(ends_too_soon(KEYS[1]) or slip and", "(slip and"),
    )
    mutants += pair(
        "answered: and none where the record lives on",
        ("(it.left_ms < ttl_ms or (", "(True or ("),
        "claim",
        ("(ends_too_soon(KEYS[1]) or slip and", "(true or slip and"),
    )
    mutants += pair(
        "answered: a run that gave its key up, and lost its lease, finds its call's answer",
        (" or (slip is not None and slip.is_run)):", "):"),
        "claim",
        (" or slip and not without_run()) then", ") then"),
    )
    mutants += pair(
        "answered: and it tells nothing beside an error that a copy tells",
        (
            "return None if self.slip is not None and self.slip.is_run else self.slip",
            "return self.slip",
        ),
        "claim",
        ("  local slip = without_run()\n  local sending", "  local sending"),
    )
    mutants += pair(
        "answered: an owner's copy leaves a slip where the record ends before its copies",
        ("if ask.slip_key and record.outcome and it.left_ms", "if False and it.left_ms"),
        "claim",
        ("if slip_key and #outcome > 0 and", "if false and"),
    )
    mutants += pair(
        "answered: a copy keeps the slip for its own copies",
        ("if it.slip is not None and it.slip_left_ms < ttl_ms and", "if False and"),
        "claim",
        ("if is_copy and ends_too_soon(slip_key) then", "if false then"),
    )
    mutants += pair(
        "answered: a call that is published anew does not",
        ("it.slip_left_ms < ttl_ms and it.is_copy:", "it.slip.answered:"),
        "claim",
        ("if is_copy and ends_too_soon(slip_key) then", "if told and ends_too_soon(slip_key) then"),
    )
    mutants += pair(
        "answered: a copy runs nothing where its run was ended, and its call answered",
        ("if told is not None:  # the worker", "if False:  # the worker"),
        "claim",
        (
            "  if mine and is_copy then return answer_again() end\n  if mine and new",
            "  if mine and new",
        ),
    )
    mutants += pair(
        "answered: nor does the run that comes to its end first answer",
        (
            "or (_is_ended(record, slip) and (",
            "or (False and (",
        ),
        "settle",
        ("or is_ended() and (new.state ~= RUNNING or left))", "or false)"),
    )
    mutants += pair(
        "answered: nor where it is cut off, and fails by that",
        (
            "new.state is not State.RUNNING or event.slip is not None",
            "new.state is not State.RUNNING",
        ),
        "settle",
        ("is_ended() and (new.state ~= RUNNING or left)", "is_ended() and new.state ~= RUNNING"),
    )
    mutants += pair(
        "answered: who is cut off holds its key for no callbacks",
        (
            "delay_ms = 0 if new.state is State.RUNNING else event.delay_ms",
            "delay_ms = event.delay_ms",
        ),
        "settle",
        ("(new.state == RUNNING and 0 or delay_ms)", "delay_ms"),
    )
    mutants += pair(
        "answered: who is cut off after its copy has answered fails nobody",
        (
            "if answered and slip is not None:\n                return Recorded(record.token",
            "if False:\n                return Recorded(record.token",
        ),
        "settle",
        ("if left and slip and (told or now_ms < slip.sending_ms) then", "if false then"),
    )
    mutants += pair(
        "answered: who is cut off after it gave its key up answers its own call",
        ("if new.state is State.RUNNING and event.slip is None:", "if new.state is State.RUNNING:"),
        "settle",
        ("if new.state == RUNNING and not left then", "if new.state == RUNNING then"),
    )
    mutants += pair(
        "answered: nor where its retry was recorded before",
        ("if told is not None:", "if False:", "State.RETRYING:\n        if mine and new.retries"),
        "claim",
        (
            "  if mine and is_copy then return answer_again() end\n  if mine or now_ms",
            "  if mine or now_ms",
        ),
    )
    mutants += pair(
        "answered: it keeps that answer where nobody knows how its run ended",
        ("if told is not None and told.released:", "if False:"),
        "claim",
        ("if mine and is_copy and told.released then return answer_again() end\n", ""),
    )
    mutants += pair(
        "answered: copies wait while its callbacks are sent",
        ("        if event.sends_ms:\n", "        if False:\n"),
        "note",
        ("if ARGV[4] then", "if false then"),
    )
    mutants += pair(
        "answered: a leftover copy runs nothing where it gave its key up",
        ("if mine and is_copy and answer is not None:", "if False:"),
        "claim",
        (
            "  if mine and is_copy then return answer_again() end\n  if mine and #record",
            "  if mine and #record",
        ),
    )
    mutants += pair(
        "answered: a leftover copy runs nothing where another gave the key up",
        ("if mine or not is_copy:", "if True:"),
        "claim",
        ("if mine or not is_copy then return take", "do return take"),
    )
    mutants += pair(
        "answered: whoever has the key",
        ("if answer is not None and (is_copy or", "if False and (is_copy or"),
        "claim",
        ("if told and (is_copy or", "if false and (is_copy or"),
    )
    mutants += pair(
        "answered: a failed call that is published anew is a duplicate",
        ("(is_copy or answer.outcome)", "is_copy"),
        "claim",
        ("(is_copy or #told.outcome > 0)", "is_copy"),
    )
    mutants += pair(
        "answered: who was refused gets nobody's result",
        ("not (answer.succeeded and is_kept)", "not is_kept"),
        "claim",
        ("not (told.succeeded and is_kept)", "not is_kept"),
    )
    mutants += pair(
        "answered: the call's own answer comes before its record",
        ("if answer is not None and is_copy and answer.outcome:", "if False:"),
        "claim",
        ("if is_copy and #told.outcome > 0 then", "if false then"),
    )
    mutants += pair(
        "answered: a lease on callbacks is no answer",
        ("if slip is None or not slip.answered:", "if slip is None:", "def answer("),
        "claim",
        ("local told = slip and slip.answered\n", "local told = slip\n"),
    )
    mutants += pair(
        "answered: what was answered after forget counts",
        (" and slip.token < record.token", ""),
        "claim",
        (" and slip.token < record.token", ""),
    )
    mutants += pair(
        "answered: what was forgotten counts no more",
        (" and not record.owner and slip.token < record.token", " and False"),
        "claim",
        ("#record.owner == 0 and slip.token < record.token", "false"),
    )
    mutants += pair(
        "answered: a resolution for a rerun lets its owner run",
        ('resolved = resolved._replace(owner=b"")', "pass"),
        "resolve",
        ("record.owner = ''", ""),
    )
    return mutants + pair(
        "answered: a claim begins anew",
        ("slip_ttl_ms = KEEP_TTL if slip is None else 0", "slip_ttl_ms = KEEP_TTL"),
        "claim",
        ("  elseif slip then\n    redis.call('DEL', slip_key)\n", ""),
    )


def _attempts() -> list[Mutant]:
    mutants = pair(
        "no copy: published anew",
        ("message.publication != self.publication or (", "("),
        "claim",
        (" and told.publication == own.publication", ""),
        _SLIP,
    )
    mutants += pair(
        "no copy: more retries",
        ("message.retries > self.retries or ", ""),
        "claim",
        ("own.retries <= told.retries and ", ""),
        _SLIP,
    )
    mutants += pair(
        "no copy: dead-lettered since",
        (" or message.deaths > self.deaths", ""),
        "claim",
        (" and own.deaths <= told.deaths", ""),
        _SLIP,
    )
    mutants += pair(
        "a copy: a retry of an attempt that was cut off, once another has its outcome",
        ("not (self.outcome or self.succeeded)\n            and ", ""),
        "claim",
        ("told.succeeded or #told.outcome > 0\n    or ", ""),
        _SLIP,
    )
    return mutants + pair(
        "no copy: nothing says that it is one",
        (
            "not (ask.is_new or answer.is_older_than(ask.message))",
            "not answer.is_older_than(ask.message)",
        ),
        "claim",
        (" and not is_new", ""),
    )


def _waiters() -> list[Mutant]:
    mutants = pair(
        "awaited: a failure is shared whoever has the key since",
        ("if awaited is not None and awaited.answered and awaited.outcome and", "if False and"),
        "claim",
        ("if awaited and awaited.answered and #awaited.outcome > 0 and", "if false and"),
    )
    mutants += pair(
        "awaited: a result that the key has counts more than an older failure",
        ("awaited.outcome and not is_kept:", "awaited.outcome:"),
        "claim",
        ("#awaited.outcome > 0 and not is_kept then", "#awaited.outcome > 0 then"),
    )
    return (
        mutants
        + pair(
            "a late end where another run's answer is known",
            ("lost = _answered_since(new, slip)", "lost = None"),
            "settle",
            ("answered_since(slip, ARGV[1], new.token)", "nil"),
        )
        + pair(
            "a copy that a late run leaves finds its answer",
            (
                "    return Write(None, slip=slip, slip_ttl_ms=ttl_ms)",
                "    return Write(None)",
                "if event.slip is None else max(",
            ),
            "settle",
            ("  save_slip(slip_key, slip, ttl)\n", ""),
        )
        + pair(
            "a copy that a retried run leaves finds its answer",
            ("True), slip and _kept(slip, event)", "True), None", "There is nothing left to retry"),
            "settle",
            ("    keep_slip()\n    return {3, record.token}", "    return {3, record.token}"),
        )
        + pair(
            "a copy that a zombie leaves finds its answer",
            ("return Lost(record, True), _kept(slip, event)", "return Lost(record, True), None"),
            "settle",
            ("    keep_slip()\n    return {4, raw}", "    return {4, raw}"),
        )
        + pair(
            "an end is known though the copy that answers dies",
            ("if event.slip is not None and not slip.answered:", "if False:"),
            "settle",
            ("if left and not told then", "if false then"),
        )
        + pair(
            "an answer is known for as long as its run lives",
            ("Write(None, slip=slip, slip_ttl_ms=keep_ms)", "None"),
            "renew",
            ("    save_slip(KEYS[3], slip, tonumber(ARGV[3]))\n", ""),
        )
        + pair(
            "a run hears that a copy has answered its call",
            (
                "(slip.answered or now_us // 1000 < slip.sending_ms)",
                "now_us // 1000 < slip.sending_ms",
            ),
            "renew",
            ("slip.answered or math.floor", "math.floor"),
        )
        + pair(
            "what a copy has told stands",
            ("(self.sending_ms or not self.outcome)", "not self.outcome"),
            "record",
            ("(slip.sending_ms > 0 or #slip.outcome == 0)", "#slip.outcome == 0"),
            "core/slip.py",
        )
        + pair(
            "a late renewal where another run's answer is known",
            ("lost = _answered_since(held, slip)", "lost = None", "def renew("),
            "renew",
            ("answered_since(load_slip(KEYS[3]), ARGV[1], held.token)", "nil"),
        )
        + pair(
            "a late step where another run's answer is known",
            ("lost = _answered_since(held, slip)", "lost = None", "def step("),
            "step",
            ("answered_since(load_slip(KEYS[3]), ARGV[1], held.token)", "nil"),
        )
        + pair(
            "nothing is retried of what was answered as unknown",
            ("(record.state is State.UNKNOWN and answered) or", "False or"),
            "settle",
            ("record.state == UNKNOWN and (told or now_ms < slip.sending_ms) or", "false or"),
        )
        + pair(
            "after an outage the runs renew first",
            ("now_ms < ask.patient_until_ms", "False"),
            "claim",
            ("now_ms < patient_until_ms", "false"),
        )
        + pair(
            "after an outage a lease that was ended has ended",
            ("bool(record.nonce) and now_ms < ask", "now_ms < ask"),
            "claim",
            ("#record.nonce > 0 and now_ms < patient", "now_ms < patient"),
        )
    )


def _sending() -> list[Mutant]:
    mutants = pair(
        "sending: one copy of a duplicate at a time",
        ("not noted and _is_being_sent(slip, ask, now_ms):", "False:"),
        "claim",
        ("if not noted and is_being_sent() then", "if false then"),
    )
    mutants += pair(
        "told: a copy waits for it, whatever hangs on it",
        (
            "if slip is not None and not noted and _is",
            "if slip is not None and ask.callbacks and not noted and _is",
        ),
        "claim",
        (
            "if not noted and is_being_sent() then",
            "if callbacks and not noted and is_being_sent() then",
        ),
    )
    mutants += pair(
        "told: a shared outcome is kept for the copies",
        ("    if outcome:\n        told =", "    if False:\n        told ="),
        "claim",
        ("  if outcome and slip_key then", "  if false then"),
    )
    mutants += pair(
        "told: a shared outcome is kept beside what was known",
        ("slip = told if slip is None else slip.merged(told)", "slip = told"),
        "claim",
        ("    if slip then left = merged(slip, left) end\n", ""),
    )
    mutants += pair(
        "told: a verdict that nothing keeps is told alone",
        (
            "        write = _with_sending(it, write, slip)\n    return verdict, None if",
            "        pass\n    return verdict, None if",
        ),
        "claim",
        ("    send_alone(left, left and ttl_ms)\n", ""),
    )
    mutants += pair(
        "told: without callbacks, too",
        (
            "if not it.noted if ask.callbacks else not (outcome or is_told):",
            "if not it.noted and ask.callbacks:",
        ),
        "claim",
        ("callbacks and not noted or not callbacks and not is_told", "callbacks and not noted"),
    )
    mutants += pair(
        "told: a refusal",
        ("if not mine and now_ms >= ask.refused_from_ms:", "if False:"),
        "claim",
        ("if not mine and now_ms >= refused_from_ms then", "if false then"),
    )
    mutants += pair(
        "told: a refusal, of another call's run only",
        ("if not mine and now_ms >= ask.refused", "if now_ms >= ask.refused"),
        "claim",
        ("if not mine and now_ms >= refused", "if now_ms >= refused"),
    )
    mutants += pair(
        "told: once it is, nobody waits for it",
        ("else not (outcome or is_told):", "else not outcome:"),
        "claim",
        ("is_told = nil, slip and slip.answered or false", "is_told = nil, false"),
    )
    mutants += pair(
        "told: an end that asks again hears that its copy answers",
        (
            "return is_telling or (slip.answered and slip.token != event.record.token)",
            "return False",
        ),
        "settle",
        ("  return is_telling or told and slip.token ~= new.token\n", "  return false\n"),
    )
    mutants += pair(
        "told: its copy is about to answer",
        ("return is_telling or (slip", "return (slip"),
        "settle",
        ("return is_telling or told", "return told"),
    )
    mutants += pair(
        "told: its own delivery lease is no copy's",
        (" and slip.holder != own\n", "\n"),
        "settle",
        (" and slip.holder ~= (left and left.holder or '')", ""),
    )
    mutants += pair(
        "sending: under a lease",
        (
            "return verdict, _with_sending(it, Write(None), it.lasting_slip)",
            "return verdict, None",
        ),
        "claim",
        ("  if not noted and callbacks and slip_key then send_alone() end\n", ""),
    )
    mutants += pair(
        "sending: that ends",
        ("    if now_ms >= slip.sending_ms:\n", "    if not slip.sending_ms:\n"),
        "claim",
        ("slip and now_ms < slip.sending_ms", "slip and slip.sending_ms > 0"),
    )
    mutants += pair(
        "sending: the same claim again goes on",
        (
            "return not ask.candidate.nonce or slip.holder[:8] != ask.candidate.nonce.ljust",
            "return True or bytes.ljust",
        ),
        "claim",
        ("string.sub(slip.holder, 1, 8) ~= padded(new.nonce))", "true)"),
    )
    mutants += pair(
        "sending: what was not sent is sent by the next",
        ("elif slip is not None and slip.sending_ms:", "elif False:"),
        "note",
        ("elseif slip and slip.sending_ms > 0 then", "elseif false then"),
    )
    mutants += pair(
        "sending: an answer stays where its callbacks were not sent",
        (
            "        if slip.answered:\n            write",
            "        if False:\n            write",
            "elif slip",
        ),
        "note",
        ("  if slip.answered then\n    slip.sending_ms", "  if false then\n    slip.sending_ms"),
    )
    mutants += pair(
        "sending: a dead process ends",
        (
            "if slip is not None and slip.holder[8:] == process and",
            "if False and",
            "def end_lease(",
        ),
        "end_lease",
        ("if slip and string.sub(slip.holder, 9) == ARGV[2] and", "if false and"),
    )
    mutants += pair(
        "sending: only by that process",
        ("slip.holder[8:] == process and ", "", "def end_lease("),
        "end_lease",
        ("string.sub(slip.holder, 9) == ARGV[2] and ", ""),
    )
    mutants += pair(
        "sent: other callbacks of a task id are others",
        (
            "return self.all_sent or digest in self.digest_list()",
            "return self.all_sent or bool(self.digests)",
        ),
        "record",
        ("if string.sub(slip.digests, at, at + 7) == digest then", "do"),
        _SLIP,
    )
    mutants += pair(
        "sent: what went out before is known besides",
        ("digests = [*self.digest_list()]", "digests: list[bytes] = []"),
        "record",
        ("local digests, known = slip.digests, {}", "local digests, known = '', {}"),
        _SLIP,
    )
    mutants += pair(
        "sent: an older release's note is of all callbacks",
        ("return self.all_sent or digest in", "return digest in"),
        "record",
        ("  if slip.all_sent then return true end\n", ""),
        _SLIP,
    )
    return mutants + pair(
        "note: the first answer stays",
        ("if not self.answered or (new.outcome and", "if True or (new.outcome and"),
        "record",
        ("if not slip.answered or (#new.outcome", "if true or (#new.outcome"),
        _SLIP,
    )


def _runs() -> list[Mutant]:
    mutants = pair(
        "answered: a run whose copy answers does not",
        (
            "answered = record is not None and (\n",
            "answered = False and record is not None and (\n",
        ),
        "settle",
        ("local answered = slip and record", "local answered = false and record"),
    )
    mutants += pair(
        "answered: while its copy is about to answer",
        ("(slip.answered or now_ms < slip.sending_ms)", "slip.answered"),
        "settle",
        ("(slip.answered or now_ms < slip.sending_ms)", "slip.answered"),
    )
    mutants += pair(
        "answered: only while its outcome is unknown",
        (
            "(answered and (record.state is State.UNKNOWN or record.state is State.COMPENSATING))",
            "answered",
        ),
        "settle",
        (
            "slip and record and ((record.state == UNKNOWN or record.state == COMPENSATING)\n",
            "slip and record and (true\n",
        ),
    )
    mutants += pair(
        "answered: also while what its run did is undone",
        (
            "(record.state is State.UNKNOWN or record.state is State.COMPENSATING))\n",
            "(record.state is State.UNKNOWN))\n",
        ),
        "settle",
        (
            "(record.state == UNKNOWN or record.state == COMPENSATING)\n",
            "record.state == UNKNOWN\n",
        ),
    )
    mutants += pair(
        "answered: what is undone is undone under a lease all the same",
        (
            "until_ms=now_ms + delay_ms if timed else 0",
            "until_ms=now_ms + delay_ms if timed and not answered else 0",
        ),
        "settle",
        ("if timed then until_ms", "if timed and not answered then until_ms"),
    )
    mutants += pair(
        "answered: who tells Unknown tells it alone",
        ("if it.ask.slip_key:\n        # While", "if False:\n        # While"),
        "claim",
        ("  if slip_key then send_alone() end\n", ""),
    )
    mutants += pair(
        "answered: a zombie is told",
        ("Lost(record, True), _kept", "Lost(record), _kept"),
        "settle",
        ("return {4, raw}", "return {2, raw}"),
    )
    mutants += pair(
        "answered: the lost answer of an end is known after a takeover",
        ("if slip is not None and slip.answered and slip.token == new.token:", "if False:"),
        "settle",
        ("if slip.token ~= new.token then", "if true then"),
    )
    mutants += pair(
        "answered: another run's end is not one's own",
        ("slip.answered and slip.token == new.token", "slip.answered"),
        "settle",
        ("if slip.token ~= new.token then", "if false then"),
    )
    mutants += pair(
        "answered: a run sends its callbacks alone, whoever has its key",
        (
            "sending_ms = now_ms + event.delay_ms if event.delay_ms else event.slip",
            "sending_ms = event.slip",
        ),
        "settle",
        ("  if delay_ms > 0 then left.sending_ms = now_ms + delay_ms end\n", ""),
    )
    return mutants + [
        Mutant(
            "newer: a run whose key a newer release has is lost",
            "core/record.py",
            "if head.token != token:",
            "if False:",
            PYTHON,
        ),
        Mutant(
            "newer: a run whose key a newer release has is lost",
            "stores/redis/lua/record.lua",
            "return #raw > 24 and string.byte(raw, 1) > VERSION",
            "return false",
            (("tests/stores/test_contract.py::TestRedisByAVirtualClock",),),
        ),
        Mutant(
            "newer: its own record is not another's",
            "core/record.py",
            "if head.token != token:",
            "if True:",
            PYTHON,
        ),
        Mutant(
            "newer: its own record is not another's",
            "stores/redis/lua/record.lua",
            " and struct.unpack('>I8', raw, 5) ~= token",
            "",
            (("tests/stores/test_contract.py::TestRedisByAVirtualClock",),),
        ),
    ]


def _answer(
    guard: str, path: str, old: str, new: str, stages: Stages = _GUARDS, after: str = ""
) -> Mutant:
    return Mutant(f"answer: {guard}", path, old, new, stages, after)


_DELIVERIES = [
    _answer(
        "a run that succeeds leaves that of its copy",
        "delivery/outcome.py",
        "    if verdict is None or verdict.answered:\n        leave_if_answered(attempt, verdict)",
        "",
    ),
    _answer(
        "a run that fails leaves that of its copy",
        "delivery/outcome.py",
        "    if isinstance(exc, Exception):\n        leave_if_answered(attempt, verdict)",
        "",
    ),
    _answer(
        "a run that ends while the store is away leaves that of its copy",
        "delivery/outcome.py",
        "if is_answered(delivery.task, delivery.request) if verdict is None else verdict.answered:",
        "if verdict is not None and verdict.answered:",
    ),
    _answer(
        "a zombie leaves that of its copy",
        "delivery/outcome.py",
        "(verdict.answered or is_answered(delivery.task, delivery.request)):",
        "False:",
    ),
    _answer(
        "a zombie that heard of its loss earlier leaves that of its copy",
        "delivery/outcome.py",
        "(verdict.answered or is_answered(delivery.task, delivery.request)):",
        "verdict.answered:",
    ),
    _answer(
        "a run that can't tell what happened leaves that of its copy",
        "delivery/outcome.py",
        "    leave_if_answered(attempt, verdict)\n    unknown = ",
        "    unknown = ",
    ),
    _answer(
        "a compensation that has to go on leaves that of its copy",
        "delivery/compensation.py",
        "leave_if_answered(attempt, verdict)",
        "pass",
    ),
    _answer(
        "a compensation that has to go on says so before its end",
        "delivery/compensation.py",
        "if goes_on and run.lease.is_unbroken:",
        "if False:",
    ),
    _answer(
        "no RETRY of a run whose lease may have been over",
        "delivery/outcome.py",
        "if attempt.run.lease.is_unbroken:",
        "if attempt.run.lease.lost is None:",
    ),
    _answer(
        "no RETRY of a run whose lease was over once",
        "run/lease.py",
        "self._ran_out = self._ran_out or not self.is_live",
        "pass",
    ),
    _answer(
        "no RETRY of a run that has heard of it",
        "run/lease.py",
        "not (self.lost or self.answered or self._ran_out)",
        "not (self.lost or self._ran_out)",
    ),
    _answer(
        "no REVOKED of a copy that is discarded",
        "worker/request.py",
        "        return is_revoked and self.id in revoked_tasks\n",
        "        return stores\n",
        (("tests/worker/test_lost_children.py",),),
    ),
    _answer(
        "a copy's, given while a body ran without a claim",
        "delivery/guard.py",
        "        if not delivery.eager and is_answered(task, request):\n            # The store",
        "        if False:\n            # The store",
    ),
    _answer(
        "a copy's, after a body ran without a claim and the store has forgotten it",
        "delivery/guard.py",
        "            leave_answer(delivery, at_once=False, notes=False)\n",
        "",
    ),
    _answer(
        "of a body that ran without a claim",
        "delivery/guard.py",
        "    give_way()\n    leave_answer(delivery, at_once=False)\n",
        "    give_way()\n",
    ),
    _answer(
        "a failure's, of a body that ran without a claim",
        "delivery/guard.py",
        "            leave_answer(delivery, at_once=False)\n        raise\n    give_way()",
        "            pass\n        raise\n    give_way()",
    ),
    _answer(
        "a copy's, given while RETRY was stored",
        "delivery/guard.py",
        "                verdict = claim.claim(_PATIENCE_S)\n        except",
        "                pass\n        except",
    ),
    _answer(
        "no RETRY of a message that waits again",
        "delivery/guard.py",
        "    if waits.since_ms and not (",
        "    if False and not (",
    ),
    _answer(
        "in an outage no failure and no run of its copy",
        "delivery/guard.py",
        'if answered or (policy == "raise" and copy):',
        'if policy == "raise" and copy:',
    ),
    _answer(
        "a run that lost to a failure keeps that answer",
        "delivery/outcome.py",
        "if record.state is State.RELEASED or terms",
        "if terms",
    ),
    _answer(
        "of a body that was ignored",
        "run/run.py",
        "answers = state is RELEASED and ending.answers",
        "answers = state is RELEASED and bool(ending.outcome)",
    ),
    _answer(
        "of a body that failed",
        "run/run.py",
        "answers = state is RELEASED and ending.answers",
        "answers = state is RELEASED and ending.answers and not ending.outcome",
    ),
    _answer(
        "none of a body that is put back as it is",
        "delivery/outcome.py",
        'answers=not getattr(exc, "requeue", False)',
        "answers=True",
    ),
    _answer(
        "kept for longer than a short window",
        "run/run.py",
        "answers or (state in _WITH_OUTCOME and ttl_ms < terms.horizon_ms)",
        "answers",
    ),
    _answer(
        "of a duplicate that was refused",
        "delivery/guard.py",
        '_fail(delivery, IdempotencyInProgress(f"{delivery.name} {why}: this call was not run"))',
        'raise IdempotencyInProgress(f"{delivery.name} {why}: this call was not run")',
    ),
    _answer(
        "of a duplicate that was dropped", "delivery/guard.py", "leave_answer(delivery)\n", "pass\n"
    ),
    _answer(
        "a call is not dropped if that can't be stored",
        "delivery/guard.py",
        "    if not say_revoked(delivery.task, delivery.request, reason):\n        leave",
        "    say_revoked(delivery.task, delivery.request, reason)\n    if False:\n        leave",
    ),
    _answer(
        "of a call that is not dropped after all, its copies need not wait",
        "delivery/guard.py",
        "leave_answer(delivery, told=False)",
        "pass",
    ),
    _answer(
        "of a call that is not dropped after all, nothing is told",
        "delivery/outcome.py",
        "ignored = told and not outcome",
        "ignored = not outcome",
    ),
    _answer(
        "of a call with other arguments",
        "delivery/guard.py",
        "_fail(delivery, IdempotencyKeyMismatch(text))",
        "raise IdempotencyKeyMismatch(text)",
    ),
    _answer(
        "of a run that lost its key to one without an outcome",
        "delivery/outcome.py",
        "leave_answer(delivery, outcome=ending.outcome, token=record.token)",
        "pass",
    ),
    _answer(
        "of a run that lost its key to one with a short window",
        "delivery/outcome.py",
        "record.state is State.RELEASED or terms.ttl_ms < terms.horizon_ms",
        "record.state is State.RELEASED",
    ),
    _answer(
        "is given once: a run whose call a copy has answered replaces nothing",
        "delivery/retrying.py",
        "context._check_unanswered()",
        "context.check()",
    ),
    _answer(
        "is repeated where RETRY may be stored over it",
        "delivery/outcome.py",
        "doubtful = verdict is None and attempt.run.lease.is_doubtful",
        "doubtful = False",
    ),
    _answer(
        "none of a run that knows that it lost its key, and can't record its end",
        "run/run.py",
        "return None if lost is None else Lost(lost)",
        "return None",
    ),
    _answer(
        "no RETRY over it by a delivery that stood still",
        "delivery/guard.py",
        "return time.perf_counter() - asked > delivery.options.lease / 3",
        "return False",
    ),
    _answer(
        "no refusal by a delivery that stood still",
        "delivery/guard.py",
        "(stale and (refused or is_answered",
        "(stale and (is_answered",
    ),
    _answer(
        "no error by a delivery that stood still",
        "delivery/guard.py",
        "if stale and isinstance(verdict, Mismatch | Unknown) and",
        "if False and",
    ),
    _answer(
        "that nobody knows",
        "delivery/guard.py",
        "_fail(delivery, OutcomeUnknown(text))",
        "raise OutcomeUnknown(text)",
    ),
    _answer(
        "of a call whose body never began",
        "delivery/guard.py",
        "leave_answer(delivery, exc)  # its body",
        "pass  # its body",
    ),
    _answer(
        "of a duplicate whose callbacks went out",
        "delivery/guard.py",
        "leave_answer(delivery, in_record=True)",
        "pass",
    ),
    _answer(
        "of a duplicate that shares a failure",
        "delivery/guard.py",
        "elif not verdict.mine or (verdict.from_slip and claimant.callbacks):",
        "elif verdict.from_slip and claimant.callbacks:",
    ),
    _answer(
        "none while callbacks are unsent",
        "delivery/outcome.py",
        "answered=sent or ignored, succeeded",
        "answered=True, succeeded",
    ),
    _answer(
        "none of a run while callbacks are unsent",
        "run/run.py",
        "_replace(answered=sent, succeeded=sent and kept)",
        "_replace(answered=True, succeeded=kept)",
    ),
    _answer(
        "a retry is of the same publication",
        "core/message.py",
        "return WaitState(publication=self.publication, ",
        "return WaitState(",
        (("tests/core/test_message.py",), *_GUARDS),
    ),
    _answer(
        "what the broker delivers again is no new call",
        "delivery/delivery.py",
        "waits.count or redelivered)",
        "waits.count)",
    ),
    _answer(
        "what is dead-lettered is counted",
        "core/message.py",
        "min(deaths, MAX_DEATHS)",
        "waits.deaths",
        (("tests/core/test_message.py",), *_GUARDS),
    ),
    _answer(
        "a claim is not undone once its body has begun",
        "delivery/execution.py",
        "claim.may_hold = False\n    try:",
        "pass\n    try:",
    ),
    _answer(
        "a run that lost its key replaces nothing",
        "delivery/retrying.py",
        "                context._check_unanswered()",
        "                pass",
    ),
    _answer(
        "whatever cuts a delivery off, its claim is undone",
        "delivery/guard.py",
        "if claim.undo(exc) and isinstance(exc, Exception):",
        "if isinstance(exc, KeyError):",
    ),
    _answer(
        "no STARTED over it",
        "delivery/waiting.py",
        "        return task is None\n",
        "        return True\n",
    ),
    _answer(
        "a soft time limit costs no note",
        "delivery/callbacks.py",
        "continue  # it comes once",
        "break  # it comes once",
    ),
    _answer(
        "what a delivery raised is freed when it returns",
        "delivery/callbacks.py",
        "info.retval.__traceback__ = None",
        "pass",
        (("tests/delivery/test_callbacks.py",),),
    ),
    _answer(
        "what a delivery raised is told the parent without its frames",
        "delivery/callbacks.py",
        "raised.tb = None",
        "pass",
        (("tests/delivery/test_callbacks.py",),),
    ),
    _answer(
        "a link's id tells one publication of a task id from another",
        "delivery/callbacks.py",
        'f"{request.id}/{publication}" if publication else request.id',
        "request.id",
    ),
    _answer(
        "a task id that is published again while an attempt waits is told the end",
        "delivery/guard.py",
        "    if _may_be_published_again(delivery):\n",
        "    if False:\n",
    ),
    _answer(
        "nobody waits for an attempt that is over or overdue",
        "delivery/guard.py",
        "return store.now_ms() < record.until_ms + claimant.terms.lease_ms",
        "return True",
    ),
    _answer(
        "an old copy is ignored",
        "delivery/guard.py",
        "if delivery.redelivered or delivery.eager or claimant.compensates_only:",
        "if delivery.eager or claimant.compensates_only:",
    ),
    _answer(
        "what only compensates waits for no attempt",
        "delivery/guard.py",
        "if delivery.redelivered or delivery.eager or claimant.compensates_only:",
        "if delivery.redelivered or delivery.eager:",
    ),
    _answer(
        "nor for another call's run",
        "delivery/guard.py",
        "if record is None or record.owner != claimant.owner:\n            return False",
        "if record is None:\n            return False",
    ),
    _answer(
        "who has met an outage says so",
        "run/claim.py",
        "request = request._replace(patient_until_ms=NEVER_MS)",
        "pass",
        (*_GUARDS, ("tests/system/test_outages.py", "-k", "paused_store")),
    ),
    _answer(
        "of a dead child's callbacks",
        "worker/request.py",
        "process, owner.slip_key(key))",
        "process)",
        (("tests/worker/test_lost_children.py",),),
    ),
]

_LATE_SQL: Stages = (("tests/stores/sql/test_store.py", "-k", "sqlite"),)
_LATE_WIRE: Stages = (("tests/stores/redis/test_wire.py",),)
_LATE_DJANGO: Stages = (("tests/django/test_transaction.py",),)

_LATE = [
    Mutant(
        "late: a claim after its deadline gets nothing",
        "stores/redis/lua/claim.lua",
        "if deadline_ms > 0 and now_ms >= deadline_ms then",
        "if false then",
        _LATE_WIRE,
    ),
    Mutant(
        "late: a claim in its deadline's millisecond, too",
        "stores/redis/lua/claim.lua",
        "now_ms >= deadline_ms",
        "now_ms > deadline_ms",
        _LATE_WIRE,
    ),
    Mutant(
        "late: a claim has a deadline",
        "stores/redis/wire.py",
        "return int(time.monotonic() * 1000 + ahead_ms + self._patience_ms)",
        "return 0",
        _LATE_WIRE,
    ),
    Mutant(
        "late: it is asked for again where the clock was moved",
        "stores/redis/store.py",
        "            if code != 9:\n                verdict",
        "            if True:\n                verdict",
        _LATE_WIRE,
    ),
    Mutant(
        "late: a connection that broke is an outage",
        "stores/redis/lua/claim.lua",
        "if broke == 1 then",
        "if false then",
        _LATE_WIRE,
    ),
    Mutant(
        "late: a new row, in SQL",
        "stores/sql/flavours.py",
        '.where(one.c.now_us <= bindparam("deadline_us", type_=BigInteger))',
        '.where(one.c.now_us <= bindparam("deadline_us", type_=BigInteger) + 10**15)',
        _LATE_SQL,
    ),
    Mutant(
        "late: a row, in SQL",
        "stores/sql/flavours.py",
        'self.now_us <= bindparam("deadline_us", type_=BigInteger))',
        'self.now_us <= bindparam("deadline_us", type_=BigInteger) + 10**15)',
        _LATE_SQL,
        after="def update_record(",
    ),
    Mutant(
        "late: a slip, in SQL",
        "stores/sql/flavours.py",
        'self.now_us <= bindparam("deadline_us", type_=BigInteger))',
        'self.now_us <= bindparam("deadline_us", type_=BigInteger) + 10**15)',
        _LATE_SQL,
        after="def update_slip(",
    ),
    Mutant(
        "late: a new row, in Django",
        "django/rows.py",
        'WHERE one.now_us <= %s "\n',
        'WHERE one.now_us <= %s + 1000000000000000 "\n',
        _LATE_DJANGO,
    ),
    Mutant(
        "late: a row, in Django",
        "django/rows.py",
        "AND stamp = %s AND {self.now_us} <= %s",
        "AND stamp = %s AND {self.now_us} <= %s + 1000000000000000",
        _LATE_DJANGO,
    ),
    Mutant(
        "late: a new slip, in Django",
        "django/rows.py",
        '"WHERE one.now_us <= %s ON CONFLICT DO NOTHING"',
        '"WHERE one.now_us <= %s + 1000000000000000 ON CONFLICT DO NOTHING"',
        _LATE_DJANGO,
    ),
    Mutant(
        "late: a slip, in Django",
        "django/rows.py",
        "AND expires_ms = %s AND {self.now_us} <= %s",
        "AND expires_ms = %s AND {self.now_us} <= %s + 1000000000000000",
        _LATE_DJANGO,
    ),
    Mutant(
        "a slip is as it was read",
        "stores/sql/flavours.py",
        '& (slip == bindparam("seen", type_=packed))',
        '& ((slip == bindparam("seen", type_=packed)) | literal(True))',
        _LATE_SQL,
    ),
    Mutant(
        "a slip is as it was read, in Django",
        "django/rows.py",
        "AND COALESCE(slip, %s) = %s",
        "AND (COALESCE(slip, %s) = %s OR TRUE)",
        _LATE_DJANGO,
    ),
    Mutant(
        "record and slip are written together",
        "stores/deciding.py",
        "                raise _NotAsRead\n            if tells:",
        "                return False\n            if tells:",
        _LATE_SQL,
    ),
]

ANSWERED: list[Mutant] = [
    *_copies(),
    *_attempts(),
    *_waiters(),
    *_sending(),
    *_runs(),
    *_DELIVERIES,
    *_LATE,
    Mutant(
        "what only undoes steps is not run in another mode",
        "delivery/guard.py",
        "    if waits.compensates_only and not undoes:\n",
        "    if False:\n",
        (("tests/delivery/test_guard.py", "-k", "not_meant_for"),),
    ),
    Mutant(
        "switched off, the worker's parent asks no store",
        "task.py",
        'is_off = setup is None or setup.options.mode == "off"',
        "is_off = setup is None",
        (("tests/worker/test_lost_children.py", "-k", "switched_off"),),
    ),
    Mutant(
        "SQS: a message that is delivered again is known as such",
        "worker/request.py",
        "if _has_sqs_delivered(self._message):",
        "if False:",
        (("tests/worker/test_request.py", "-k", "sqs_delivers_again"),),
    ),
]
