"""``yett audit`` against a real controller and a node's report: the answers, for people and for programs."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from nats.aio.client import Client

from schemas import wire
from schemas.policy import Ruleset
from schemas.terms import Direction, NodeName
from schemas.usage import Contact, PeerKind, PodUsage, RuleCount, UsageReport
from services.common.jetstream import JetStream
from tests.bus.controllers import controller
from tests.bus.harness import connected, run
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats
ROOT = Path(__file__).parents[2]
NODE = NodeName("node-a")
SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u1, labels: {app: web, pod-template-hash: x1}}
spec: {nodeName: node-a}
status: {phase: Running, podIPs: [{ip: 10.0.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, uid: u3, labels: {app: cart, pod-template-hash: x2}}
spec: {nodeName: node-a}
status: {phase: Running, podIPs: [{ip: 10.0.0.6}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop, uid: u2}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - ports: [{port: 80}]
  - ports: [{port: 81}]
"""


async def ask(server: NatsServer, *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``yett audit``."""
    command = [sys.executable, "-m", "services.cli", "audit", *words, "--nats", server.url]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complained = await process.communicate()
    return process.returncode or 0, said.decode(), complained.decode()


async def find_hashes(jetstream: JetStream, client: Client) -> dict[str, str]:
    """Rule -> hash, as an agent reads them."""
    found: dict[str, str] = {}
    subscription = await client.jetstream().pull_subscribe("yett.policy.ruleset.>", stream=wire.STREAM_POLICY)
    for message in await subscription.fetch(10, timeout=2):
        row = wire.decode(message.subject, message.data)
        assert isinstance(row, Ruleset)
        for rule in row.network_policy:
            found.update({source.rule: digest for source, digest in zip(rule.sources, rule.hashes, strict=True)})
    return found


def make_report(hashes: dict[str, str]) -> UsageReport:
    now = int(time.time())
    rules = tuple(
        RuleCount(
            kind="NetworkPolicy",
            namespace="shop",
            name="web",
            rule=rule,
            hash=digest,
            first=now - 900,
            flows=4 if rule == "egress[0]" else 0,
            last=now if rule == "egress[0]" else 0,
        )
        for rule, digest in hashes.items()
    )
    contacts = (
        Contact(
            direction=Direction.EGRESS, protocol=6, port=80, kind=PeerKind.POD, peer="shop/cart", flows=3, last=now
        ),
        Contact(
            direction=Direction.EGRESS, protocol=6, port=80, kind=PeerKind.NAME, peer="a.example", flows=1, last=now
        ),
    )
    pod = PodUsage(
        namespace="shop", pod="web", uid="u1", node=NODE, epoch=1, since=now - 900, at=now, contacts=contacts
    )
    return UsageReport(node=NODE, epoch=1, since=now - 900, at=now, rules=rules, pods=(pod,))


@asynccontextmanager
async def reported(server: NatsServer, folder: Path) -> AsyncIterator[None]:
    """A controller that leads, and one report of a node that it has stored."""
    folder.mkdir()
    (folder / "shop.yaml").write_text(SHOP)
    async with controller(server, folder, "one") as leader, connected(server, with_streams=False) as (client, stream):
        await leader.until_said("published")
        report = make_report(await find_hashes(stream, client))
        await client.request(wire.subject_usage(NODE), wire.encode(report), timeout=5)
        yield


def test_the_three_questions_are_answered(nats_server: NatsServer, tmp_path: Path) -> None:
    """Unused rules with their proof, what pods may and did reach, and a policy with the labels of owners."""

    async def scenario() -> None:
        async with reported(nats_server, tmp_path / "manifests"):
            code, said, _ = await ask(nats_server, "unused", "--since", "10m", "-o", "json")
            (rule,) = json.loads(said)
            assert (code, rule["rule"], rule["use"], rule["uid"]) == (0, "egress[1]", "unused", "u2")
            _, said, _ = await ask(nats_server, "unused", "--since", "7d", "--all", "-o", "json")
            assert {one["rule"]: one["use"] for one in json.loads(said)} == {
                "egress[0]": "used",
                "egress[1]": "unproven",
            }
            _, said, _ = await ask(nats_server, "unused", "--since", "10m")
            assert "egress[1]: Accept to anyone on TCP 81" in said and "node-a: data since" in said
            _, said, _ = await ask(nats_server, "pods", "shop/web")
            assert "may reach: Accept to anyone on TCP 80 (web)" in said and "may reach: nothing else" in said
            assert "reached pod shop/cart on TCP 80: 3 flows" in said
            code, said, _ = await ask(nats_server, "recommend", "shop/web")
            spec = yaml.safe_load(said)["spec"]
            assert code == 0 and said.startswith("# from 1 pod, 4 flows")
            assert spec["podSelector"] == {"matchLabels": {"app": "web"}}
            peers = [{"domainNames": ["a.example"]}, {"podSelector": {"matchLabels": {"app": "cart"}}}]
            assert spec["egress"] == [{"to": peers, "ports": [{"protocol": "TCP", "port": 80}]}]

    run(scenario())


REFUSED = [
    (("unused", "--since", "soon"), "--since soon"),
    (("pods", "nowhere"), "no such pod or namespace"),
    (("recommend", "shop/cart"), "nothing is known of shop/cart"),
    (("recommend", "shop"), "NAMESPACE/POD is wanted"),
]


def test_what_is_not_known_is_not_answered(nats_server: NatsServer, tmp_path: Path) -> None:
    """Before any report no rule is called unused; no guess is made of anything: exit 2, the reason on stderr."""

    async def scenario() -> None:
        (tmp_path / "shop.yaml").write_text(SHOP)
        async with controller(nats_server, tmp_path, "one") as leader:
            await leader.until_said("published")
            _, said, _ = await ask(nats_server, "unused", "-o", "json")
            assert {one["use"] for one in json.loads(said)} == {"no-data"}
            _, said, _ = await ask(nats_server, "pods")
            assert "no node has reported yet" in said
            for words, complaint in REFUSED:
                code, said, complained = await ask(nats_server, *words)
                assert (code, said) == (2, "") and complaint in complained

    run(scenario())
