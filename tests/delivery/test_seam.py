"""Whatever a task is made of, its calls come through the guard, and its endings count."""

import functools
import gc
import json
import os
import sys
import time
import uuid
from uuid import uuid4

import pytest
from celery import Celery, Task, chain, chord, group, signals
from celery.app.trace import build_tracer
from celery.exceptions import Retry, SoftTimeLimitExceeded

from celery_idempotent import (
    ClaimLost,
    ConfigurationError,
    IdempotencyError,
    IdempotencyInProgress,
    IdempotentTask,
    State,
)
from celery_idempotent.core.message import OWN, own_header
from celery_idempotent.core.record import Record
from celery_idempotent.delivery.attempt import Attempt
from celery_idempotent.delivery.delivery import Delivery
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.run.context import RunContext
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.lease import Lease
from celery_idempotent.run.run import Run
from celery_idempotent.run.telling import Telling, ToldRun
from celery_idempotent.settings import environment_of, everywhere
from celery_idempotent.stores.memory import MemoryStore


@pytest.fixture
def app(request):
    app = Celery(f"seam-{id(request)}", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_store_url=f"memory://{uuid4().hex}")
    app.task = functools.partial(app.task, shared=False)
    return app


@pytest.fixture
def ran():
    return []


def deliver(task, *args, task_id=None, retries=0, **more):
    """Have a worker's tracer run one delivery; give the state it leaves and what it answers."""
    task_id = task_id or uuid.uuid4().hex
    if task.__trace__ is None:
        task.__trace__ = build_tracer(task.name, task, app=task.app)
    request = {"id": task_id, "retries": retries, "delivery_info": {}, "hostname": "h", **more}
    answer = task.__trace__(task_id, list(args), {}, request)
    if answer.info is None:
        return "SUCCESS", answer.retval
    return answer.info.state, answer.info.retval


def test_a_class_that_was_registered_without_a_name_is_guarded(app, ran):
    """Celery gives the name to the instance, and the class has none."""

    # Given
    class Charge(IdempotentTask):
        idempotency_key = "order:{order}"

        def run(self, order):
            ran.append(order)
            return order

    task = app.register_task(Charge())
    # When
    answers = [deliver(task, 1), deliver(task, 1)]
    # Then
    assert answers == [("SUCCESS", 1)] * 2
    assert ran == [1]


def test_the_options_of_a_class_without_a_name_are_checked(app):
    """When it is registered, as for every other."""

    class Charge(IdempotentTask):
        idempotency_key = "order:{nonsense}"

        def run(self, order):
            """Do nothing."""

    with pytest.raises(ConfigurationError, match="nonsense"):
        app.register_task(Charge())


def test_instances_of_one_class_with_names_of_their_own_share_no_key(app, ran):
    """They are two tasks: neither is answered with what the other did."""

    # Given
    class Send(IdempotentTask):
        def run(self, order):
            ran.append(self.name)
            return self.name

    mail, letter = Send(), Send()
    mail.name, letter.name = "mail", "letter"
    tasks = [app.register_task(mail), app.register_task(letter)]
    # When
    answers = [deliver(task, 1) for task in tasks * 2]
    # Then
    assert answers == [("SUCCESS", "mail"), ("SUCCESS", "letter")] * 2
    assert ran == ["mail", "letter"]


class FlaskTask(Task):
    """As the documentation of Flask has it: it runs the body by itself."""

    abstract = True

    def __call__(self, *args, **kwargs):
        return self.run(*args, **kwargs)


class CooperativeTask(Task):
    """A mixin that leaves the run to whoever is next."""

    abstract = True

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


@pytest.mark.parametrize(
    ("bases", "hint"),
    [
        ((FlaskTask, IdempotentTask), "super"),
        ((IdempotentTask, FlaskTask), "before IdempotentTask"),
        ((IdempotentTask, CooperativeTask), "before IdempotentTask"),
    ],
)
def test_a_call_that_would_pass_by_the_guard_is_refused(app, bases, hint):
    """A class whose ``__call__`` runs the body, or would be left out, is said to be wrong."""
    base = type("Base", bases, {"abstract": True})

    @app.task(base=base)
    def charge(order):
        """Do nothing."""

    with pytest.raises(ConfigurationError, match=hint):
        charge.apply((1,))


