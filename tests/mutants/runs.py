"""The guards of a run and of a delivery: what a worker does with the store's answers."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages

__all__ = ["RUNS"]

_PARENT: Stages = (("tests/unit/test_lost_children.py",),)
_SEAM: Stages = (("tests/unit/test_seam.py",),)
_STEPS: Stages = (("tests/unit/test_steps.py",),)
_GUARDS: Stages = (("tests/unit/test_guards.py",), *_SEAM)

_PARENTS = [
    Mutant(
        "parent: the owner",
        "worker/request.py",
        "environment.store.end_lease(key, owner.pack(), process,",
        "environment.store.end_lease(key, environment.store.get(key).owner, process,",
        _PARENT,
    ),
    Mutant(
        "parent: the process",
        "worker/request.py",
        "process = Process(socket.gethostname(), self.worker_pid, BOOT_ID).pack()",
        "process = environment.store.get(key).process",
        _PARENT,
    ),
    Mutant(
        "parent: only where a child is dead for certain",
        "worker/request.py",
        "if isinstance(exc, (WorkerLostError, Terminated)):",
        "if True:",
        _PARENT,
    ),
    Mutant(
        "owner: what replaced a task is another call",
        "delivery/delivery.py",
        "return Owner(str(request.id), ",
        "return Owner(str(request.id), 0 and ",
        _PARENT,
    ),
]

_RUNS = [
    Mutant(
        "abandon: a claim that was given up is undone",
        "run/run.py",
        "        if not self.may_hold:\n            return False\n",
        "        return False\n",
        _SEAM,
    ),
    Mutant(
        "delivery lease: held from the completion to the note",
        "run/run.py",
        "delivery = call.callbacks and _has_outcome(ending)",
        "delivery = False",
        _GUARDS,
    ),
    Mutant(
        "note: set when the callbacks are out",
        "run/run.py",
        "if sent or self.lease.record.is_done:",
        "if False:",
        _GUARDS,
    ),
    Mutant(
        "note: a copy whose callbacks are out sends none",
        "delivery/guard.py",
        "        if verdict.noted:\n            callbacks.silence(self.request)",
        "        if False:\n            callbacks.silence(self.request)",
        _GUARDS,
    ),
    Mutant(
        "zombie: a late result is not its caller's",
        "delivery/execution.py",
        "if isinstance(verdict, Lost):\n            return self._lost(verdict, None",
        "if False:\n            return self._lost(verdict, None",
        _GUARDS,
    ),
    Mutant(
        "zombie: a late failure is not its caller's",
        "delivery/execution.py",
        "if isinstance(verdict, Lost) and isinstance(exc, Exception):",
        "if False:",
        _GUARDS,
        after="def _failed(",
    ),
    Mutant(
        "zombie: it leaves a message to its own copy",
        "delivery/execution.py",
        "if record.owner == delivery.call.owner and not delivery.eager:",
        "if False:",
        _GUARDS,
    ),
    Mutant(
        "fork: a copy of the run ends nothing",
        "delivery/execution.py",
        "            if run.is_elsewhere:",
        "            if False:",
        _SEAM,
    ),
    Mutant(
        "fork: a child renews none of its parent's leases",
        "run/heartbeat.py",
        "        if self._pid != os.getpid():\n            self._reset()",
        "        if False:\n            self._reset()",
        (("tests/unit/test_heartbeat.py",),),
    ),
    Mutant(
        "heartbeat: a lease that is let go is not renewed",
        "run/heartbeat.py",
        "        self._leases.pop(lease.number, None)",
        "        pass",
        (("tests/unit/test_heartbeat.py",),),
    ),
    Mutant(
        "heartbeat: a lease runs from when it was asked for",
        "run/run.py",
        "        run.lease.renewed = asked",
        "        pass",
        (("tests/unit/test_seam.py", "-k", "lease_runs_from"),),
    ),
    Mutant(
        "replay: nothing is read that the app does not accept",
        "delivery/results.py",
        "content_type == _JSON and (accept is None or _JSON in accept)",
        "content_type == _JSON",
        (("tests/unit/test_results.py",),),
    ),
    Mutant(
        "events: where they are sent, a duplicate is marked",
        "delivery/celery_events.py",
        'request["delivery_info"][_SENT] = _are_sent(eventer)',
        'request["delivery_info"][_SENT] = False',
        (("tests/unit/test_events.py",),),
    ),
    Mutant(
        "heartbeat: what is optional keeps nothing else from being told",
        "run/heartbeat.py",
        "                    if not job.must:\n                        continue\n",
        "",
        (("tests/unit/test_heartbeat.py",),),
    ),
    Mutant(
        "record later: until the store takes it",
        "run/run.py",
        'f"{self.call.key} is {event.record.state}", self.call.terms.keep_ms / 1000',
        'f"{self.call.key} is {event.record.state}", 0.0',
        (("tests/unit/test_guards.py", "-k", "an_end_is_told"),),
    ),
    Mutant(
        "record later: until the server is back",
        "run/run.py",
        'f"{self.call.key} is {event.record.state}", self.call.terms.keep_ms / 1000',
        'f"{self.call.key} is {event.record.state}", 0.0',
        (("tests/integration/test_outages.py", "-k", "an_end_is_told"),),
    ),
    Mutant(
        "note: told again where the store is away",
        "run/run.py",
        "    heartbeat.later(tell, what, terms.horizon_ms / 1000)\n",
        "",
        (("tests/unit/test_guards.py", "-k", "a_note_is_told"),),
    ),
    Mutant(
        "session: no renewal while it is committed",
        "run/transaction.py",
        "        heartbeat.remove(self._lease)\n        answer",
        "        answer",
        (("tests/unit/test_inbox.py",),),
    ),
    Mutant(
        "check: it says that the key is lost",
        "run/context.py",
        "        if self._run.lease.lost is not None:\n            raise ClaimLost(",
        "        if False:\n            raise ClaimLost(",
        _GUARDS,
    ),
    Mutant(
        "step: one that is done is not done again",
        "run/steps.py",
        "if done is not None and done.state is StepState.DONE:",
        "if False:",
        _STEPS,
    ),
    Mutant(
        "step: none is begun once the key is lost",
        "run/steps.py",
        "        if self._run.lease.lost is not None:\n            raise ClaimLost(f",
        "        if False:\n            raise ClaimLost(f",
        _STEPS,
    ),
    Mutant(
        "step: a run that lost its key is told at its record",
        "run/steps.py",
        "        if self._run.lease.lost is not None:\n            raise ClaimLost(\n",
        "        if False:\n            raise ClaimLost(\n",
        _STEPS,
    ),
    Mutant(
        "step: a result that is not kept is there for its own run's compensation",
        "run/steps.py",
        "if compensation and not step.is_kept:",
        "if False:",
        _STEPS,
    ),
    Mutant(
        "step: a soft time limit after its effect does not lose it",
        "run/steps.py",
        "            if self._steps.get(name) is done:\n",
        "            if False:\n",
        _STEPS,
    ),
    Mutant(
        "step: an immutable compensation takes no result",
        "core/step.py",
        "return self.is_kept or bool(",
        "return self.is_kept or False and bool(",
        _STEPS,
    ),
    Mutant(
        "compensation: what can't be undone keeps no other step",
        "delivery/execution.py",
        "if self.steps.can_undo(name, step):",
        "if True:",
        _STEPS,
    ),
    Mutant(
        "compensation: what can't be undone is said",
        "delivery/execution.py",
        "        if stuck:",
        "        if False:",
        _STEPS,
    ),
    Mutant(
        "resolve: what can't be undone is not waited for",
        "ops/settle.py",
        "        if step.can_be_undone:",
        "        if step.compensation:",
        _STEPS,
    ),
    Mutant(
        "resolve: the message has the record's key, and not its trace",
        "ops/settle.py",
        "label = Label.of(record).readable",
        'label = record.label.partition("\\n")[2]',
        _STEPS,
    ),
]

_DELIVERIES = [
    Mutant(
        "busy: a copy of a running message is put back",
        "delivery/guard.py",
        "            self.wait_as_copy(left)",
        '            raise Ignore("busy")',
        _GUARDS,
    ),
    Mutant(
        "busy: a duplicate is put back",
        "delivery/guard.py",
        "        self.wait(record, since_ms, until)",
        '        raise Ignore("busy")',
        _GUARDS,
    ),
    Mutant(
        "busy: a copy of a running message does not expire",
        "delivery/waiting.py",
        '{"expires": None} if waits.redelivery else {}',
        "{}",
        (("tests/unit/test_waiting.py",),),
    ),
    Mutant(
        "zombie: an answer that its RETRY hid is stored again",
        "delivery/execution.py",
        "if isinstance(exc, Retry) and not (record.is_done or lost.answered):",
        "if isinstance(exc, Retry):",
        (("tests/unit/test_guards.py", "-k", "late_retry"),),
    ),
    Mutant(
        "store away: no RETRY over an answer",
        "delivery/guard.py",
        "if copy or is_answered(self.task, self.request):",
        "if copy:",
        (("tests/unit/test_guards.py", "-k", "in_an_outage"),),
    ),
    Mutant(
        "busy: what is awaited is the run that was found last",
        "delivery/guard.py",
        "awaited = self.waits.awaited if owner is None else (owner.task_id, owner.nesting)",
        "awaited = self.waits.awaited or (owner and (owner.task_id, owner.nesting))",
        (("tests/unit/test_guards.py", "-k", "found_last"),),
    ),
    Mutant(
        'busy: "raise" and "drop" are for a first delivery',
        "delivery/guard.py",
        "first = not (self.call.retries or self.redelivered or self.waits.count)",
        "first = True",
        _GUARDS,
    ),
    Mutant(
        'busy: "drop" is not for what somebody awaits',
        "delivery/guard.py",
        'if policy == "drop" and not self._is_awaited():',
        'if policy == "drop":',
        _GUARDS,
    ),
    Mutant(
        "store away: a body is not run",
        "delivery/guard.py",
        '        if policy == "run":\n            log.error',
        "        if True:\n            log.error",
        _GUARDS,
    ),
    Mutant(
        "store away: a copy of a running message tells no failure",
        "delivery/guard.py",
        'if policy == "raise" and copy:',
        "if False:",
        _SEAM,
    ),
]

_PUT_BACK = [
    Mutant(
        "nobody attaches to a call that was revoked",
        "publishing.py",
        "in (None, REVOKED) else first",
        "in (None,) else first",
        (("tests/unit/test_enqueue.py",),),
    ),
    Mutant(
        "nobody attaches to a call that may end without a result",
        "publishing.py",
        "or Label.of(record).is_alone",
        "or False",
        (("tests/unit/test_enqueue.py",),),
    ),
    Mutant(
        "a discarded message frees only the key that waits for it",
        "worker/request.py",
        "if record.state is not State.RETRYING or attempt < record.retries:",
        "if False:",
        (("tests/unit/test_request.py",),),
    ),
    Mutant(
        "a call that is revoked in its back-off frees its key at once",
        "worker/boot.py",
        "        watch_revokes()\n",
        "",
        (("tests/faults/test_revoked.py", "-k", "revoked_in_its"),),
    ),
    Mutant(
        "a process that is replaced tells first",
        "worker/boot.py",
        "_RECYCLED_S if exitcode == EX_RECYCLE else _STOPPED_S",
        "_STOPPED_S",
        (("tests/faults/test_recycled.py", "-k", "tells_first"),),
    ),
    Mutant(
        "what a process could not tell is said",
        "run/heartbeat.py",
        "            if job.must:\n                log.error(",
        "            if False:\n                log.error(",
        (("tests/unit/test_heartbeat.py",),),
    ),
    Mutant(
        "a copy is put back into the queue that it came from",
        "delivery/guard.py",
        "origin = origin_of(self.task.app, self.request.delivery_info, natively)",
        "origin = origin_of(self.task.app, None, natively)",
        (("tests/faults/test_broadcast.py", "-k", "put_back and rabbitmq"),),
    ),
    Mutant(
        "a copy for another worker is left to it",
        "delivery/guard.py",
        "if self.waits.to not in (None, self.request.hostname):",
        "if False:",
        (("tests/faults/test_broadcast.py", "-k", "put_back and redis"),),
    ),
    Mutant(
        "what RabbitMQ wrote of a message's delays is taken out",
        "delivery/retrying.py",
        "without_deaths({**ours, **given})",
        "{**ours, **given}",
        (("tests/unit/test_waiting.py",),),
    ),
    Mutant(
        "what is in the queue already gets past a base's lock",
        "delivery/retrying.py",
        "return Task.apply_async(task, args, kwargs, **options)",
        "return task.apply_async(args, kwargs, **options)",
        (("tests/unit/test_waiting.py",),),
    ),
]

RUNS: list[Mutant] = [*_PARENTS, *_RUNS, *_DELIVERIES, *_PUT_BACK]
