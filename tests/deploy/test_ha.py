"""The servers of the overlay ``ha`` as they are rendered, with the keys as they are made: do they find each other?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas import wire
from services.access.folder import Folder
from services.access.kubernetes import MOUNTED, SERVICE_HOST
from tests.bus.harness import eventually, run
from tests.deploy.shipped_nats import shipped_cluster
from tests.nats_cluster import SIZE, joined

pytestmark = pytest.mark.e2e

ELECTED = "JetStream cluster new metadata leader"


def test_the_servers_of_ha_are_one_cluster(tmp_path: Path) -> None:
    """Over TLS to each other's names, with the README's keys: they elect, a stream has its copies on all, and what is
    acknowledged is on disk."""

    async def scenario() -> None:
        with shipped_cluster(tmp_path) as cluster:
            async with joined(cluster) as (_, jetstream):
                info = await jetstream.call(f"STREAM.INFO.{wire.STREAM_POLICY}")
                copies = [info["cluster"]["leader"], *(each["name"] for each in info["cluster"]["replicas"])]
                assert sorted(copies) == sorted(cluster.servers) and len(copies) == SIZE
                assert any(server.said(ELECTED) for server in cluster.shipped)
            assert all(server.monitor("varz")["jetstream"]["config"]["sync_always"] for server in cluster.shipped)

    run(scenario(), 120)


def test_without_the_peers_names_they_are_not(tmp_path: Path) -> None:
    """A certificate of the Service's name alone: every server refuses every other, and nobody is elected."""

    async def scenario() -> None:
        keys = Folder(tmp_path / "keys", MOUNTED)
        keys.complete(hosts=[SERVICE_HOST], nodes=["node-a"], readers=[], now=datetime.now(UTC), days=1)
        with shipped_cluster(tmp_path, keys) as cluster:
            refused = f"certificate is valid for {SERVICE_HOST}, not yett-nats-"
            await eventually(lambda: all(server.said(refused) for server in cluster.shipped), 60)
            assert not any(server.said(ELECTED) for server in cluster.shipped)

    run(scenario(), 120)
