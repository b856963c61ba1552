"""The samples that people paste, each with its framework's authentication: what callers get."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

import pytest

from tests.support import warm
from tests.support.samples import CASES
from tests.support.workers import ROOT

pytestmark = pytest.mark.system

SAMPLES = ("http_flask", "http_fastapi", "django_middleware", "django_rest")

#: What has to come of each case: the statuses, who was charged, and how many records were made.
EXPECTED: dict[str, tuple[list[int], list[str], int]] = {
    "no_key": ([400], [], 0),
    "no_authorization": ([401], [], 0),
    "made_up_authorization": ([401] * 9, [], 0),
    "malformed_key": ([400], [], 0),
    "sent_again": ([202, 202, 202], ["ann"], 2),
    "sent_again_with_a_new_token": ([202, 202], ["ann"], 2),
    "sent_again_with_a_revoked_token": ([202, 401], ["ann"], 2),
    "same_key_of_another_user": ([202, 202], ["ann", "bob"], 4),
    "same_key_for_another_order": ([202, 422], ["ann"], 2),
}


@functools.cache
def results_of(sample: str) -> Any:
    """Every case of a sample, run once, in a process of its own."""
    command = ["-W", "ignore", "-m", "tests.support.samples", sample]
    done = warm.run(command, cwd=ROOT, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", EXPECTED)
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_caller_gets_what_is_right(sample: str, case: str) -> None:
    """401 without a user, 400 without a key, and one payment for a user, whichever token it is."""
    found = results_of(sample)[case]
    statuses, charged, stored = EXPECTED[case]
    assert found["statuses"] == statuses
    assert found["charged"] == charged
    assert found["stored"] == stored


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_caller_with_neither_is_refused(sample: str) -> None:
    """By one of the two, and nothing is charged or stored."""
    found = results_of(sample)["neither"]
    assert found["statuses"] in ([400], [401])
    assert (found["charged"], found["stored"]) == ([], 0)
    assert {*EXPECTED, "neither"} == set(CASES)


@pytest.mark.parametrize("sample", SAMPLES)
def test_each_further_try_gets_the_first_answer(sample: str) -> None:
    """It says that it is the first one's, and another user's is another one."""
    found = results_of(sample)
    for case in ("sent_again", "sent_again_with_a_new_token"):
        (first, *others), (new, *again) = found[case]["payments"], found[case]["replayed"]
        assert first is not None
        assert set(others) == {first}
        assert (new, set(again)) == (None, {"true"})
    ann, bob = found["same_key_of_another_user"]["payments"]
    assert ann != bob
    assert found["sent_again_with_a_revoked_token"]["payments"][1] is None
