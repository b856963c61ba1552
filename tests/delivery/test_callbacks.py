"""What is done around Celery's tracer."""

import gc
import logging
import pickle
from uuid import uuid4

import pytest
from billiard.einfo import Traceback
from celery import Celery
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject

#: How much a pipe holds on Linux, in bytes.
PIPE = 65536


@pytest.fixture
def app():
    return Celery("callbacks", broker="memory://", backend="cache+memory://")


def fails(task, order):
    raise ValueError("declined")


def retries(task, order):
    raise task.retry(countdown=9)


def is_ignored(task, order):
    raise Ignore


def is_rejected(task, order):
    raise Reject("no", requeue=False)


def is_busy(task, order):
    """A duplicate comes while it runs, and has to wait."""
    deliver(task, order)
    return "paid"


def deliver(task, order):
    """Deliver a call as a process of the pool does it; return what the parent gets."""
    task_id = uuid4().hex
    request = {"id": task_id, "retries": 0, "delivery_info": {}, "hostname": "h"}
    task.__trace__ = build_tracer(task.name, task, app=task.app)
    return task.__trace__(task_id, [order], {}, request)


@pytest.mark.parametrize("body", [fails, retries, is_ignored, is_rejected, is_busy])
def test_what_a_delivery_raised_is_freed_when_it_returns(guarded, body):
    """Its traceback takes hundreds of kB, and garbage is collected late."""
    # Given
    task = guarded(body)
    logging.disable()  # pytest keeps what is logged
    gc.collect()
    gc.disable()
    try:
        before = tracebacks()
        # When
        deliver(task, 1)
        # Then
        assert tracebacks() == before
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("body", [fails, retries, is_ignored, is_rejected, None])
def test_what_the_parent_is_told_fits_into_a_pipe(guarded, body):
    """It is read at once then: Celery forgets a half that it has read when its broker is lost."""
    # Given
    answers = []

    def is_overtaken(task, order):
        answers.append(deliver(task, order))  # a duplicate, which has to wait

    task = guarded(body or is_overtaken)
    # When
    answers.append(deliver(task, 1))
    told = answers[0]
    # Then
    assert len(pickle.dumps((1, told.retval, told.runtime))) < PIPE / 4
    assert type(told.info.retval).__name__ in told.retval.traceback


def tracebacks():
    """How many there are that Celery has made to be sent to the parent."""
    return sum(type(one) is Traceback for one in gc.get_objects())
