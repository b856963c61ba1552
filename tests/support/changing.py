"""A task whose body changes its arguments before it has to begin anew."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.errors import StoppedAtCheckpoint
from tests.support.ledger import Ledger


def define(app: Celery, ledger: Ledger) -> None:
    """Add the task to an app."""
    options: dict[str, dict[str, Any]] = app.conf.get("test_options", {})

    @app.task(
        name="shop.takes",
        bind=True,
        base=IdempotentTask,
        shared=False,
        idempotency_key="{order}",
        **options.get("shop.takes", {}),
    )
    def takes(self: Any, order: int, prices: Any, gate: str = "", *, also: Any = ()) -> str:
        """Take all from its arguments; its first run stops then, where it has no gate."""
        shown = repr((prices, also))
        ledger.write("start", id=self.request.id, shown=shown)
        prices.clear()
        if gate:
            ledger.hold(gate)
        elif also:
            also.clear()
            if ledger.count("start", id=self.request.id) == 1:
                raise StoppedAtCheckpoint("as the worker shuts down")
        return shown

    @app.task(
        name="shop.takes_rows", bind=True, base=IdempotentTask, shared=False, idempotency_key="{o}"
    )
    def takes_rows(self: Any, o: int, payload: dict[str, list[int]]) -> int:
        """Take rows from its arguments, and write them; the first commit meets a restart."""
        from sqlalchemy import create_engine, insert, text

        from tests.support.bookings import bookings

        rows, session = payload.pop("rows", []), self.idempotency.session
        for _ in rows:
            session.execute(insert(bookings).values(order_id=o, task_id=self.request.id))
        connection = session.scalar(text("SELECT pg_backend_pid()"))
        ledger.write("start", id=self.request.id)
        if ledger.count("start", id=self.request.id) == 1:
            engine = create_engine(app.conf.idempotency_store_url, isolation_level="AUTOCOMMIT")
            with engine.connect() as other:
                # It returns once that connection has ended.
                other.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": connection})
            engine.dispose()
        return len(rows)
