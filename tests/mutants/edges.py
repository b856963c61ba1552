"""The guards of the HTTP edge."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages

__all__ = ["EDGES"]


def _by(words: str, file: str = "http/test_edge") -> Stages:
    return ((f"tests/{file}.py", "-k", words),)


EDGES = [
    Mutant(
        "a middleware's function has to take what it is called with",
        "http/edge.py",
        "            signature(value).bind(None)\n",
        "            signature(value)\n",
        _by("wrong_argument"),
    ),
    Mutant(
        "half a body is no request",
        "http/edge.py",
        "if length is not None and length.isdecimal() and got < int(length):",
        "if False:",
        _by("half_a_body"),
    ),
    Mutant(
        "only what a server would send is stored",
        "http/edge.py",
        "if not (response.is_sendable and self._edge.keeps(response.status)):",
        "if not self._edge.keeps(response.status):",
        _by("line_break"),
    ),
    Mutant(
        "two services never meet",
        "http/edge.py",
        "_digest(self._service, identity,",
        "_digest(identity,",
        _by("two_services"),
    ),
    Mutant(
        "a key belongs to a path",
        "http/edge.py",
        "request.method, request.path, key)",
        "request.method, key)",
        _by("method_and_a_path"),
    ),
    Mutant(
        "an unknown outcome is told",
        "http/edge.py",
        'telling.tell("unknown", verdict.record, interruptions=interruptions)',
        "pass",
        _by("told_as_of_a_task"),
    ),
    Mutant(
        "a request that lost its key is told",
        "http/edge.py",
        "_PATIENCE_S, telling.lost)",
        "_PATIENCE_S, lambda _: None)",
        _by("told_as_of_a_task"),
    ),
    Mutant(
        "a person's result is a response",
        "ops/settle.py",
        "if view.namespace == NAMESPACE:",
        "if False:",
        _by("person_gave"),
    ),
    Mutant(
        "a redirect is not kept",
        "http/edge.py",
        "frozenset((307, 308, 401,",
        "frozenset((401,",
        _by("redirect"),
    ),
    Mutant(
        "a store that is away is asked by one",
        "http/edge.py",
        "return outage.one_at_a_time(ask) if outage.is_away else ask()",
        "return ask()",
        _by("not_asked_by_each or finds_out"),
    ),
    Mutant(
        "what the database refuses frees the key",
        "http/edge.py",
        "            self._ended = False\n            self.fail(exc)\n            raise",
        "            raise",
        _by("refuses_frees", "http/test_session"),
    ),
    Mutant(
        "what was undone is no answer",
        "http/edge.py",
        "if undone else response",
        "if False else response",
        _by("forgotten_meanwhile", "http/test_session"),
    ),
    Mutant(
        "a request does not release its key",
        "http/edge.py",
        "self.run = _RequestContext(",
        "self.run = RunContext(",
        _by("does_not_release"),
    ),
    Mutant(
        "a stream that broke off was interrupted",
        "http/answer.py",
        "if self.is_begun:\n            self._held.interrupt()",
        "if False:\n            self._held.interrupt()",
        _by("breaks_is_an_interruption"),
    ),
    Mutant(
        "a stream goes on without its client",
        "http/answer.py",
        "            if not self._ended:\n                self._drain()",
        "            if not self._ended:\n                self._answer.fail()",
        _by("hung_up_is_made_to_its_end"),
    ),
    Mutant(
        "a stream without end is given up",
        "http/answer.py",
        "return self._left > 0 and self.seconds_left > 0",
        "return self._left > -1000000 and self.seconds_left > 0",
        _by("given_up_at_its_limit"),
    ),
    Mutant(
        "a request goes on that is cancelled",
        "http/asgi.py",
        "return await detached(",
        "return await (",
        _by("cancelled"),
    ),
    Mutant(
        "a view of Django's goes on that is cancelled",
        "django/middleware.py",
        "return await despite_hang_up(self._work(request, key, gone), gone)",
        "return await self._work(request, key, gone)",
        _by("cancelled"),
    ),
    *(
        Mutant(f"twice in a stack, {name}", path, old, new, _by("listed_twice"))
        for name, path, old, new in (
            (
                "ASGI and WSGI",
                "http/middleware.py",
                'isinstance(known.get("idempotency"), RunContext)',
                "False",
            ),
            (
                "Django",
                "django/middleware.py",
                "or _is_protected(request)",
                "or False",
            ),
        )
    ),
    Mutant(
        "half a form is no request",
        "django/bodies.py",
        'if getattr(stream, "_pos", 0) < getattr(stream, "limit", 0):',
        "if False:",
        _by("half_a_form", "django/test_middleware"),
    ),
]
