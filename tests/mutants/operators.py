"""The guards of what operators do: many keys at once, metrics, the doctor."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages

__all__ = ["OPERATORS"]

_CLI: Stages = (("tests/ops/test_cli.py",),)
_METRICS: Stages = (("tests/ops/test_metrics.py", "-k", "opens_the_port"),)
_DOCTOR: Stages = (("tests/ops/test_doctor.py",),)

OPERATORS: list[Mutant] = [
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
        "metrics: only a worker opens the port",
        "ops/metrics.py",
        "        if _is_worker:\n",
        "        if True:\n",
        _METRICS,
    ),
    Mutant(
        "doctor: what the trial run was refused is told",
        "ops/doctor/trial.py",
        "            yield Refusal(name, exc, is_vital)",
        "            continue",
        _DOCTOR,
    ),
]
