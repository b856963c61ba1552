"""The broker, the workers, the store and the result backend of a simulated system."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.states import READY_STATES
from kombu import serialization
from kombu.exceptions import OperationalError
from kombu.utils.imports import symbol_by_name

from celery_idempotent import IdempotentTask
from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import Recorded
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.testing.deliveries import Results
from tests.support.histories.operations import Operation
from tests.support.schedules.world import EPOCH_S, Killed, Process, World

#: What the store is asked; all of it goes over the wire.
_ASKED = (
    *("claim", "settle", "renew", "step", "note", "abandon", "end_lease", "forget", "resolve"),
    *("get", "get_many", "peek", "steps"),
)
#: For how long a client waits for an answer.
_SOCKET_TIMEOUT_S = 2.0
_registry: Any = serialization.registry


@dataclass
class Chances:
    """How likely each fault is, at each point at which a process talks to another."""

    kill_child: float = 0.0
    kill_worker: float = 0.0
    stall: float = 0.0
    #: The store: a request that does not arrive, an answer that does not.
    request_lost: float = 0.0
    answer_lost: float = 0.0
    #: The broker refuses a message.
    refused: float = 0.0
    #: A worker's connection to the broker is lost: its messages come again.
    disconnect: float = 0.0
    #: The store stands still: requests lie in its sockets, whoever has given them up.
    freeze_store: float = 0.0
    #: A caller publishes a message again, not having heard that the broker has it.
    published_twice: float = 0.0
    #: How long a stall is, in seconds.
    stalls: tuple[float, float] = (1.0, 40.0)


@dataclass
class Envelope:
    """A message in the broker."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    #: Content type, encoding, body.
    content: tuple[str, str, Any]
    redelivered: bool = False
    tag: int = 0

    @property
    def eta(self) -> float:
        """When it is to be run, on the world's clock."""
        eta = self.headers.get("eta")
        return datetime.fromisoformat(eta).timestamp() if eta else 0.0

    @property
    def payload(self) -> Any:
        kind, encoding, body = self.content
        return _registry.loads(body, kind, encoding, accept=[kind])

    @property
    def call(self) -> str:
        return call_of(self.headers["id"], self.headers.get("replaced_task_nesting"))


def call_of(task_id: str, nesting: int | None) -> str:
    """Name a call, as histories do."""
    return f"{task_id}/{nesting}" if nesting else task_id


@dataclass
class Broker:
    """Queues, and what workers hold unacknowledged.

    ``visibility`` above 0: as on Redis. What is held for longer comes again, by the same tag, and
    an acknowledgement by tag drops it, whoever holds it then. Else as on RabbitMQ: a message comes
    again when its worker's connection is lost.
    """

    system: System
    visibility: float
    ready: list[Envelope] = field(default_factory=list)
    unacked: dict[int, Delivery] = field(default_factory=dict)
    tags: int = 0

    def publish(self, envelope: Envelope) -> None:
        self.tags += 1
        self.put(replace(envelope, tag=self.tags))

    def put(self, envelope: Envelope) -> None:
        self.ready.append(envelope)
        self.system.world.at(self.system.latency(), self.hand_out)

    def hand_out(self) -> None:
        """Give one message to one worker that takes any."""
        workers = [worker for worker in self.system.workers if worker.takes]
        if not self.ready:
            return
        if not workers:
            self.system.world.at(0.5, self.hand_out)
            return
        at = 0 if self.system.draw(0.8) else self.system.world.random.randrange(len(self.ready))
        envelope = self.ready.pop(at)
        worker = self.system.world.random.choice(workers)
        delivery = Delivery(self.system, worker, envelope)
        if not self.visibility:
            self.tags += 1
            delivery.envelope = envelope = replace(envelope, tag=self.tags)
        self.unacked[envelope.tag] = delivery
        if self.visibility:
            late = self.system.world.random.uniform(0, self.visibility / 2)
            self.system.world.at(self.visibility + late, lambda: self.restore(delivery))
        worker.receive(delivery)

    def restore(self, delivery: Delivery) -> None:
        """Deliver again what one worker still holds."""
        tag = delivery.envelope.tag
        if self.unacked.get(tag) is delivery:
            del self.unacked[tag]
            self.put(replace(delivery.envelope, redelivered=True))

    def ack(self, delivery: Delivery) -> None:
        tag = delivery.envelope.tag
        if self.visibility or self.unacked.get(tag) is delivery:
            self.unacked.pop(tag, None)

    def reject(self, delivery: Delivery, requeue: bool) -> None:
        tag = delivery.envelope.tag
        known = tag in self.unacked if self.visibility else self.unacked.get(tag) is delivery
        if known:
            del self.unacked[tag]
            if requeue:
                self.put(replace(delivery.envelope, redelivered=True))

    def disconnected(self, worker: Worker) -> None:
        """Deliver again what a worker holds whose connection is gone; what it runs goes on."""
        if not self.visibility:
            for delivery in list(self.unacked.values()):
                if delivery.worker is worker:
                    delivery.dropped = not worker.runs(delivery)
                    self.restore(delivery)
            worker.backlog.clear()


