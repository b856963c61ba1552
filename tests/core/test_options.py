"""Options and settings: their defaults, what each may be, and what is said of a wrong one."""

import ast
import dataclasses
import inspect
import re
from datetime import timedelta
from typing import Any

import pytest

from celery_idempotent.core import options as module
from celery_idempotent.core.options import (
    Options,
    Settings,
    check_call,
    check_plain,
    check_settings,
    check_unknown,
    option_names,
    setting_names,
)
from celery_idempotent.errors import ConfigurationError


async def _async(order: int) -> None:
    """Ask somebody."""


def options(**values: Any) -> Options:
    return Options.from_lookup({f"idempotency_{k}": v for k, v in values.items()}.get, "task 't'")


def app_settings(**values: Any) -> Settings:
    return Settings.from_lookup({f"idempotency_{k}": v for k, v in values.items()}.get, "the app")


def test_nothing_set_gives_the_defaults() -> None:
    """They are part of the promise: a change of one is a change of behaviour."""
    expected: dict[str, Any] = {
        "key": None,
        "namespace": None,
        "fingerprint": None,
        "redact_key": False,
        "ttl": 86400.0,
        "lease": 30.0,
        "on_running": "wait",
        "wait_timeout": 3600.0,
        "on_interrupted": "rerun",
        "max_interruptions": 3,
        "store_failures": False,
        "on_store_error": "retry",
        "max_result_size": 1048576,
        "mode": "enforce",
    }
    assert {name: getattr(options(), name) for name in expected} == expected
    expected = {"store_url": None, "store_options": {}, "key_prefix": "idempotent", "events": True}
    assert {name: getattr(app_settings(), name) for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("ttl", 60, 60.0),
        ("ttl", 0.1, 0.1),
        ("ttl", 0, 0.0),
        ("ttl", timedelta(0), 0.0),
        ("ttl", timedelta(hours=1), 3600.0),
        ("ttl", timedelta(days=3650), 315360000.0),
        ("lease", 0.1, 0.1),
        ("lease", timedelta(milliseconds=1500), 1.5),
        ("wait_timeout", 0, 0.0),
        ("on_running", "raise", "raise"),
        ("on_running", "drop", "drop"),
        ("on_interrupted", "unknown", "unknown"),
        ("max_interruptions", 0, 0),
        ("store_failures", True, True),
        ("store_failures", (ValueError,), (ValueError,)),
        ("store_failures", [ValueError, KeyError], (ValueError, KeyError)),
        ("store_failures", ValueError, (ValueError,)),
        ("store_failures", (), ()),
        ("on_store_error", "raise", "raise"),
        ("on_store_error", "run", "run"),
        ("max_result_size", 1, 1),
        ("max_result_size", 512 * 1024 * 1024, 512 * 1024 * 1024),
        ("mode", "off", "off"),
        ("redact_key", True, True),
        ("key", ("order_id",), ("order_id",)),
        ("namespace", "billing", "billing"),
        ("fingerprint", ["amount"], ("amount",)),
        ("fingerprint", (), ()),
    ],
)
def test_a_right_value_is_kept_in_one_form(name: str, value: Any, kept: Any) -> None:
    """Durations are seconds as float, lists are tuples."""
    result = getattr(options(**{name: value}), name)
    assert result == kept
    assert type(result) is type(kept)


