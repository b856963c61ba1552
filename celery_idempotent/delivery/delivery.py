"""One delivery of a message whose call has a key, as the value that all others here take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from celery.exceptions import Retry

from celery_idempotent import observers
from celery_idempotent.core.keys import CallKey, Owner, identity_of, record_key
from celery_idempotent.core.message import WaitState, explicit_key, goes_on, read_request
from celery_idempotent.core.options import Options
from celery_idempotent.core.record import Label
from celery_idempotent.core.verdicts import NEVER_MS
from celery_idempotent.run.claimant import Claimant, Terms
from celery_idempotent.run.context import RunContext
from celery_idempotent.run.journal import Subject
from celery_idempotent.run.run import Run
from celery_idempotent.run.steps import Steps
from celery_idempotent.run.telling import Telling
from celery_idempotent.settings import Environment, TaskSetup


@dataclass(slots=True)
class RequestState:
    """What is kept on Celery's request of a delivery, in this process, from the guard on.

    Celery copies it into the requests of direct calls that are made within the body.
    """

    #: The call's key, and how its message has waited: what is published again takes both along.
    call: tuple[CallKey | None, WaitState] | None = None
    #: What the body gets as ``self.idempotency``, or what makes it at first use.
    context: RunContext | Callable[[], RunContext] | None = None
    #: The retry that the body has published: its next attempt answers the call.
    retry: Retry | None = None
    #: Whether the body ran without a claim: no other delivery finds its outcome.
    is_open: bool = False


def state_of(request: Any) -> RequestState | None:
    """Return what is kept on a request; ``None``: the guard has not been entered."""
    state: RequestState | None = request.__dict__.get("_idempotency")
    return state


def identify(
    task: Any,
    setup: TaskSetup,
    request: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    task_id: str | None = None,
) -> tuple[CallKey | None, WaitState]:
    """Return the key of a message without our header: it is derived from its arguments.

    Raises:
        KeyDerivationError: no key can be derived.
        TypeError: the arguments do not fit the task.
    """
    explicit = explicit_key(vars(request))
    task_id = task_id or request.id
    key = setup.scheme.derive(args, kwargs, task_id=task_id, explicit=explicit, task=task)
    return key, WaitState()


def ignores_result(task: Any, request: Any) -> bool:
    """Whether nobody will get the result of a call."""
    # The caller's choice is in the request; without one, the task's option counts.
    chosen = request.__dict__.get("ignore_result")
    return bool(task.ignore_result if chosen is None else chosen)


@dataclass(slots=True)
class Delivery:
    """One delivery of a message whose call has a key."""

    #: The task instance; its ``run`` is the body.
    task: Any
    options: Options
    environment: Environment
    #: Celery's request of this delivery.
    request: Any
    call_key: CallKey
    #: How the message has waited so far.
    waits: WaitState
    #: Whether it is an eager call, in the process of its caller: no copy of it can come.
    eager: bool
    #: What is kept on the request.
    state: RequestState
    #: Whether the broker says that it delivers the message again.
    redelivered: bool
    #: What it asks of the store.
    claimant: Claimant
    #: Makes what its body, or a handler, gets as ``self.idempotency``: see :func:`_run_context`.
    context_of: Callable[..., RunContext]
    #: Tells the journal and the observers what becomes of it.
    telling: Telling

    @classmethod
    def of(
        cls,
        task: Any,
        setup: TaskSetup,
        request: Any,
        state: RequestState,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Delivery | None:
        """Make it of a request, and keep its key in ``state``; ``None``: the call has no key.

        Raises:
            KeyDerivationError: no key can be derived, or the message's headers are malformed.
            TypeError: the arguments do not fit the task.
        """
        own, owner, message, called_back = read_request(request)
        if own is None:
            own = identify(task, setup, request, args, kwargs)
        call_key, waits = state.call = own
        if call_key is None:
            return None
        environment = setup.environment
        eager = bool(request.is_eager)
        redelivered = bool((request.delivery_info or {}).get("redelivered"))
        terms = environment.terms.get(setup)
        if terms is None:
            terms = environment.terms[setup] = _terms(setup, environment)
        options, label = setup.options, ""
        traced = "" if observers.span_name is None else observers.span_name()
        # Whether the call may end without a result that others could have, too.
        alone = setup.reserves and bool(request.expires or ignores_result(task, request))
        if call_key.label or traced or alone or call_key.namespace != task.name:
            label = Label(task.name, call_key.label, traced, alone).text()
        key = record_key(environment.prefix, call_key)
        claimant = Claimant(
            terms,
            key,
            owner.pack(),
            message.retries,
            call_key.fingerprint,
            call_key.checked,
            label,
            "" if eager else owner.slip_key(key),
            message,
            called_back,
            not (waits.publication or waits.count or redelivered),
            waits.patient_until_ms,
            waits.compensates_only,
        )
        if terms.in_turn:
            claimant.checked = False
        if terms.latest:
            claimant.came_ms = waits.since_ms
        if waits.awaited is not None and (waits.displaced or not terms.in_turn):
            awaited = Owner(*waits.awaited)
            claimant.awaited, claimant.awaited_key = awaited.pack(), awaited.slip_key(key)
        delivery = cls(
            task,
            options,
            environment,
            request,
            call_key,
            waits,
            eager,
            state,
            redelivered,
            claimant,
            partial(_run_context, call_key, claimant, request.id),
            Telling(
                environment.journal,
                Subject(key, task.name, request.id, call_key.label, request.hostname, waits.count),
                call_key.readable,
                task,
                options.mode == "shadow",
            ),
        )
        if options.on_running != "wait" or waits.since_ms or not options.wait_timeout:
            claimant.refused_from_ms = delivery._refused_from_ms(owner)
        return delivery

    def _refused_from_ms(self, owner: Owner) -> int:
        """Return from when on another call's run has it refused: see :attr:`.Claim`."""
        waits, timeout = self.waits, self.options.wait_timeout
        if owner.nesting and (waits.awaited is None or waits.awaited[0] == owner.task_id):
            return NEVER_MS  # it waits for its own call, which is about to end
        if self.policy != "wait" or not timeout:
            return 0
        return waits.since_ms + ceil(timeout * 1000) if waits.since_ms else NEVER_MS

    @property
    def policy(self) -> str:
        """What happens where another call's run has the key: see ``idempotency_on_running``."""
        nesting = self.request.replaced_task_nesting
        if self.waits.count or self.redelivered or goes_on(self.claimant.retries, nesting):
            return "wait"  # it is not the first delivery of its call
        return self._policy_of_first

    def may_be_refused(self, outage: bool) -> bool:
        """Whether a copy of this message may be refused, or dropped, while this one has to wait.

        Args:
            outage: whether it waits for the store. Then no copy can be refused, but one that was
                dropped just now.
        """
        return self._policy_of_first in (("drop",) if outage else ("drop", "raise"))

    @property
    def _policy_of_first(self) -> str:
        request, policy = self.request, self.options.on_running
        # What hangs on it needs an answer.
        hanging = request.chord or request.chain or request.callbacks
        return "wait" if policy == "drop" and hanging else policy

    @property
    def name(self) -> str:
        """The key, for messages."""
        return f"{self.call_key.namespace}:{self.call_key.readable}"


