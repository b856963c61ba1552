"""``python examples/payments``: starts the shop, and plays a client that loses each answer."""

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import client  # noqa: E402
import stage  # noqa: E402

from celery_idempotent.testing.servers import RedisServer  # noqa: E402

#: As ``celery -A shop idempotency relay --interval 0.1``, which needs the installed package.
RELAY = """
import shop
from celery_idempotent.outbox import Relay
Relay(shop.celery, shop.engine, interval=0.1).run()
"""


def main():
    with tempfile.TemporaryDirectory() as temporary, RedisServer() as server:
        directory = Path(temporary)
        port = stage.free_port()
        environment = {
            "SHOP_SERVER": server.url().rpartition("/")[0],
            "SHOP_DATABASE": f"sqlite:///{directory / 'shop.db'}",
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        }
        os.environ.update(environment)
        import shop
        from sqlalchemy import func, select

        shop.create_tables()

        def counts():
            with shop.engine.connect() as connection:
                tables = (shop.Order, shop.Charge)
                return tuple(
                    connection.scalar(select(func.count()).select_from(table)) for table in tables
                )

        with stage.running(
            directory,
            environment,
            ["-m", "uvicorn", "shop:api", "--port", str(port), "--log-level", "warning"],
            ["-m", "celery", "-A", "shop", "worker", "-c", "2", "-l", "INFO"],
            ["-c", RELAY],
        ):
            stage.wait_for_port(port)
            client.play(port, counts)


if __name__ == "__main__":
    main()