@pytest.mark.parametrize(
    ("name", "value", "may_be"),
    [
        *[
            (name, value, f"must be {zero}seconds (a number) or a timedelta, at least 0.1 s")
            for name, zero in (("ttl", "0, or "), ("lease", ""))
            for value in (-1, 0.09, True, False, "30", float("nan"), float("inf"), 4e8)
        ],
        ("lease", 0, "at least 0.1 s"),
        ("lease", timedelta(0), "at least 0.1 s"),
        ("wait_timeout", -1, "at least 0 s"),
        ("wait_timeout", timedelta(days=3651), "at most ten years"),
        ("on_running", "queue", 'must be "wait" or "raise" or "drop"'),
        ("on_running", ["wait"], '"wait" or'),
        ("on_interrupted", True, 'must be "rerun" or "unknown"'),
        ("max_interruptions", -1, "must be a whole number, at least 0"),
        ("max_interruptions", True, "a whole number"),
        ("max_interruptions", 1.0, "a whole number"),
        ("store_failures", "ValueError", "must be False, True, or a tuple of exception types"),
        ("store_failures", (int,), "a tuple of exception types"),
        ("store_failures", int, "a tuple of exception types"),
        ("store_failures", (ValueError(),), "a tuple of exception types"),
        ("reconcile", "look", "must be a function of the task's arguments"),
        ("reconcile", _async, "must be a plain function"),
        ("on_store_error", "open", 'must be "retry" or "raise" or "run"'),
        ("max_result_size", 0, "a whole number, at least 1 and at most 536870912"),
        ("max_result_size", 512 * 1024 * 1024 + 1, "at most 536870912"),
        ("mode", "on", 'must be "enforce" or '),
        ("redact_key", 1, "must be True or False"),
        ("fingerprint", "amount", "must be a tuple of argument names"),
        ("fingerprint", (1,), "must be a tuple of argument names"),
    ],
)
def test_a_wrong_value_is_refused_with_what_it_may_be(name: str, value: Any, may_be: str) -> None:
    """The message names the task, the option, the value and the way out."""
    with pytest.raises(ConfigurationError, match=re.escape(may_be)) as caught:
        options(**{name: value})
    assert str(caught.value).startswith(f"task 't': idempotency_{name} is {value!r}, and must be ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store_url", "memory://"),
        ("store_url", "redis://:secret@localhost:6379/2"),
        ("store_options", {"socket_timeout": 5}),
        ("wait_replicas", 2),
        ("key_prefix", "shop:idem"),
        ("key_prefix", "x" * 100),
    ],
)
def test_a_right_setting_is_kept(name: str, value: Any) -> None:
    """As it was given."""
    assert getattr(app_settings(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "may_be"),
    [
        ("store_url", "localhost", "a URL such as"),
        ("store_url", 5, "a URL such as"),
        ("store_options", [("a", 1)], "a dict of the client's options by name"),
        ("store_options", {1: 1}, "a dict of the client's options by name"),
        ("wait_replicas", -1, "0"),
        ("key_prefix", "", "1 to 100 printable ASCII"),
        ("key_prefix", "a{b}", "without spaces and braces"),
        ("key_prefix", "a b", "without spaces and braces"),
        ("key_prefix", "é", "printable ASCII"),
        ("key_prefix", "x" * 101, "1 to 100"),
        ("key_prefix", 5, "1 to 100"),
    ],
)
def test_a_wrong_setting_is_refused(name: str, value: Any, may_be: str) -> None:
    """The message names the setting and what it may be."""
    with pytest.raises(ConfigurationError, match=re.escape(may_be)) as caught:
        app_settings(**{name: value})
    assert str(caught.value).startswith(f"the app: idempotency_{name} is ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("store_url", "user:hunter2@host"), ("store_options", [("password", "hunter2")])],
)
def test_a_wrong_store_setting_is_not_repeated(name: str, value: Any) -> None:
    """It may hold a password, and errors end up in logs."""
    with pytest.raises(ConfigurationError) as caught:
        app_settings(**{name: value})
    assert "hunter2" not in str(caught.value)


def test_a_long_wrong_value_is_cut_short() -> None:
    """An error stays readable."""
    with pytest.raises(ConfigurationError) as caught:
        options(mode="x" * 10_000)
    assert len(str(caught.value)) < 200


def test_the_app_can_set_what_a_task_can_and_more() -> None:
    """Each option is a setting of the same name."""
    assert "idempotency_ttl" in option_names() < setting_names()
    own = {"idempotency_store_url", "idempotency_store_options", "idempotency_key_prefix"}
    assert own <= setting_names()
    assert not own & option_names()


def test_known_and_foreign_names_pass_the_check() -> None:
    """Options, what the caller allows, and whatever does not have the prefix."""
    names = {*option_names(), "idempotency_key_for", "idempotency", "ttl"}
    check_unknown(names, "task 't'", allow=("idempotency_key_for",))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("idempotency_tll", "there is no option idempotency_tll: did you mean idempotency_ttl?"),
        ("idempotency_on_runing", "did you mean idempotency_on_running?"),
        ("idempotency_recrod", "did you mean idempotency_record?"),
        ("idempotency_zebra", "there are idempotency_after_wait, idempotency_fingerprint, "),
        ("idempotency_store_url", "can't be set on a task: set it on the app"),
        ("idempotent_key", "there is no option idempotent_key: did you mean idempotency_key?"),
        ("idempotencykey", "did you mean idempotency_key?"),
        ("indempotency_on_running", "did you mean idempotency_on_running?"),
    ],
)
def test_an_unknown_name_is_refused_with_what_may_have_been_meant(name: str, words: str) -> None:
    """A misspelt option would be ignored in silence."""
    with pytest.raises(ConfigurationError, match=re.escape(words)) as caught:
        check_unknown({name, "idempotency_ttl"}, "task 't'", allow=("idempotency_record",))
    assert str(caught.value).startswith("task 't': ")


