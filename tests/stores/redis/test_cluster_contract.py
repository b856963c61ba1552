"""Redis Cluster keeps the store contract, by three masters as they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_idempotent.stores.redis.cluster import ClusterStore
from celery_idempotent.stores.urls import store_from_url
from celery_idempotent.testing.store_contract import StoreContractAtRest
from tests.support.clusters import Cluster
from tests.support.replicas import tell


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


@pytest.mark.system
@pytest.mark.matrix
class TestClusterAsItIs(StoreContractAtRest):
    """The store on a cluster keeps the contract of every store."""

    @staticmethod
    def write_raw(store: ClusterStore, key: str, packed: bytes) -> None:
        store._wire.command("SET", key, packed)

    @staticmethod
    def read_raw(store: ClusterStore, key: str) -> bytes | None:
        found: bytes | None = store._wire.command("GET", key)
        return found

    @pytest.fixture
    def store(self, cluster: Cluster) -> Iterator[ClusterStore]:
        for server in cluster.servers:
            tell(server, "FLUSHALL")
        store = store_from_url(cluster.url)
        assert isinstance(store, ClusterStore)
        yield store
        store.close()
