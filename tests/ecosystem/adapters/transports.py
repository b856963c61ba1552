"""Brokers besides Redis."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Exchange, Queue
from kombu.transport import filesystem
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps

from tests.ecosystem.adapter import Adapter, Figure
from tests.ecosystem.adapters.rabbit import AMQP_URL, remove
from tests.ecosystem.world import PATIENCE_S, World
from tests.support.recipes import settings_of
from tests.support.waiting import eventually

__all__ = ["Files", "Quorum", "Sqs"]


class Files(Adapter):
    """Each message is a file.

    kombu shows a file before it has written it: who reads it then finds nothing, and removes it.
    Plain tasks are lost so, too, and the page says it; here a file is shown once it is whole.
    """

    def prepare(self) -> None:
        channel: Any = filesystem.Channel
        channel._put = _put_whole

    def settings(self) -> dict[str, Any]:
        for name in ("queue", "control"):
            (self.directory / name).mkdir(exist_ok=True)
        return {
            "broker_url": "filesystem://",
            "broker_transport_options": {
                "data_folder_in": str(self.directory / "queue"),
                "data_folder_out": str(self.directory / "queue"),
                "control_folder": str(self.directory / "control"),
            },
        }


def _put_whole(channel: Any, queue: str, payload: Any, **_: Any) -> None:
    """Write a message as kombu names it; under another name until it is there."""
    name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
    unfinished = Path(channel.data_folder_out, f"{name}.part")
    unfinished.write_bytes(str_to_bytes(dumps(payload)))
    unfinished.rename(unfinished.with_suffix(""))


class Quorum(Adapter):
    """RabbitMQ delays the messages itself."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._queue = f"ecosystem-{self.directory.name}"

    def settings(self) -> dict[str, Any]:
        return {"broker_url": AMQP_URL, "task_default_queue": self._queue}

    def install(self, app: Celery, note: Any) -> None:
        """Declare the queue on a topic exchange: Celery delays on no other."""
        exchange = Exchange(f"{self._queue}-topic", type="topic")
        kind = {"x-queue-type": "quorum"}
        app.conf.task_queues = [Queue(self._queue, exchange, self._queue, queue_arguments=kind)]

    def stop(self) -> None:
        remove(self._queue, f"{self._queue}-topic")


class Sqs(Adapter):
    """Amazon's SQS, as moto's server plays it, with Valkey for records and results."""

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def settings(self) -> dict[str, Any]:
        """As docs/deploying.rst has it, on moto's server, and with a short visibility timeout."""
        settings = settings_of("deploy_aws.py")
        host, port = self._server.get_host_and_port()
        here = {"visibility_timeout": 15, "wait_time_seconds": 1, "is_secure": False}
        options = {**settings["broker_transport_options"], **here, "polling_interval": 0.1}
        for name in ("result_backend", "idempotency_store_url"):
            server, _, rest = settings[name].rpartition("/")
            assert server.startswith("rediss://")
            settings[name] = f"{self.server}/{rest.partition('?')[0]}"
        broker = settings["broker_url"].replace("sqs://", f"sqs://test:test@{host}:{port}//")
        return {**settings, "broker_url": broker, "broker_transport_options": options}

    def worker_command(self, command: list[str]) -> list[str]:
        return [it for it in command if it != "-E"]  # SQS carries no events

    def cases(self) -> list[Callable[[World], None]]:
        def a_run_longer_than_the_visibility_timeout(world: World) -> None:
            """SQS delivers it again meanwhile: that copy waits, and runs nothing."""
            # Given
            call = world.call("charge", 20, "run", gate="long")
            world.ledger.wait_for("start", order=20)
            # When
            world.ledger.wait_for("finished", id=call.id, state="IGNORED", timeout=PATIENCE_S)
            world.ledger.open("long")
            world.answers([call])
            # Then
            assert world.effects(20) == world.ledger.count("start", order=20) == 1
            # And the copies end, too
            eventually(lambda: self._left() == 0, "no message is left", PATIENCE_S)

        def records_are_listed(world: World) -> None:
            """The command needs nothing that SQS has not."""
            command = ("celery", "-A", "tests.ecosystem.app", "idempotency", "list", "--json")
            done = subprocess.run(
                [sys.executable, "-m", *command], capture_output=True, text=True, check=False
            )
            assert "order:20" in done.stdout, done.stderr

        return [a_run_longer_than_the_visibility_timeout, records_are_listed]

    def figures(self, world: World) -> Iterator[Figure]:
        yield Figure("messages that are left", self._left(), 0)

    def _left(self) -> int:
        import boto3

        client = boto3.client(
            "sqs",
            endpoint_url="http://{}:{}".format(*self._server.get_host_and_port()),
            region_name="eu-central-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        url = client.get_queue_url(QueueName="shop")["QueueUrl"]
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = client.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)
