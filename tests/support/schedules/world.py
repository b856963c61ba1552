"""A simulated machine: a clock, processes that freeze and die, threads of which one runs at a time.

Each thread of a simulated process is a greenlet: it runs only while the world lets it, and gives
way only in :meth:`World.pause` and :meth:`Event.wait`. So nothing depends on how fast the
real machine is, and a seed plays the same schedule each time.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import os
import random
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import greenlet

from celery_idempotent.run import heartbeat as heartbeats
from celery_idempotent.run import lease as leases

__all__ = ["Event", "Killed", "Process", "World"]

#: When every schedule begins, in seconds since 1970.
EPOCH_S = 1_900_000_000.0
_MOST_LAST_WORDS = 1000
_PACKAGE = "celery_idempotent"
_real_sleep, _real_heartbeat = time.sleep, heartbeats.heartbeat


class Killed(BaseException):
    """Stands for ``SIGKILL``: no ``except Exception`` sees it."""


class Process:
    """A simulated process: it has a heartbeat of its own, can be frozen, and dies at once."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.pid = next(world.pids)
        self.name = f"{name}-{self.pid}"
        self.dead = False
        self.frozen_until = 0.0
        self.heartbeat = heartbeats.Heartbeat()
        world.processes.append(self)

    def kill(self) -> None:
        """End it: its threads do nothing any more."""
        self.dead = True

    def freeze(self, seconds: float) -> None:
        """Let none of its threads run for so long."""
        self.frozen_until = max(self.frozen_until, self.world.now + seconds)


class _Fiber:
    """A thread of a simulated process: a greenlet, as starting and changing threads costs most."""

    def __init__(self, process: Process, body: Callable[[], object]) -> None:
        self.process = process
        self._body = body
        self._greenlet = greenlet.greenlet(self._run)
        self.over = False
        self.error: BaseException | None = None

    def resume(self) -> None:
        """Let it run until it gives way or ends."""
        self._greenlet.parent = greenlet.getcurrent()
        self._greenlet.switch()

    def give_way(self) -> None:
        """Called by itself: stop until it is resumed."""
        self._greenlet.parent.switch()
        if self.process.dead:
            raise Killed

    def _run(self) -> None:
        try:
            if not self.process.dead:
                self._body()
        except Killed:
            pass
        except BaseException as exc:
            self.error = exc
        finally:
            self.over = True