@pytest.mark.parametrize("name", ["idempotent", "is_idempotent", "idempotent_for", "identify_key"])
def test_names_of_ones_own_are_nobodys_business(name: str) -> None:
    """On whatever they stand: a task, the app, a call, or a plain task."""
    for check in (check_unknown, check_settings, check_call, check_plain):
        check([name], "task 't'")


@pytest.mark.parametrize(
    ("name", "namespace", "words"),
    [
        ("idempotency_on_interupted", "", "did you mean idempotency_on_interrupted?"),
        ("idempotent_store_url", "", "did you mean idempotency_store_url?"),
        ("CELERY_IDEMPOTENCY_TLL", "CELERY_", "did you mean CELERY_IDEMPOTENCY_TTL?"),
        ("idempotency_tll", "CELERY_", "did you mean idempotency_ttl?"),
        ("CELERY_IDEMPOTENCY_ZEBRA", "CELERY_", "there are CELERY_IDEMPOTENCY_ACCEPT, "),
        ("IDEMPOTENCY_TTL", "", "IDEMPOTENCY_TTL is not read: write idempotency_ttl"),
    ],
)
def test_an_unknown_setting_is_refused(name: str, namespace: str, words: str) -> None:
    """As it was written, and with what may have been meant."""
    with pytest.raises(ConfigurationError, match=re.escape(words)) as caught:
        check_settings({name, "result_backend"}, "this app", namespace)
    assert name in str(caught.value)


def test_settings_are_read_in_each_way_of_writing_them() -> None:
    """What another package has in a Django project without the namespace is not looked at."""
    check_settings({*setting_names(), "timezone"}, "this app")
    written = {f"CELERY_{name.upper()}" for name in setting_names()}
    check_settings({*written, *setting_names(), "IDEMPOTENCY_KEY"}, "this app", "CELERY_")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("idempotency_ttl", "idempotency_ttl can't be given with a call: set it on the task"),
        ("idempotency_keyy", "did you mean idempotency_key?"),
        ("idempotent_key", "did you mean idempotency_key?"),
        ("idempotency_zebra", "a call has no option idempotency_zebra"),
    ],
)
def test_an_unknown_option_of_a_call_is_refused(name: str, words: str) -> None:
    """Celery would send it as a property of the message, and nobody would read it."""
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        check_call({"queue": "a", name: 1}, "task 't'")


@pytest.mark.parametrize("name", ["idempotency_key", "idempotent_key", "idempotency_ttl"])
def test_a_retry_takes_none(name: str) -> None:
    """Its call keeps its key."""
    with pytest.raises(ConfigurationError, match=f"a retry takes no {name}"):
        check_call({"countdown": 1, name: 1}, "a retry", key=False)
    check_call({"countdown": 1}, "a retry", key=False)


@pytest.mark.parametrize("name", ["idempotency_key", "idempotent_key", "idempotency_ttl"])
def test_an_option_of_ours_on_a_plain_task_is_refused(name: str) -> None:
    """Whoever wrote it thinks that the task is guarded."""
    with pytest.raises(ConfigurationError, match=f"{name} is set.*base=IdempotentTask"):
        check_plain({"acks_late", name}, "task 't'")


def documented(kind: type) -> dict[str, str]:
    """Each field of a class with the ``#:`` block above it."""
    lines = inspect.getsource(module).splitlines()
    body = next(
        node
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    ).body
    found: dict[str, str] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.lineno - 2
            block: list[str] = []
            while lines[above].startswith("    #: "):
                block.insert(0, lines[above].removeprefix("    #: "))
                above -= 1
            found[node.target.id] = " ".join(block)
    return found


@pytest.mark.parametrize("kind", [Options, Settings])
def test_every_option_is_documented_where_it_is_defined(kind: type) -> None:
    """The settings page is made of these comments: each gives the default, durations their unit."""
    comments = documented(kind)
    assert set(comments) == {field.name for field in dataclasses.fields(kind)}
    for name, comment in comments.items():
        assert "Default" in comment, name
        if name in ("ttl", "lease", "wait_timeout"):
            assert "Seconds or a timedelta" in comment
