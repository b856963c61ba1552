"""``python examples/django_shop``: starts the shop, and plays a client that loses each answer."""

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import client  # noqa: E402
import stage  # noqa: E402

from celery_idempotent.testing.servers import RedisServer  # noqa: E402


def main():
    with tempfile.TemporaryDirectory() as temporary, RedisServer() as server:
        directory = Path(temporary)
        port = stage.free_port()
        environment = {
            "SHOP_SERVER": server.url().rpartition("/")[0],
            "SHOP_DATABASE": str(directory / "shop.db"),
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        }
        os.environ.update(environment)
        import django
        from django.core.management import call_command
        from django.db.models import Sum

        django.setup()
        call_command("migrate", run_syncdb=True, verbosity=0)
        from shop.models import Account, Order

        def counts():
            charges = Account.objects.aggregate(total=Sum("charges"))["total"]
            return Order.objects.count(), charges or 0

        with stage.running(
            directory,
            environment,
            ["-m", "django", "runserver", "--noreload", str(port)],
            ["-m", "celery", "-A", "shop", "worker", "-c", "2", "-l", "INFO"],
            ["-m", "django", "idempotency", "relay", "--interval", "0.1"],
        ):
            stage.wait_for_port(port)
            client.play(port, counts)


if __name__ == "__main__":
    main()