class World:
    """The clock and all that happens by it.

    Args:
        seed: of everything that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        # Of its own: what is made once a process, by whoever comes first, must not shift the rest.
        self._bytes = random.Random(seed)
        self._seed = seed
        self.now = EPOCH_S
        self.pids = itertools.count(100)
        self.processes: list[Process] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._fibers: list[_Fiber] = []
        self._running: _Fiber | None = None
        #: Where code runs that belongs to no simulated process.
        self._outside = Process(self, "outside")

    @property
    def process(self) -> Process:
        """The process whose code runs now."""
        return self._outside if self._running is None else self._running.process

    # --- time ------------------------------------------------------------------------------------

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done in so many seconds."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), do))

    def spawn(self, process: Process, body: Callable[[], object], after: float = 0.0) -> None:
        """Start a thread of a process."""
        fiber = _Fiber(process, body)
        self._fibers.append(fiber)
        self._resume_in(after, fiber)

    def pause(self, seconds: float) -> None:
        """Let time pass, for the thread that calls this."""
        fiber = self._running
        if fiber is None:
            return
        if fiber.process.dead:
            raise Killed
        self._resume_in(seconds, fiber)
        fiber.give_way()

    def _resume_in(self, seconds: float, fiber: _Fiber) -> None:
        self.at(seconds, lambda: self.resume(fiber))

    def resume(self, fiber: _Fiber) -> None:
        """Let a thread run now, or as soon as its process is no longer frozen."""
        left = fiber.process.frozen_until - self.now
        if left > 0 and not fiber.process.dead:
            self._resume_in(left, fiber)
            return
        self._running = fiber
        try:
            fiber.resume()
        finally:
            self._running = None
        if fiber.over:
            self._fibers.remove(fiber)
            if fiber.error is not None:
                raise fiber.error

    def run(self, until: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Let happen what happens until then, or until ``is_over``."""
        while self._events and self._events[0][0] <= until and not is_over():
            self.now, _, do = heapq.heappop(self._events)
            do()
        if not is_over():
            self.now = max(self.now, until)

    def end(self) -> None:
        """End all processes, and their threads."""
        for process in self.processes:
            process.kill()
        for fiber in list(self._fibers):
            for _ in range(_MOST_LAST_WORDS):
                if fiber.over:
                    break
                self._running = fiber
                fiber.resume()
            else:
                raise AssertionError(f"a thread of {fiber.process.name} lives on after its death")
        self._running = None
        self._fibers.clear()
        self._events.clear()

    # --- the world in the place of the real one --------------------------------------------------

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Have the library live in this world: its clock, its processes, its chance."""
        state = random.getstate()
        random.seed(self._seed)
        collects = gc.isenabled()
        gc.disable()  # what a dead thread held goes at the same moment each time
        patches = {
            (time, "time"): lambda: self.now,
            (time, "time_ns"): lambda: int(self.now * 1_000_000) * 1000,
            (time, "monotonic"): lambda: self.now,
            (time, "perf_counter"): lambda: self.now,
            (time, "sleep"): self._sleep,
            (os, "getpid"): lambda: self.process.pid,
            (os, "urandom"): self._bytes.randbytes,
            (socket, "gethostname"): lambda: "simulated",
        }
        simulated = types.SimpleNamespace(**vars(threading))
        simulated.Event = lambda: Event(self)
        simulated.Thread = lambda **options: _Thread(self, **options)
        heart = _HeartbeatOfTheProcess(self)
        with ExitStack() as stack:
            for (module, name), value in patches.items():
                stack.enter_context(mock.patch.object(module, name, value))
            for name, module in list(sys.modules.items()):
                if name.partition(".")[0] != _PACKAGE or module is None:
                    continue
                for attribute, value in list(vars(module).items()):
                    if value is _real_heartbeat:
                        stack.enter_context(mock.patch.object(module, attribute, heart))
                    elif value is threading and module in (heartbeats, leases):
                        stack.enter_context(mock.patch.object(module, attribute, simulated))
            self._outside.heartbeat = heartbeats.Heartbeat()
            try:
                yield
            finally:
                self.end()
                random.setstate(state)
                if collects:
                    gc.enable()

    def _sleep(self, seconds: float) -> None:
        if self._running is None:
            _real_sleep(seconds)  # a thread of the test run
        else:
            self.pause(seconds)


class Event:
    """``threading.Event``, in a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._set = False
        self._waiting: dict[int, _Fiber] = {}

    def set(self) -> None:
        self._set = True
        for fiber in self._waiting.values():
            self._world._resume_in(0.0, fiber)
        self._waiting.clear()

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        fiber = self._world._running
        if self._set or fiber is None:
            return self._set
        number = next(self._world._numbers)
        self._waiting[number] = fiber
        if timeout is not None:
            self._world.at(timeout, lambda: self._give_up(number))
        fiber.give_way()
        return self._set

    def _give_up(self, number: int) -> None:
        fiber = self._waiting.pop(number, None)
        if fiber is not None:
            self._world.resume(fiber)


class _Thread:
    """``threading.Thread``, in the simulated process that starts it."""

    def __init__(
        self,
        world: World,
        target: Callable[..., object],
        args: tuple[Any, ...] = (),
        name: str = "",
        daemon: bool = True,
    ) -> None:
        self._world, self._target, self._args = world, target, args

    def start(self) -> None:
        self._world.spawn(self._world.process, lambda: self._target(*self._args))


class _HeartbeatOfTheProcess:
    """The heartbeat of the simulated process whose code runs."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.process.heartbeat, name)