class Delivery:
    """A message that a worker has received."""

    def __init__(self, system: System, worker: Worker, envelope: Envelope) -> None:
        system.deliveries += 1
        self.number = system.deliveries
        self.system = system
        self.worker = worker
        self.envelope = envelope
        self.request: Any = None
        #: Whether the worker has forgotten it, not having begun: its connection was lost.
        self.dropped = False

    def take_up(self) -> None:
        """Make Celery's request of it, in the worker's parent process."""
        kind, encoding, body = self.envelope.content
        message = SimpleNamespace(
            headers=self.envelope.headers,
            properties=self.envelope.properties,
            delivery_info={"exchange": "", "routing_key": "celery"},
            body=body,
            content_type=kind,
            content_encoding=encoding,
            payload=self.envelope.payload,
        )
        message.delivery_info["redelivered"] = self.envelope.redelivered
        task = self.system.app.tasks[self.envelope.headers["task"]]
        self.request = symbol_by_name(task.Request)(
            message,
            on_ack=lambda *_: self.system.broker.ack(self),
            on_reject=lambda _, __, requeue: self.system.broker.reject(self, requeue),
            hostname=self.worker.name,
            app=self.system.app,
            task=task,
        )

    def run(self, child: Process) -> None:
        """Run it in a process of the pool, as Celery's ``fast_trace_task`` does."""
        request = self.request
        args, kwargs, embed = self.envelope.payload
        given = pickle.loads(pickle.dumps(request.request_dict))
        given.update(args=args, kwargs=kwargs, is_eager=False, **embed)
        answer = self.system.tracer(request.task)(request.id, args, kwargs, given)
        returned, info = answer[0], answer[1]
        done = (True, returned, 0.0) if info else (False, answer[3], 0.0)
        self.worker.freed(child, self)
        self.system.world.spawn(
            self.worker.parent, lambda: request.on_success(done), self.system.latency()
        )

    def lost(self) -> None:
        """Its process died: what the parent does then."""
        try:
            raise WorkerLostError("killed")
        except WorkerLostError:
            self.request.on_failure(ExceptionInfo())


class Worker:
    """A parent process and its pool."""

    def __init__(self, system: System, name: str, children: int) -> None:
        self.system = system
        self.name = name
        self._count = children
        self.parent: Process
        self.children: dict[Process, Delivery | None]
        self._start()

    def _start(self) -> None:
        self.parent = Process(self.system.world, self.name)
        self.children = dict.fromkeys(self._child() for _ in range(self._count))
        self.backlog: list[Delivery] = []

    def _child(self) -> Process:
        return Process(self.system.world, f"{self.name}.child")

    @property
    def takes(self) -> bool:
        """Whether it takes a message now."""
        running = not self.parent.dead and self.parent.frozen_until <= self.system.world.now
        return running and len(self.backlog) < self._count

    def receive(self, delivery: Delivery) -> None:
        """Hold a message until it is due, then until a process is free."""
        delivery.take_up()
        wait = max(0.0, delivery.envelope.eta - self.system.world.now)
        self.system.world.spawn(self.parent, lambda: self._due(delivery), wait)

    def runs(self, delivery: Delivery) -> bool:
        return delivery in self.children.values()

    def _due(self, delivery: Delivery) -> None:
        if not delivery.dropped:
            self.backlog.append(delivery)
            self._go_on()

    def _go_on(self) -> None:
        for child, busy in self.children.items():
            if busy is None and not child.dead and self.backlog:
                delivery = self.backlog.pop(0)
                self.children[child] = delivery
                delivery.request.on_accepted(child.pid, self.system.world.now)
                self.system.world.spawn(
                    child, lambda child=child, one=delivery: one.run(child), self.system.latency()
                )

    def freed(self, child: Process, delivery: Delivery) -> None:
        if self.children.get(child) is delivery:
            self.children[child] = None
            self.system.world.spawn(self.parent, self._go_on)

    def child_killed(self, child: Process) -> None:
        """The parent notices, some time later, and puts the message back."""
        child.kill()
        self.system.note("killed", by=child.name)
        delivery = self.children.pop(child)
        wait = self.system.world.random.uniform(0.2, 5.0)

        def notice() -> None:
            self.children[self._child()] = None
            if delivery is not None:
                delivery.lost()
            self._go_on()

        self.system.world.spawn(self.parent, notice, wait)

    def killed(self) -> None:
        """All of it dies; it starts again some time later."""
        for process in (self.parent, *self.children):
            process.kill()
            self.system.note("killed", by=process.name)
        self.system.world.at(0.1, lambda: self.system.broker.disconnected(self))
        self.system.world.at(self.system.world.random.uniform(0.5, 10.0), self._start)

    def freeze(self, child: Process, seconds: float, *, whole: bool) -> None:
        frozen = (self.parent, *self.children) if whole else (child,)
        for process in frozen:
            process.freeze(seconds)
            now = self.system.world.now
            self.system.note("stalled", by=process.name, until=now + seconds - EPOCH_S)


