"""The demo's command line: ``python -m examples.demo``."""

from __future__ import annotations

import signal
import sys
from functools import partial
from threading import Event, Thread
from types import FrameType
from typing import TYPE_CHECKING

import click

from celery_idempotent.errors import IdempotencyError
from examples.demo.acts import ACTS, Act
from examples.demo.scene import Scene
from examples.demo.stage import SIDES, DemoFailed, Stage

if TYPE_CHECKING:
    from examples.demo.report import Performance, Report

_FRAME_SECONDS = 0.25
_BOOT_SECONDS = 40.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--act",
    "names",
    metavar="NAME",
    multiple=True,
    type=click.Choice([act.name for act in ACTS]),
    help="Run this act only; may be given more than once. See --list.",
)
@click.option("--list", "list_acts", is_flag=True, help="Say what the acts are, and end.")
@click.option("--keep", is_flag=True, help="Keep the ledger and the workers' logs.")
@click.option(
    "--unguarded",
    is_flag=True,
    help="Turn the guard off (idempotency_mode=off), to see that the demo can fail.",
)
def main(names: tuple[str, ...], list_acts: bool, keep: bool, unguarded: bool) -> None:
    """Plain Celery and IdempotentTask, side by side, under the same faults.

    Starts a private Valkey and real workers, and ends them again. Needs about a minute.
    Exit code: 0 if every promise held, 1 if one broke, 130 after Ctrl-C.
    """
    acts = [act for act in ACTS if not names or act.name in names]
    if list_acts:
        _list(acts)
        return
    try:
        from examples.demo.report import Performance, Report
    except ImportError as exc:
        raise click.ClickException(str(exc)) from exc
    stop = _Stop()
    performances = [Performance(act) for act in acts]
    report = Report(performances)
    stage = Stage("off" if unguarded else "enforce", stop.asked)
    try:
        with report:
            report.say("starting a private server, and the workers of each side")
            if unguarded:
                report.say("the guard is off: IdempotentTask runs as a plain task")
            with stage:
                _run(stage, report, performances)
        broken = [] if stop.code else report.conclude()
    except (IdempotencyError, DemoFailed) as exc:
        broken = [] if stop.code else [f"The demo could not run: {exc}"]
    if stop.code:
        report.warn(["Interrupted; every worker and the server have been ended."])
    if keep or broken:
        report.warn([*broken, f"The ledger and the workers' logs are in {stage.directory}"])
    else:
        stage.discard()
    sys.exit(stop.code or (1 if broken else 0))


def _list(acts: list[Act]) -> None:
    for act in acts:
        click.echo(f"{act.name}: {act.told}")
        for promise in act.promises:
            click.echo(f"    - {promise.says}")


class _Stop:
    """Turns signals into a request to stop, so that no process is left running."""

    def __init__(self) -> None:
        self.asked = Event()
        self.code = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.code = self.code or 128 + number
        self.asked.set()


def _run(stage: Stage, report: Report, performances: list[Performance]) -> None:
    deadline = report.seconds + _BOOT_SECONDS
    while not all(stage.ready(side) for side in SIDES):
        if report.seconds > deadline:
            raise DemoFailed(f"the workers were not ready within {_BOOT_SECONDS:.0f} s")
        _pause(stage, report)
        if stage.stopping.is_set():
            return
    for performance in performances:
        act = performance.act
        report.say(f"{act.title}. {act.told}")
        threads = []
        for side in SIDES:
            scene = Scene(stage, side, act.name, partial(report.say, side=side))
            performance.scenes[side] = scene
            # Daemons, because they could wait for ever once the servers are gone.
            threads.append(Thread(target=_play, args=(act, scene), daemon=True))
            threads[-1].start()
        while any(thread.is_alive() for thread in threads):
            _pause(stage, report)
            if stage.stopping.is_set():
                for thread in threads:
                    thread.join(timeout=1)
                return


def _pause(stage: Stage, report: Report) -> None:
    report.refresh()
    stage.sweep()
    stage.stopping.wait(_FRAME_SECONDS)


def _play(act: Act, scene: Scene) -> None:
    try:
        act.play(scene)
        scene.finish()
    except DemoFailed as exc:
        scene.failure = str(exc)
    except Exception as exc:
        scene.failure = repr(exc)
    finally:
        scene.end()


if __name__ == "__main__":
    main(prog_name="python -m examples.demo")
