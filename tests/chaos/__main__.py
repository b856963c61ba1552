"""Thousands of calls under kills, stops and restarts: `make chaos`."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tests.chaos.account import account_of
from tests.chaos.driver import Driver
from tests.chaos.evidence import Violation
from tests.chaos.history import history_of
from tests.chaos.judgement import judge
from tests.chaos.plan import LEASE_S, make_plan, parts_of
from tests.chaos.report import Progress, announce, conclude
from tests.chaos.system import System
from tests.support.brokers import AMQP_URL, rabbitmq_answers
from tests.support.databases import Database
from tests.support.histories.checker import check
from tests.support.histories.operations import write
from tests.support.missing import NotThere


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--minutes", type=float, default=3.0, show_default=True, help="Of traffic and faults."
)
@click.option("--seed", type=int, help="Of the plan; a random one unless given. It is printed.")
@click.option("--keep", is_flag=True, help="Keep ledger, history and logs, and say where.")
@click.option("--only-redis", is_flag=True, help="As where RabbitMQ and PostgreSQL don't run.")
def main(minutes: float, seed: int | None, keep: bool, only_redis: bool) -> None:
    """Kill, stop and restart a real system under load, and judge it by a ledger outside of it.

    Workers on Redis and on RabbitMQ get calls with duplicates, retries, steps, chains, chords,
    keyed inserts and sessions. Children and workers are killed and stopped, connections cut, and
    the server with records and results is killed and restarted. Afterwards everything must be
    answered, nothing lost, and no effect repeated without a fault to account for it. The exit code
    is 1 where something that is required does not hold.
    """
    seed = random.randrange(1_000_000) if seed is None else seed
    signal.signal(signal.SIGTERM, _end)
    directory = Path(tempfile.mkdtemp(prefix="celery-idempotent-chaos-"))
    console = Console()
    missing = _missing(directory, only_redis)
    parts = parts_of("RabbitMQ" not in missing, "PostgreSQL" not in missing)
    plan = make_plan(seed, minutes * 60, parts)
    announce(console, plan, list(missing.values()))
    try:
        system = System(plan.parts, directory)
        try:
            driver = Driver(plan, system)
            with Progress(console) as progress:
                evidence = driver.play(progress.show)
        finally:
            system.close()
        verdict = judge(evidence)
        history = history_of(evidence)
        write(directory / "history", history)
        for found in check(history, LEASE_S):
            account = account_of(evidence, found.key, {found.whose})
            verdict.violations.append(Violation("promise", found.key, f"{found}\n{account}"))
        conclude(console, plan, verdict, system.notes)
    finally:
        if keep:
            console.print(f"ledger and logs: {directory}", highlight=False, soft_wrap=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    sys.exit(0 if verdict.holds else 1)


def _missing(directory: Path, only_redis: bool) -> dict[str, str]:
    """What is left out, and why."""
    if only_redis:
        asked = "as asked; sessions are on SQLite"
        return {"RabbitMQ": f"RabbitMQ, {asked}", "PostgreSQL": f"PostgreSQL, {asked}"}
    missing = {}
    if not rabbitmq_answers():
        missing["RabbitMQ"] = f"RabbitMQ, which does not answer at {AMQP_URL.rpartition('@')[2]}"
    try:
        Database("postgresql", directory).drop()
    except NotThere as exc:
        missing["PostgreSQL"] = f"PostgreSQL, so sessions are on SQLite: {str(exc).splitlines()[0]}"
    return missing


def _end(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