def test_a_call_that_goes_on_to_the_guard_is_fine(app, ran):
    """A mixin before ``IdempotentTask`` that calls ``super().__call__``."""

    # Given
    class Base(CooperativeTask, IdempotentTask):
        abstract = True

    @app.task(base=Base)
    def charge(order):
        ran.append(order)

    # When
    deliver(charge, 1)
    deliver(charge, 1)
    # Then
    assert ran == [1]


def test_arguments_that_do_not_fit_what_the_task_says_never_reach_its_body(app, ran):
    """A decorator that adds an argument hides what the task takes: it fails, and doesn't run."""

    # Given
    def with_session(function):
        @functools.wraps(function)
        def inner(*args):
            return function("session", *args)

        return inner

    @app.task(base=IdempotentTask, typing=False)
    @with_session
    def charge(session, order):
        ran.append(order)

    # When
    state, error = deliver(charge, 1)
    # Then
    assert (state, type(error)) == ("FAILURE", TypeError)
    assert not ran


@pytest.mark.parametrize("spent", [0, 1])
def test_a_retry_that_was_made_by_hand_runs(app, ran, spent):
    """Also one that spends no retry: its message is not taken for an old copy."""

    # Given
    @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order}")
    def poll(self, order):
        ran.append(order)
        if len(ran) == 1:
            signature = self.signature_from_request(retries=self.request.retries + spent)
            raise Retry(sig=signature, when=0)
        return "done"

    assert deliver(poll, 1, task_id="t")[0] == "RETRY"
    # When
    answer = deliver(poll, 1, task_id="t", retries=spent)
    # Then
    assert answer == ("SUCCESS", "done")
    assert len(ran) == 2


def test_a_retry_without_a_message_leaves_the_run_to_the_next_copy(app, ran):
    """Nobody knows which attempt comes next: a redelivered copy of this one is not refused."""

    # Given
    @app.task(base=IdempotentTask, idempotency_key="order:{order}")
    def poll(order):
        ran.append(order)
        if len(ran) == 1:
            raise Retry
        return "done"

    deliver(poll, 1, task_id="t")
    # When
    answer = deliver(poll, 1, task_id="t", delivery_info={"redelivered": True})
    # Then
    assert answer == ("SUCCESS", "done")


def test_a_process_that_the_body_forked_ends_nothing(app):
    """It leaves through the same code, and the run goes on in the process that began it."""

    # Given
    @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order}")
    def forks(self, order):
        child = os.fork()
        if child == 0:
            sys.exit()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    me = os.getpid()
    # When
    try:
        answer = deliver(forks, 1)
    finally:
        if os.getpid() != me:
            record = forks.idempotency_record(1)
            live = environment_of(app).store.now_ms() + 1000 < record.until_ms
            os._exit(0 if record.state is State.RUNNING and live else 1)
    # Then
    assert answer == ("SUCCESS", 0)
    assert forks.idempotency_record(1).state is State.SUCCEEDED


def test_a_soft_time_limit_while_the_chain_is_sent_does_not_lose_it(app, ran, monkeypatch):
    """The task is done: its message goes back, and the next delivery sends what hangs on it."""

    # Given
    @app.task(name="tail")
    def tail(value):
        """Do nothing."""

    @app.task(base=IdempotentTask, idempotency_key="order:{order}")
    def charge(order):
        ran.append(order)
        return order

    def hangs(*args, **kwargs):
        raise SoftTimeLimitExceeded(10)

    link = dict(tail.s())
    with monkeypatch.context() as patch:
        patch.setattr(tail, "apply_async", hangs)
        assert deliver(charge, 1, task_id="t", callbacks=[link])[0] == "REJECTED"
    sent = []
    monkeypatch.setattr(tail, "apply_async", lambda args, *_, **__: sent.append(args))
    # When
    answer = deliver(charge, 1, task_id="t", callbacks=[link])
    # Then
    assert answer == ("SUCCESS", 1)
    assert ran == [1]
    assert sent == [(1,)]


