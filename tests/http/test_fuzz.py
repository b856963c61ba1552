"""Made-up requests and answers, to all adapters side by side: one verdict, and nothing smuggled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_idempotent import State
from celery_idempotent.core.record import Record
from celery_idempotent.run.context import RunContext
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.base import Store
from tests.support.http_app import HTTP_APPS, HttpApp, Reply, make_celery

FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["X-A", "x-b", "Location", "Connection", "Content-Disposition", "b:d", ""]),
        st.text(st.sampled_from('aB1:;"=, \t\r\n\0\x01\x7f\x80é\xff'), max_size=12),
    ),
    max_size=4,
    unique_by=lambda field: field[0],
)
REPLIES = st.builds(
    lambda status, fields, chunks, length, streams: Reply(
        status,
        fields if length is None else [*fields, ("Content-Length", str(length))],
        iter(chunks) if streams else chunks,
    ),
    st.sampled_from([200, 201, 204, 304, 307, 400, 409, 422, 500, 599]),
    FIELDS,
    st.lists(st.binary(max_size=40), max_size=5),
    st.none() | st.integers(0, 60),
    st.booleans(),
)
KEYS = st.text(st.sampled_from('ab"\\ ;=,é\t'), max_size=6) | st.sampled_from(["7f3a", '"7f3a"'])
MOST = 150


def store_of(http_app: HttpApp) -> Store:
    return environment_of(http_app.celery).store


def records(http_app: HttpApp) -> list[Record]:
    store = store_of(http_app)
    found = [store.get(name) for name in store.scan("*")]
    return [record for record in found if record is not None]


def told(reply: Reply) -> dict[str, Any]:
    """What a client sees of an answer, whatever the server."""
    if reply.status == 500:
        return {"status": 500}
    fields = {name.lower(): value for name, value in reply.headers}
    return {"status": reply.status, "fields": fields, "body": reply.body, "whole": reply.is_whole}


@pytest.mark.long(8)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(REPLIES, st.data())
def test_all_adapters_keep_the_same_of_an_answer(reply: Reply, data: st.DataObject) -> None:
    """And give again only what the first client was sent."""
    chunks = list(reply.chunks)
    streams = not isinstance(reply.chunks, list)
    verdicts = {}
    for name, kind in HTTP_APPS.items():
        # Given
        def handler(body: bytes, run: RunContext | None) -> Reply:
            made = iter(chunks) if streams else list(chunks)
            return Reply(reply.status, list(reply.headers), made)

        http_app = kind(handler, make_celery(idempotency_max_result_size=MOST))
        # When
        first, second = http_app.post("a"), http_app.post("a")
        # Then
        assert not [lease for lease in heartbeat.leases() if lease.store is store_of(http_app)]
        (record,) = records(http_app)
        if record.state is State.SUCCEEDED:
            assert len(http_app.calls) == 1
            if second.code is None:
                seen, again = told(first), told(second)
                assert (again["status"], again["whole"]) == (first.status, True)
                assert again["body"] == (b"" if first.status in (204, 304) else seen["body"])
                del again["fields"]["idempotency-replayed"]
                length = again["fields"].pop("content-length", None)
                assert length in (None, str(len(again["body"])))
                assert again["fields"].items() <= seen["fields"].items()
        else:
            assert len(http_app.calls) == 2
        verdicts[name] = (record.state, len(http_app.calls), told(first), told(second))
    assert all(verdict == verdicts["asgi"] for verdict in verdicts.values()), verdicts


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    KEYS,
    KEYS,
    st.sampled_from([b"", b"{}", b"[1]"]),
    st.sampled_from([b"", b"{}", b"[1]"]),
    st.sampled_from(["", "a=1", "a=%20"]),
    st.sampled_from(["/orders", "/orders/", "/a b", "/%2F"]),
)
def test_all_adapters_take_two_requests_for_the_same_or_for_two(
    one: str, other: str, body: bytes, another: bytes, query: str, path: str
) -> None:
    """By their key, query and body."""
    verdicts = {}
    for name, kind in HTTP_APPS.items():
        # Given
        http_app = kind(lambda body, run: Reply(201, [], [body]))
        # When
        replies = [
            http_app.post(fields=[one], body=body, path=path),
            http_app.post(fields=[other], body=another, path=path, query=query),
        ]
        # Then
        verdicts[name] = (
            [(reply.status, reply.body) for reply in replies],
            len(http_app.calls),
            len(records(http_app)),
        )
    assert all(verdict == verdicts["asgi"] for verdict in verdicts.values()), verdicts


def test_a_body_that_is_cut_at_any_byte_is_no_request() -> None:
    """Whole, it is carried out, once."""
    body = b'{"to": "ann", "amount": 100}'
    for kind in HTTP_APPS.values():
        http_app = kind(lambda body, run: Reply(201))
        for cut in range(len(body)):
            assert http_app.post("a", body, cut_at=cut).status in (0, 400)
            assert (http_app.calls, records(http_app)) == ([], [])
        assert [http_app.post("a", body).status for _ in range(2)] == [201, 201]
        assert http_app.calls == [body]