class System:
    """All of it, and the history of what happens.

    Args:
        app: the app; what it sends and stores comes here.
        visibility: the broker's visibility timeout; 0: a broker that has none.
        quiet: after how many seconds there are no faults any more.
    """

    def __init__(
        self, world: World, app: Any, visibility: float, chances: Chances, quiet: float
    ) -> None:
        self.world = world
        self.app = app
        self.chances = chances
        self.quiet = EPOCH_S + quiet
        #: How long a copy of a message may be late: twice the visibility timeout, else an hour.
        self.horizon = 2 * visibility or 3600.0
        self.history: list[Operation] = []
        self.deliveries = 0
        self.broker = Broker(self, visibility)
        self.store = StoreByWire(self, MemoryStore(lambda: int(world.now * 1_000_000)))
        self.results = StatesSeen(self)
        self.workers = [Worker(self, f"worker{number}", 2) for number in (1, 2)]
        #: Runs by the record's key and token, and the call of each.
        self.runs: dict[tuple[str, int], tuple[str, str, str]] = {}
        self._tracers: dict[str, Callable[..., Any]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to be delivered, or is being run."""
        return not (
            self.broker.ready
            or self.broker.unacked
            or any(one for worker in self.workers for one in worker.children.values())
            or any(worker.backlog or worker.parent.dead for worker in self.workers)
        )

    def calm_down(self) -> None:
        """Have no more faults."""
        self.quiet = self.world.now

    def tracer(self, task: Any) -> Callable[..., Any]:
        tracer: Callable[..., Any] = task.__trace__
        return tracer

    # --- chance ----------------------------------------------------------------------------------

    def draw(self, chance: float) -> bool:
        return self.world.random.random() < chance

    def latency(self) -> float:
        return self.world.random.uniform(0.001, 0.02)

    def strikes(self, chance: float) -> bool:
        """Whether a fault of that chance happens here."""
        simulated = self._at_work(self.world.process)[0] is not None
        return simulated and self.world.now < self.quiet and self.draw(chance)

    @property
    def by(self) -> str:
        """The process that runs now, and its delivery."""
        process = self.world.process
        delivery = self._at_work(process)[1]
        return process.name if delivery is None else f"{process.name}/{delivery.number}"

    def _at_work(self, process: Process) -> tuple[Worker | None, Delivery | None]:
        for worker in self.workers:
            if process in worker.children:
                return worker, worker.children[process]
            if process is worker.parent:
                return worker, None
        return None, None

    def note(self, what: str, *, by: str | None = None, **fields: Any) -> None:
        """Write down what happens."""
        at = self.world.now - EPOCH_S
        self.history.append(Operation(at, what, by=self.by if by is None else by, **fields))

    def point(self) -> None:
        """Come to a point at which a process may stop or die, and let a little time pass."""
        process = self.world.process
        worker, _ = self._at_work(process)
        if worker is not None and not process.dead:
            if self.strikes(self.chances.kill_worker):
                worker.killed()
                raise Killed
            if process is not worker.parent and self.strikes(self.chances.kill_child):
                worker.child_killed(process)
                raise Killed
            if self.strikes(self.chances.stall):
                seconds = self.world.random.uniform(*self.chances.stalls)
                worker.freeze(process, seconds, whole=self.draw(0.3))
            if self.strikes(self.chances.disconnect):
                self.broker.disconnected(worker)
        self.world.pause(self.latency())

    # --- what the app sends ----------------------------------------------------------------------

    def send(self, message: Any, options: dict[str, Any]) -> None:
        """Take what the app gives to its broker."""
        serializer = options.get("serializer") or self.app.conf.task_serializer
        content = _registry.dumps(message.body, serializer=serializer)
        headers = {**message.headers, **(options.get("headers") or {})}
        envelope = Envelope(headers, dict(message.properties), content)
        self.point()
        kind = headers["task"].rpartition(".")[2]
        # Celery itself has no answer to an errback that can't be sent: the failure is stored anew.
        ours = kind != "errback" and self._is_ours
        if ours and self.strikes(self.chances.refused):
            self.note("away", state="the broker")
            raise OperationalError("the simulated broker is away")
        if kind in ("link", "errback"):
            if self._is_ours or self._delivery is None:  # from the parent, where one is rejected
                sender, until = self._sender(headers), self.world.now + self.horizon - EPOCH_S
                self.note("sent", call=sender, state=kind, value=headers["id"], until=until)
        else:
            self.broker.publish(envelope)
            if self._delivery is None and self.draw(self.chances.published_twice):
                self.broker.publish(envelope)
        self.point()

    @property
    def _is_ours(self) -> bool:
        """Whether what runs here is a task of the library's."""
        return self._delivery is not None and isinstance(
            self._delivery.request.task, IdempotentTask
        )

    @property
    def _delivery(self) -> Delivery | None:
        return self._at_work(self.world.process)[1]

    def _sender(self, headers: dict[str, Any]) -> str:
        delivery = self._delivery
        return str(headers["parent_id"]) if delivery is None else delivery.envelope.call


class StoreByWire:
    """The store as processes see it: a request may not arrive, or its answer may not."""

    def __init__(self, system: System, real: MemoryStore) -> None:
        self._system = system
        self.real = real
        self._frozen_until = 0.0
        for name in _ASKED:
            asked = getattr(real, name, None)
            if asked is not None:
                setattr(self, name, self._over_the_wire(name, asked))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def _over_the_wire(self, name: str, asked: Callable[..., Any]) -> Callable[..., Any]:
        system = self._system

        def ask(*args: Any, **kwargs: Any) -> Any:
            system.point()
            if system.strikes(system.chances.freeze_store):
                self._freeze()
            if self._frozen_until > system.world.now:
                return self._wait_for(asked, args, kwargs)
            if system.strikes(system.chances.request_lost):
                system.note("away", state=f"{name}: request")
                system.world.pause(system.world.random.uniform(0.01, 2.0))
                raise StoreUnavailable("the simulated store is away")
            answer = asked(*args, **kwargs)
            if name == "settle":
                self._settled(args[0], args[1], answer)
            if system.strikes(system.chances.answer_lost):
                system.note("away", state=f"{name}: answer")
                system.world.pause(system.world.random.uniform(0.01, 2.0))
                raise StoreUnavailable("the simulated answer is lost")
            system.point()
            return answer

        return ask

    def _freeze(self) -> None:
        """Let the store stand still: nobody's lease is renewed meanwhile."""
        system = self._system
        seconds = system.world.random.uniform(*system.chances.stalls)
        self._frozen_until = system.world.now + seconds
        for process in system.world.processes:
            if not process.dead:
                system.note("stalled", by=process.name, until=self._frozen_until - EPOCH_S)

    def _wait_for(self, asked: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Have a request lie in the store's sockets, and give it up after a while.

        A claim has a deadline, by the store's clock: one that was given up does nothing.
        """
        system, answers = self._system, []
        left = self._frozen_until - system.world.now
        too_late = asked == self.real.claim and left > _SOCKET_TIMEOUT_S

        def carry_out() -> None:
            if too_late:
                return
            with suppress(StoreError):
                answers.append(asked(*args, **kwargs))
                if asked == self.real.settle:
                    self._settled(args[0], args[1], answers[0])

        system.world.at(left, carry_out)
        system.world.pause(min(left + 0.001, _SOCKET_TIMEOUT_S))
        if not answers:
            system.note("away", state="it stands still")
            raise StoreUnavailable("the simulated store stands still")
        system.point()
        return answers[0]

    def _settled(self, key: str, event: Any, answer: Any) -> None:
        system, record = self._system, event.record
        known = system.runs.get((key, record.token))
        if known is None or not isinstance(answer, Recorded):
            return
        run, call, name = known
        state = record.state
        if state in (State.SUCCEEDED, State.FAILED):
            until = system.world.now + event.ttl_ms / 1000 - EPOCH_S
            system.note("accepted", call=call, key=name, run=run, until=until)
        if state in (State.SUCCEEDED, State.FAILED, State.RELEASED):
            known_for = max(event.ttl_ms / 1000, system.horizon)
            until = system.world.now + known_for - EPOCH_S
            system.note("settled", call=call, key=name, run=run, state=str(state), until=until)


class StatesSeen(Results):
    """The result backend: what it stores is noted."""

    def __init__(self, system: System) -> None:
        super().__init__(system.app)
        self._system = system

    def store_result(self, task_id: Any, result: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        system = self._system
        system.point()
        answer = super().store_result(task_id, result, state, *args, **kwargs)
        kept = self.get_task_meta(task_id, cache=False)
        if kept["status"] == state:
            until = system.world.now + system.horizon - EPOCH_S if state in READY_STATES else 0.0
            value = shown(kept["result"])
            system.note("stored", call=task_id, state=state, value=value, until=until)
        system.point()
        return answer


def shown(result: Any) -> str:
    """Show a result or an error as a history does."""
    if isinstance(result, BaseException):
        return f"{type(result).__name__}: {result}"
    return str(result)
