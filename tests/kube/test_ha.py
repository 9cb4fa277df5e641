"""The NATS servers of ``ha`` as shipped, two controllers, a real API server: a machine dies that held both leaders."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from schemas import wire
from services.common.jetstream import JetStream
from tests.bus.harness import run, stored
from tests.deploy.shipped_nats import shipped_cluster
from tests.kube.servers import KubeServer
from tests.kube.test_lease import POLICIES, fill, mark, moved, reading, until_published
from tests.nats_cluster import SIZE, NatsCluster, joined

pytestmark = [pytest.mark.kube, pytest.mark.e2e]

SPLIT = {"metadata": {"name": "split"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"]}}


async def stream_leader(jetstream: JetStream) -> str:
    """The server that orders what is written to the policy stream."""
    info = await jetstream.call(f"STREAM.INFO.{wire.STREAM_POLICY}")
    return str(info["cluster"]["leader"])


def test_policy_goes_on_when_both_leaders_die_at_once(tmp_path: Path, kube: KubeServer) -> None:
    """The leading controller and the server that leads its stream are killed in one instant: the standby leads with
    the two servers that are left, nothing acknowledged is lost, and what is applied meanwhile is published."""

    async def scenario(cluster: NatsCluster) -> None:
        more = {"YETT_NATS_URL": cluster.url, "YETT_STREAM_REPLICAS": str(SIZE)}
        any_server = next(iter(cluster.servers.values()))
        async with joined(cluster) as (client, jetstream), reading(any_server, kube, "one", **more) as one:
            await one.until_said("published")
            async with reading(any_server, kube, "two", **more) as other:
                await other.until_said("standing by")
                before, victim = await stored(client, jetstream), await stream_leader(jetstream)
                killed = time.monotonic()
                one.signal(signal.SIGKILL)
                cluster.servers[victim].kill()
                kube.admin.create(POLICIES, SPLIT)
                await other.until_said("leading")
                led = time.monotonic() - killed
                await other.until_said("published")
                print(
                    f"both leaders killed: leading after {led:.2f} s, published after {time.monotonic() - killed:.2f} s"
                )
                after = await until_published(client, jetstream, wire.subject_source("NetworkPolicy", "shop", "split"))
                assert mark(after).holder == "two" and before.keys() <= after.keys()
                assert wire.SUBJECT_LEADER in moved(before, after)

    fill(kube, 20)
    with shipped_cluster(tmp_path) as cluster:
        run(scenario(cluster), 150)
