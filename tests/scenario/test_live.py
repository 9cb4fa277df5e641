"""A live cluster's state is asked the same questions as manifests."""

from __future__ import annotations

import time
from typing import Any

import pytest

from schemas import wire
from schemas.resolution import Resolution
from schemas.terms import NodeName
from services.common.streams import ensure_stream, policy_stream, resolution_stream
from services.scenario.explain import explain_flow, format_explanation
from services.scenario.live import LiveError, make_live, read_live
from services.scenario.model import End, Probe
from services.scenario.replay import publish
from services.scenario.rows import Rows
from services.scenario.walk import Facts
from services.scenario.world import Cluster, assemble_cluster
from tests import builders as k8s
from tests.bus.harness import connected, run
from tests.nats_server import NatsServer, nats_server
from tests.scenario.build import CLUSTER

__all__ = ["nats_server"]
NAMED = k8s.application_policy(
    "named",
    {
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"domainNames": ["x.com"]}]}, {"to": [{"podSelector": {"matchLabels": {"app": "api"}}}]}],
    },
)
SERVICE = k8s.service("app/svc", "10.96.0.1", {"port": 80, "targetPort": 8080}, selector={"app": "api"})


def build() -> Cluster:
    return assemble_cluster([("", obj) for obj in (*CLUSTER, NAMED, SERVICE)])


def ask(destination: End, port: int = 80) -> Probe:
    return Probe(0, End(pod=("app", "web")), destination, port=port)


@pytest.mark.parametrize(
    "destination",
    [End(pod=("app", "api")), End(pod=("data", "db")), End(service=("app", "svc")), End(address="192.0.2.1")],
)
def test_rows_explain_as_manifests_do(destination: End) -> None:
    """Pods, nodes and Services are read back from the rows; the text is the same to the letter."""
    cluster = build()
    rows = Rows.read(cluster.state.rows())
    live = make_live(rows, [], now=0.0)
    told, known = (
        list(format_explanation(explain_flow(where, Facts(rows), ask(destination)))) for where in (live, cluster)
    )
    assert told == known


async def fill(jetstream: Any, client: Any) -> None:
    await ensure_stream(jetstream, policy_stream())
    await ensure_stream(jetstream, resolution_stream(max_bytes=1 << 24))
    for message in publish(build().state.rows()):
        await client.request(message.subject, message.body)
    told = Resolution(name="x.com", addresses=("192.0.2.1",), ttl_seconds=60, node=NodeName("node-b"))
    await client.request(wire.subject_resolution(told.node, told.name), wire.encode(told))


@pytest.mark.nats
def test_a_live_state_is_read_whole(nats_server: NatsServer) -> None:
    """Rows of a proven revision, and the names that some node resolved."""

    async def scenario() -> None:
        async with connected(nats_server, with_streams=False) as (client, jetstream):
            await fill(jetstream, client)
            live = await read_live(client)
            assert live.addresses_of("x.com") == ("192.0.2.1",)
            assert abs(live.facts.at - time.time()) < 60
            explanation = explain_flow(live, live.facts, ask(End(name="x.com"), 443))
            assert explanation.crossings[0].finding.name == "x.com"
            assert explanation.verdict.name == "ALLOW"

    run(scenario())


@pytest.mark.nats
def test_a_bus_without_a_state_says_so(nats_server: NatsServer) -> None:
    """No stream, or one in which no controller ever published a revision."""

    async def scenario() -> None:
        async with connected(nats_server, with_streams=False) as (client, jetstream):
            with pytest.raises(LiveError):
                await read_live(client)
            await ensure_stream(jetstream, policy_stream())
            await client.request("yett.policy.namespace.app", b'{"name":"app"}')
            with pytest.raises(LiveError, match="no revision"):
                await read_live(client)

    run(scenario())