def test_a_claim_that_was_given_up_is_undone_however_long_the_store_is_away(app, monkeypatch):
    """Longer than a lease, too: else a body that never ran would count as an interruption."""

    # Given
    @app.task(
        base=IdempotentTask, idempotency_key="order:{order}", idempotency_on_interrupted="unknown"
    )
    def charge(order):
        """Do nothing."""

    def lost(*args):
        raise StoreUnavailable("the answer was lost")

    jobs = []
    monkeypatch.setattr(environment_of(app).store, "claim", lost)
    monkeypatch.setattr(
        heartbeat, "later", lambda tell, what, for_s, **_: jobs.append((what, for_s))
    )
    # When
    deliver(charge, 1)
    # Then
    assert [for_s for what, for_s in jobs if "given up" in what] == [86400.0]


def test_a_soft_time_limit_after_the_body_does_not_cost_its_result(app, ran, monkeypatch):
    """It comes once, and while the result is recorded it is too late: the effect happened."""

    # Given
    @app.task(base=IdempotentTask, idempotency_key="order:{order}")
    def charge(order):
        ran.append(order)
        return {"order": order}

    prepare, left = charge.backend.prepare_value, [SoftTimeLimitExceeded(10)]

    def cut_off(value):
        if left:
            raise left.pop()
        return prepare(value)

    monkeypatch.setattr(charge.backend, "prepare_value", cut_off)
    # When
    answers = [deliver(charge, 1), deliver(charge, 1)]
    # Then
    assert answers == [("SUCCESS", {"order": 1})] * 2
    assert ran == [1]


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_failure_that_is_too_large_to_keep_is_told_as_a_failure(app, ran, serializer):
    """A duplicate is never told that a call which failed was done."""
    # Given
    app.conf.update(result_serializer=serializer, result_accept_content=[serializer])

    @app.task(base=IdempotentTask, idempotency_store_failures=True, idempotency_max_result_size=100)
    def charge(order):
        ran.append(order)
        raise ValueError("declined " + "x" * 5000)

    deliver(charge, 1)
    # When
    state, error = deliver(charge, 1)
    # Then
    assert ran == [1]
    assert state == "FAILURE"
    assert not isinstance(error, IdempotencyError)
    assert "ValueError" in repr(error) and "declined" in str(error)
    assert len(str(error)) < 2000


@pytest.mark.parametrize(
    ("hanging", "messages"),
    [
        (lambda part: [part.si(1)], 1),
        (lambda part: [part.si(1), part.si(1)], 2),
        (lambda part: [group([part.si(1), part.si(2)])], 2),
        (lambda part: [chain([part.si(1), part.si(2)])], 1),
        (lambda part: [chord([part.si(1), part.si(2)], part.si(3))], 2),
    ],
    ids=["a link", "two links", "a group", "a chain", "a chord"],
)
def test_what_hangs_on_a_task_and_is_sent_again_is_the_same_messages(app, hanging, messages):
    """Ids come of the task's and the place: MESSAGE_ID on the linked task tells the two apart."""
    # Given
    sent = []

    @app.task(name="part")
    def part(value):
        """Do nothing."""

    @app.task(base=IdempotentTask, idempotency_key="order:{order}")
    def charge(order):
        return order

    @signals.before_task_publish.connect(weak=False)
    def look(headers, **_):
        sent.append(headers["id"])

    links = json.loads(json.dumps(hanging(part)))  # as a message brings them
    store = environment_of(app).store
    store.note = lambda *args: None  # the process stalls before that
    # When
    try:
        for _ in range(2):
            deliver(charge, 1, task_id="t", callbacks=links)
            key = next(iter(store._records))
            held = Record.unpack(store._records[key][0])
            store.end_lease(key, held.owner, held.process)
    finally:
        signals.before_task_publish.disconnect(look)
    # Then
    assert len(sent) == 2 * messages
    assert sent[:messages] == sent[messages:]
    assert len({*sent}) == messages


@pytest.mark.parametrize("redelivered", [False, True])
def test_a_copy_of_a_running_message_tells_no_failure_in_an_outage(app, redelivered):
    """With "raise" a call fails while the store is away, but not over its own run's head."""

    # Given
    @app.task(base=IdempotentTask, idempotency_on_store_error="raise")
    def charge(order):
        """Do nothing."""

    def away(*args):
        raise StoreUnavailable("away")

    environment_of(app).store.claim = away
    # When
    state, _ = deliver(charge, 1, delivery_info={"redelivered": redelivered})
    # Then
    assert state == ("IGNORED" if redelivered else "FAILURE")