def _terms(setup: TaskSetup, environment: Environment) -> Terms:
    options = setup.options
    # With reconcile, what cut a run off is looked into before anybody calls it unknown.
    unknown = options.on_interrupted == "unknown" and options.reconcile is None
    return Terms(
        environment.store,
        lease_s=options.lease,
        ttl_s=options.ttl,
        horizon_s=environment.horizon,
        max_interruptions=0 if unknown else options.max_interruptions,
        max_compensations=options.max_interruptions,
        in_turn=options.after_wait in ("run", "last"),
        latest=options.after_wait == "last",
        reserves=setup.reserves,
    )


def _run_context(
    call_key: CallKey,
    claimant: Claimant,
    task_id: str,
    run: Run | None = None,
    steps: Steps | None = None,
    *,
    why: str = "",
    replayed: bool = False,
) -> RunContext:
    """Make a body's, or a handler's, ``self.idempotency``.

    It is made when it is asked for. Nothing in it leads back to the request: each delivery would be
    a cycle, and wait for the garbage collector.

    Args:
        why: why there is no run.
        replayed: whether the delivery is answered with the outcome of a run that has ended.
    """
    began = ""
    if claimant.terms.frees:
        origin = "" if run is None else run.origin
        began = origin or claimant.owner.hex()
    return RunContext(
        key=call_key.key,
        identity=identity_of(call_key, began),
        owner_id=task_id,
        retries=claimant.retries,
        run=run,
        steps=steps,
        why=why,
        store=lambda: claimant.terms.store,
        replayed=replayed,
    )
