"""Messages, results and records in one master, which three Sentinels watch."""

from celery import Celery

SENTINELS = ["sentinel-1:26379", "sentinel-2:26379", "sentinel-3:26379"]


def by_sentinel(database):
    return ";".join(f"sentinel://{it}/{database}" for it in SENTINELS)


app = Celery("shop")
app.conf.update(
    broker_url=by_sentinel(0),
    broker_transport_options={"master_name": "shop", "visibility_timeout": 3600},
    result_backend=by_sentinel(1),
    result_backend_transport_options={"master_name": "shop"},
    idempotency_store_url=by_sentinel(2),
    idempotency_store_options={"master_name": "shop"},
    idempotency_wait_replicas=1,  # an end is on a replica before it counts
)