def test_a_zombie_sends_no_callbacks_that_a_copy_of_its_message_has_sent(app, monkeypatch):
    """Its message comes once more, and its callbacks' note is asked."""
    # Given
    began, seen, sent = [], [], []
    store = environment_of(app).store

    @app.task(name="tail")
    def tail(value):
        """Do nothing."""

    @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order}")
    def charge(self, order):
        began.append(self.request.id)
        if len(began) > 1:
            return "winner"
        key = next(iter(store._records))
        stalled = Record.unpack(store._records[key][0])
        store.end_lease(key, stalled.owner, stalled.process)
        seen.append(deliver(self, 1, task_id="duplicate"))
        seen.append(deliver(self, 1, task_id="t", callbacks=[link]))
        return "zombie"

    link = dict(tail.s())
    monkeypatch.setattr(tail, "apply_async", lambda args, *_, **__: sent.append(args))
    # When
    state, _ = deliver(charge, 1, task_id="t", callbacks=[link])
    again = deliver(charge, 1, task_id="t", callbacks=[link])
    # Then
    assert seen == [("SUCCESS", "winner")] * 2
    assert (state, again[0]) == ("IGNORED", "SUCCESS")
    assert sent == [("winner",)]


@pytest.mark.parametrize("links", [(), ("chain",)], ids=["alone", "with a chain"])
def test_a_delivery_leaves_nothing_to_the_garbage_collector(app, links):
    """A run and a replay end with their last name: a cycle would have each wait for a collection.

    A lease that nobody holds any more is not renewed; with a cycle it would be, for a while.
    """

    # Given a body that looks at its own run
    @app.task(base=IdempotentTask, bind=True, idempotency_key="{order}")
    def charge(self, order):
        return self.idempotency.attempt

    @app.task(base=IdempotentTask, idempotency_key="{order}")
    def after(order):
        return order

    more = {"chain": [after.si(1)]} if links else {}
    deliver(charge, 0, **more)
    first = uuid.uuid4().hex
    ours = (Delivery, Attempt, Telling, ToldRun, Run, Lease, RunContext)
    gc.collect()
    gc.disable()
    try:
        # By its type: an object that stands for another, such as settings, may answer for that.
        before = [one for one in gc.get_objects() if issubclass(type(one), ours)]
        # When
        assert deliver(charge, 7, task_id=first, **more) == ("SUCCESS", 1)
        assert deliver(charge, 7, **more) == ("SUCCESS", 1)
        assert deliver(charge, 7, task_id=first, **more) == ("SUCCESS", 1)
        # Then
        left = [one for one in gc.get_objects() if issubclass(type(one), ours)]
        assert [type(one).__name__ for one in left if one not in before] == []
    finally:
        gc.enable()


class Timed(MemoryStore):
    """A store that knows when it was last asked for a key."""

    def claim(self, key, ask):
        self.asked_at = time.monotonic()
        return super().claim(key, ask)


def test_a_lease_runs_from_when_it_was_asked_for(app):
    """However late the answer comes: the store may have given it at once."""
    # Given
    store, renewed = Timed(), []

    @app.task(base=IdempotentTask, idempotency_key="order:{order}")
    def charge(order):
        mine = [lease for lease in heartbeat.leases() if lease.key.endswith("order:2}")]
        renewed.extend(lease.renewed for lease in mine)

    # When
    with everywhere(store):
        charge.apply((2,))
    # Then
    assert len(renewed) == 1
    assert renewed[0] <= store.asked_at


def test_a_retry_with_a_key_of_its_own_fails(app):
    """Its call keeps its key; the option would be ignored in silence."""

    # Given
    @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order}")
    def charge(self, order):
        raise self.retry(idempotency_key="another")

    # When
    state, error = deliver(charge, 1)
    # Then
    assert (state, type(error)) == ("FAILURE", ConfigurationError)
    assert "takes no idempotency_key" in str(error)


