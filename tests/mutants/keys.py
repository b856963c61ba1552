"""The guards of where a call's key comes from, and of tasks that would be silently plain."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages

__all__ = ["KEYS"]

_HEADERS: Stages = (("tests/core/test_message.py",),)
_NESTED: Stages = (("tests/delivery/test_seam.py", "-k", "nests"),)

_OPTIONS: Stages = (("tests/core/test_options.py",),)
_CHECKS: Stages = (("tests/delivery/test_task_checks.py",),)
_STEPS: Stages = (("tests/run/test_steps.py", "-k", "async"),)
_ENQUEUE: Stages = (("tests/publishing/test_publishing.py",),)

KEYS: list[Mutant] = [
    Mutant(
        "a path into a model reads its json form",
        "core/templates.py",
        "            if is_model(value):\n",
        "            if False:\n",
        (("tests/core/test_keys.py", "-k", "into_a_model"),),
    ),
    Mutant(
        "context: it is joined with the key of a header",
        "publishing.py",
        "    if headers and given is None:\n",
        "    if headers and given is None and _context.get() is None:\n",
        _ENQUEUE,
    ),
    Mutant(
        "context: what clients ask of a call is asked of the one made here",
        "task.py",
        "return joined_with_context(self, setup, call_key)",
        "return call_key",
        _ENQUEUE,
    ),
    Mutant(
        "headers: nested ones are read",
        "core/message.py",
        "if nested and isinstance(nested, (dict, Mapping)):",
        "if False:",
        _HEADERS,
    ),
    Mutant(
        "headers: all of a request's are read",
        "core/message.py",
        "headers = vars(request)",
        "headers = request.headers",
        _NESTED,
    ),
    Mutant(
        "headers: what is published again keeps them",
        "delivery/retrying.py",
        "ours = ours_in(vars(request))",
        "ours = {}",
        _NESTED,
    ),
    Mutant(
        "headers: bytes are not guessed",
        "core/message.py",
        'value.decode("utf-8")',
        'value.decode("utf-8", "replace")',
        _HEADERS,
    ),
    Mutant(
        "options: a near miss is one",
        "core/options.py",
        "return name.startswith(_LOOKS) and",
        "return False and",
        _OPTIONS,
    ),
    Mutant(
        "options of a call are looked at",
        "task.py",
        'check_call(options, f"task {self.name!r}")',
        "pass",
        _ENQUEUE,
        after="def apply_async(",
    ),
    Mutant(
        "options of a call: the key None is one",
        "publishing.py",
        "    if explicit is None:\n        return",
        "    if False:\n        return",
        _ENQUEUE,
    ),
    Mutant(
        "settings are looked at when a task is bound",
        "settings.py",
        "    if app not in _checked:\n",
        "    if False:\n",
        _CHECKS,
    ),
    Mutant(
        "plain tasks are looked at when a worker starts",
        "worker/boot.py",
        "check_plain(names, ",
        "check_plain((), ",
        _CHECKS,
    ),
    Mutant(
        "body: not async",
        "delivery/task_checks.py",
        "    _check_body(cls, where)\n",
        "",
        _CHECKS,
    ),
    Mutant(
        "body: what it returned instead of running is no result",
        "delivery/execution.py",
        "refuse_unfinished(task, result)",
        "pass",
        _CHECKS,
    ),
    Mutant(
        "body: that is not kept as a failure",
        "delivery/outcome.py",
        "if isinstance(exc, ConfigurationError):",
        "if False:",
        _CHECKS,
    ),
    Mutant(
        "guard: a call that passes by it is noticed",
        "delivery/task_checks.py",
        "if not task.request.called_directly and state_of(task.request) is None:",
        "if False:",
        _CHECKS,
    ),
    Mutant(
        "guard: a base that runs the body by itself is refused when the task is bound",
        "delivery/task_checks.py",
        'if "run" in names and "__call__" not in names:',
        "if False:",
        _CHECKS,
    ),
    Mutant(
        "guard: no strategy of one's own",
        "delivery/task_checks.py",
        "    if owner is not None:\n        raise ConfigurationError(\n",
        "    if False:\n        raise ConfigurationError(\n",
        _CHECKS,
    ),
    Mutant(
        "guard: the parent's half of it",
        "worker/boot.py",
        "if not (isinstance(request, type) and issubclass(request, IdempotentRequest)):",
        "if False:",
        _CHECKS,
    ),
    Mutant(
        "on commit: a duplicate is left out without an error",
        "task.py",
        "raises=False,",
        "raises=True,",
        (("tests/django/test_on_commit.py",),),
    ),
    Mutant(
        "on commit: a call with a task id of its own is published",
        "task.py",
        "named=task_id is not None,\n                raises=False",
        "named=False,\n                raises=False",
        (("tests/django/test_on_commit.py",),),
    ),
    Mutant(
        "call: a task id is text",
        "task.py",
        "str(task_id or id_of_call(self, setup, args, kwargs, explicit) or uuid())",
        "task_id or id_of_call(self, setup, args, kwargs, explicit) or uuid()",
        (("tests/publishing/test_publishing.py", "-k", "no_text"),),
    ),
    Mutant(
        "call: a task id from elsewhere is text in its key",
        "core/keys.py",
        "chosen = str(task_id)",
        "chosen = task_id",
        (("tests/publishing/test_publishing.py", "-k", "something_else"),),
    ),
    Mutant(
        "results: a failure that is too large keeps its type",
        "delivery/results.py",
        "((most, False), (_SHORT * 100, True))",
        "((most, False),)",
        (("tests/delivery/test_results.py", "-k", "too_large"),),
    ),
    Mutant(
        "headers: a publication is plain text",
        "core/message.py",
        "if not publication.isascii():",
        "if False:",
        _HEADERS,
    ),
    Mutant(
        "headers: a record has room for when it came",
        "core/message.py",
        'number("since", NEVER_MS)',
        'number("since", NEVER_MS * 2)',
        _HEADERS,
    ),
    Mutant(
        "headers: a record has room for whom it waits for",
        "core/message.py",
        "if not 0 <= awaited[1] <= _MAX_COUNT:",
        "if False:",
        _HEADERS,
    ),
    Mutant(
        "headers: a token has a size",
        "core/message.py",
        "if not 0 <= resumes[0] <= _MAX_TOKEN:",
        "if False:",
        _HEADERS,
    ),
    Mutant(
        "on commit: the key is the one that the call was made with",
        "task.py",
        "self.apply_async, args, kwargs, task_id=call_id, headers=headers, **options",
        "self.apply_async, args, kwargs, task_id=call_id, **options",
        (("tests/django/test_on_commit.py",),),
    ),
    Mutant(
        "headers: two keys are not chosen from",
        "core/message.py",
        "if len(found) > 1:",
        "if False:",
        _HEADERS,
    ),
    Mutant(
        "options of a retry are looked at",
        "delivery/retrying.py",
        'check_call(options, f"a retry of task {self.name!r}", key=False)',
        "pass",
        (("tests/delivery/test_seam.py", "-k", "key_of_its_own"),),
    ),
    Mutant(
        "waiting: an outage is no busy key",
        "delivery/waiting.py",
        "if record is None:\n        return StoreUnavailable",
        "if False:\n        return StoreUnavailable",
        (("tests/delivery/test_seam.py", "-k", "what_for"),),
    ),
    Mutant(
        "waiting: what a tracer hides stays in the message",
        "core/message.py",
        "return without_deaths({**hidden, **(request",
        "return without_deaths({**(request",
        (("tests/delivery/test_waiting.py",),),
    ),
    Mutant(
        "waiting: no message looks like a cycle",
        "core/message.py",
        "if not name.startswith(_DEATHS)",
        "if True",
        (("tests/delivery/test_waiting.py",),),
    ),
    Mutant(
        "body: an async step is no step",
        "run/steps.py",
        "if is_awaitable(result):",
        "if False:",
        _STEPS,
    ),
    Mutant(
        "body: an async reconcile knows nothing",
        "delivery/execution.py",
        "if is_awaitable(answer):",
        "if False:",
        _STEPS,
    ),
    Mutant(
        "body: an async compensation undoes nothing",
        "delivery/results.py",
        "if kind_of(tasks[undo.task].run):",
        "if False:",
        _STEPS,
    ),
]
