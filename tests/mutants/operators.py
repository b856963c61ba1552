"""The guards of what operators do: many keys at once, metrics, the doctor."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages

__all__ = ["OPERATORS"]

_CLI: Stages = (("tests/ops/test_cli.py",),)
_METRICS: Stages = (("tests/ops/test_metrics.py", "-k", "opens_the_port"),)
_DOCTOR: Stages = (("tests/ops/test_doctor.py",),)
_RESUME: Stages = (("tests/ops/test_resume.py",),)

OPERATORS: list[Mutant] = [
    Mutant(
        "forget: a key that is only free has nothing to forget",
        "ops/settle.py",
        "    if _has_nothing(environment, view.name):\n",
        "    if False:\n",
        _CLI,
    ),
    Mutant(
        "forget: of a free key there may be a last run, or its steps",
        "ops/settle.py",
        "    if record.owner or record.outcome or record.has_steps:\n",
        "    if False:\n",
        _CLI,
    ),
    Mutant(
        "resolve: what it would refuse is not asked about",
        "ops/cli/act.py",
        "    for view in meant if wanted is None else ():\n",
        "    for view in ():\n",
        _CLI,
    ),
    Mutant(
        "resolve: an option is no message",
        "ops/cli/act.py",
        "    if failed in {name for one in",
        "    if False and failed in {name for one in",
        _CLI,
    ),
    Mutant(
        "forget: a free key may be queued",
        "ops/settle.py",
        "    return environment.store.reservation(name) is None\n",
        "    return True\n",
        _CLI,
    ),
    Mutant(
        "resume: what is held is left",
        "ops/resume.py",
        "    if now_ms < record.until_ms:\n",
        "    if False:\n",
        _RESUME,
    ),
    Mutant(
        "resume: what has an outcome would answer",
        "ops/resume.py",
        "    if record.state in (State.SUCCEEDED, State.FAILED):\n",
        "    if False:\n",
        _RESUME,
    ),
    Mutant(
        "resume: a call in its turn has steps of its own",
        "ops/resume.py",
        '        if setup.options.after_wait != "answer":\n',
        "        if False:\n",
        _RESUME,
    ),
    Mutant(
        "resume: what changed since is left",
        "ops/resume.py",
        "if record is None or record.token != token or",
        "if record is None or",
        _RESUME,
    ),
    Mutant(
        "resume: the arguments of the call that began it",
        "ops/resume.py",
        "record.owner or bytes.fromhex(Label.of(record).origin)",
        "record.owner",
        _RESUME,
    ),
    Mutant(
        "resume: later duplicates are compared with the first call",
        "ops/settle.py",
        'b"" if compensates_only else record.fingerprint',
        'b""',
        _RESUME,
    ),
    Mutant(
        "resume: a checkpoint moves behind what it came after",
        "run/steps.py",
        "before.order > last else last + 1",
        "True else last + 1",
        _RESUME,
    ),
    Mutant(
        "resume: a message repairs where the command could not",
        "delivery/guard.py",
        "if delivery.waits.resumes is not None:",
        "if False:",
        _RESUME,
    ),
    Mutant(
        "resume: a checkpoint without a place goes",
        "core/step.py",
        "step.order if step.order or not name.startswith(CHECKPOINT) else 1 << 16",
        "step.order",
        _RESUME,
    ),
    Mutant(
        "resume: the steps of a failed call live as long as its window",
        "run/run.py",
        "            if self.lease.record.has_steps and not terms.frees:\n",
        "            if False:\n",
        _RESUME,
    ),
    Mutant(
        "bulk: what is not as many as was said is left",
        "ops/cli/act.py",
        "    if count != number:\n",
        "    if False:\n",
        _CLI,
    ),
    Mutant(
        "bulk: a key that was claimed since the look is left",
        "ops/cli/act.py",
        "isinstance(record, Record) and record.token == view.token",
        "isinstance(record, Record)",
        _CLI,
    ),
    Mutant(
        "doctor: what a misspelt name accepts is not passed over",
        "ops/doctor/examination.py",
        "if name not in NAMES",
        "if False",
        _DOCTOR,
    ),
    Mutant(
        "metrics: only a worker opens the port",
        "ops/metrics.py",
        "        if _is_worker:\n",
        "        if True:\n",
        _METRICS,
    ),
    Mutant(
        "doctor: an option that a base reads is not left over",
        "ops/doctor/keys.py",
        "    return option in vars(cls) and not any(",
        "    return option in vars(cls) or any(",
        (("tests/ops/test_doctor.py", "-k", "base_reads"),),
    ),
    Mutant(
        "doctor: what the trial run was refused is told",
        "ops/doctor/trial.py",
        "            yield Refusal(name, exc, is_vital)",
        "            continue",
        _DOCTOR,
    ),
]