@pytest.mark.parametrize(
    ("problem", "why"),
    [(StoreUnavailable, StoreUnavailable), (None, IdempotencyInProgress)],
    ids=["the store is away", "the key is busy"],
)
def test_a_call_that_waits_says_what_for(app, monkeypatch, problem, why):
    """Its caller, and whoever looks at its state, can tell an outage from a key that is busy."""
    # Given
    app.conf.task_default_queue = f"q{uuid4().hex}"
    answers, first, second = [], uuid4().hex, uuid4().hex

    @app.task(base=IdempotentTask, idempotency_key="order:{order}")
    def charge(order):
        if problem is None and not answers:
            answers.append(deliver(charge, 1, task_id=second))

    def away(*args):
        raise problem("not there")

    if problem is not None:
        monkeypatch.setattr(environment_of(app).store, "claim", away)
    # When
    deliver(charge, 1, task_id=first)
    # Then
    meta = app.backend.get_task_meta(second if answers else first)
    assert meta["status"] == "RETRY"
    assert type(meta["result"]) is why
    assert "waiting" in str(meta["result"])
    assert "waiting" in meta["traceback"]


def test_a_retry_is_stored_with_its_traceback(app):
    """As Celery stores it: pages that show progress read in it when the next attempt is due."""
    # Given
    app.conf.task_default_queue = f"q{uuid4().hex}"

    @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order}")
    def charge(self, order):
        raise self.retry(countdown=3)

    task_id = uuid4().hex
    # When
    deliver(charge, 1, task_id=task_id)
    # Then
    meta = app.backend.get_task_meta(task_id)
    assert meta["status"] == "RETRY"
    assert "Retry in 3s" in meta["traceback"]


TRACED = {"headers": {"trace-id": "1"}}


def test_a_tracer_nests_the_headers_of_a_message(app, ran):
    """Where a message has a table ``headers``, Celery hides all others from the task."""

    # Given
    @app.task(base=IdempotentTask, idempotency_key="order:{order}")
    def charge(order):
        ran.append(order)

    # When
    for key in ("a", "a", "b"):
        deliver(charge, 1, **{"idempotency-key": key}, **TRACED)
    # Then
    assert ran == [1, 1]


@pytest.mark.parametrize("mode", ["enforce", "off"])
def test_a_tracer_nests_the_headers_and_a_retry_keeps_them(app, mode):
    """Also while the library is switched off, and with headers of the retry's own."""
    # Given
    seen = []

    @app.task(
        base=IdempotentTask, idempotency_key="order:{order}", idempotency_mode=mode, bind=True
    )
    def charge(self, order):
        for given in ({}, {"headers": {"x-shop": "1"}}):
            seen.append(self.signature_from_request(**given).options["headers"])

    own = own_header("t", None)
    # When
    nested = {"headers": {**TRACED["headers"], "x-death": [{"count": 1}]}}
    deliver(charge, 1, task_id="t", **{"Idempotency-Key": "a", OWN: own}, **nested)
    # Then
    assert not any("x-death" in it for it in seen)
    assert [(it["Idempotency-Key"], it[OWN]) for it in seen] == [("a", own)] * 2
    assert "trace-id" in seen[0] and "x-shop" in seen[1]


@pytest.mark.parametrize(
    ("mode", "key", "why"),
    [
        ("enforce", "order", "its body did not run"),
        ("enforce", None, "has no key"),
        ("off", "order", "'off'"),
    ],
)
def test_a_handler_is_told_why_nothing_is_held(app, mode, key, why):
    """``on_success`` is called for a duplicate as for a run, and may ask."""
    # Given
    asked = []

    class Base(IdempotentTask):
        abstract = True

        def on_success(self, *args):
            asked.append(self.idempotency)

    @app.task(base=Base, idempotency_key=lambda order: key, idempotency_mode=mode)
    def charge(order):
        """Do nothing."""

    # When
    deliver(charge, 1)
    deliver(charge, 1)
    # Then
    with pytest.raises(ClaimLost, match=why):
        asked[-1].check()
    assert [it.replayed for it in asked] == [False, (mode, key) == ("enforce", "order")]


def test_what_is_asked_outside_of_a_call_is_not_kept_for_one(app, ran):
    """Celery copies the request that stands there between calls into that of a direct call."""

    # Given
    @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order}")
    def charge(self, order):
        ran.append(self.idempotency.key)

    # When
    outside = charge.idempotency
    charge(1)
    charge(2)
    # Then
    assert outside.key is None
    assert ran == ["order:1", "order:2"]
