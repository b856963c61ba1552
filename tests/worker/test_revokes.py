"""The commands that revoke calls free the keys of those that wait for their retry."""

from types import SimpleNamespace

import pytest
from celery.worker import state as worker_state
from celery.worker.control import Panel

from celery_idempotent.worker import request as request_module
from celery_idempotent.worker.request import IdempotentRequest, watch_revokes


@pytest.fixture
def commands(monkeypatch):
    """Celery's commands, watched, as long as a test lasts."""
    monkeypatch.setattr(Panel, "data", dict(Panel.data))
    monkeypatch.setattr(worker_state, "revoked_stamps", {})
    monkeypatch.setattr(request_module, "revoked_stamps", worker_state.revoked_stamps)
    monkeypatch.setattr(worker_state, "revoked", set())
    monkeypatch.setattr(request_module, "revoked_tasks", worker_state.revoked)
    for name in ("revoke", "revoke_by_stamped_headers", "terminate"):
        Panel.data[name] = getattr(Panel.data[name], "__wrapped__", Panel.data[name])
    watch_revokes()
    return Panel.data


class Waiting(IdempotentRequest):
    """A request whose message is held until it is due."""

    def __init__(self, **headers):
        self.id = headers.pop("id", "t")
        self._request_dict = {
            "stamped_headers": list(headers) or None,
            "stamps": headers,
        }
        self.is_free = False

    def free_key(self):
        self.is_free = True


def worker_with(monkeypatch, *requests):
    """What a control command gets of a worker that holds messages."""
    entries = [SimpleNamespace(entry=SimpleNamespace(args=(it,))) for it in requests]
    discarded = []
    waiters = SimpleNamespace(discard=discarded.append)
    monkeypatch.setattr(request_module, "waiters_of", lambda consumer: waiters)
    timer = SimpleNamespace(schedule=SimpleNamespace(queue=entries))
    backend = SimpleNamespace(get_state=lambda _: "SUCCESS")
    state = SimpleNamespace(
        consumer=SimpleNamespace(timer=timer, pool=None), app=SimpleNamespace(backend=backend)
    )
    return state, discarded


@pytest.mark.parametrize(
    ("stamps", "revoked", "free"),
    [
        ({"tenant": "a"}, {"tenant": "a"}, True),
        ({"tenant": "a"}, {"tenant": ["b", "a"]}, True),
        ({"tenant": ["b", "a"]}, {"tenant": ["a"]}, True),
        ({"tenant": "a", "batch": 7}, {"batch": 7}, True),
        ({"tenant": "a"}, {"tenant": ["b"]}, False),
        ({"tenant": "a"}, {"batch": ["a"]}, False),
        ({"tenant": None}, {"tenant": ["a"]}, False),
        ({}, {"tenant": ["a"]}, False),
    ],
)
def test_a_stamp_revokes_what_celery_discards_for_it(commands, monkeypatch, stamps, revoked, free):
    # Given
    request = Waiting(**stamps)
    state, discarded = worker_with(monkeypatch, request)
    # When
    commands["revoke_by_stamped_headers"](state, revoked)
    # Then
    assert request.is_free is free
    assert discarded == ([request] if free else [])


@pytest.mark.parametrize(("name", "more"), [("revoke", ()), ("terminate", ("TERM",))])
def test_an_id_is_revoked_by_either_command(commands, monkeypatch, name, more):
    # Given
    mine, other = Waiting(id="a"), Waiting(id="b")
    state, discarded = worker_with(monkeypatch, mine, other)
    # When
    commands[name](state, *more, ["a"])
    # Then
    assert (mine.is_free, other.is_free) == (True, False)
    assert discarded == [mine]


def test_a_command_is_watched_once(commands):
    # Given
    before = dict(commands)
    # When
    watch_revokes()
    # Then
    assert commands == before


def test_a_copy_does_not_hide_the_run_that_is_to_be_terminated(commands, monkeypatch):
    """Celery knows one request of each id: that of the copy, or none once the copy has left."""
    # Given
    ended = []

    class Running(Waiting):
        time_start = 0.0

        def terminate(self, pool, signal=None):
            ended.append(self)

    run, copy = Running(id="a"), Running(id="a")
    run.time_start, copy.time_start = 1.0, 2.0
    monkeypatch.setattr(worker_state, "active_requests", {copy, run})
    worker_state.requests["a"] = copy
    state, _ = worker_with(monkeypatch)
    # When
    commands["revoke"](state, ["a"], terminate=True)
    # Then
    assert ended == [run]
    worker_state.requests.pop("a")
