"""Nodes that register with a taint, on a real API server: no pod before the node's agent enforces."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from nats.aio.client import Client

from schemas import wire
from schemas.status import AgentStatus
from schemas.terms import NodeName, RevisionNumber
from tests.bus.controllers import ask
from tests.bus.harness import connected, run
from tests.deploy.test_overlays import DEPLOY, containers, environment, find, render_with
from tests.kube.servers import CONTROLLER_TOKEN, KubeServer
from tests.kube.test_lease import fill, reading
from tests.kube.test_rbac import granted, used
from tests.nats_server import NatsServer

pytestmark = pytest.mark.kube

KEY = "yett.dev/agent-not-ready"
OURS = {"key": KEY, "effect": "NoSchedule"}
OTHERS = {"key": "example.com/gpu", "value": "yes", "effect": "NoSchedule"}
COMPONENT = DEPLOY / "components" / "startup-taint"
NODES = "/api/v1/nodes"


@contextmanager
def installed(kube: KubeServer) -> Iterator[dict[str, str]]:
    """The shipped roles and the component's, two nodes; yields the settings that the component gives a controller."""
    fill(kube, 2)
    kube.kubectl("apply", "-f", str(DEPLOY / "base" / "rbac.yaml"), "-f", str(COMPONENT / "rbac.yaml"))
    for name in ("node-a", "node-b"):
        kube.admin.create(NODES, {"metadata": {"name": name}, "spec": {"taints": [OTHERS, OURS]}})
    config = str(kube.kubeconfig("controller", CONTROLLER_TOKEN))
    objects = render_with("startup-taint")
    taint = environment(containers(objects)["controller"])["YETT_STARTUP_TAINT"]
    yield {"YETT_KUBE_CONFIG": config, "YETT_STARTUP_TAINT": taint}


def taints(kube: KubeServer, node: str) -> list[str]:
    """The keys of the node's taints; the API server adds one of its own to a node that no kubelet has spoken for."""
    found = kube.admin.call("GET", f"{NODES}/{node}")["spec"].get("taints", [])
    return [each["key"] for each in found if not each["key"].startswith("node.kubernetes.io/")]


def retaint(kube: KubeServer, node: str) -> None:
    body = {"spec": {"taints": [OTHERS, OURS]}}
    kube.admin.call("PATCH", f"{NODES}/{node}", body, content_type="application/merge-patch+json")


class Agents:
    """Both nodes' agents: what each has said last, said again and again."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.said: dict[str, dict[str, Any]] = {"node-a": {}, "node-b": {}}

    async def speak(self) -> None:
        while True:
            for node, said in self.said.items():
                status = AgentStatus(node=NodeName(node), **said)
                await self.client.publish(wire.subject_status(status.node), wire.encode(status))
            await asyncio.sleep(0.1)


def test_the_taint_goes_when_the_nodes_agent_enforces(nats_server: NatsServer, kube: KubeServer) -> None:
    """Not before, not on another node; others' taints stay. Put on again by hand it stays, until an agent starts anew.

    All by the rights that the component adds, of which none is left over; without it nothing is written to nodes.
    """

    async def scenario() -> None:
        since = len(kube.audit())
        with installed(kube) as settings:
            async with connected(nats_server) as (client, _), reading(nats_server, kube, "one", **settings) as one:
                agents = Agents(client)
                speaking = asyncio.create_task(agents.speak())
                await one.until_said("published")
                epoch = (await ask(client)).epoch
                # Programs are not attached yet, or of an earlier life of the stream: neither is ready.
                agents.said = {
                    "node-a": {"epoch": epoch, "started_unix_nanos": 1},
                    "node-b": {"epoch": "0" * 16, "revision": RevisionNumber(9), "started_unix_nanos": 1},
                }
                assert (await nodes_known(client)) == {"node-a": 0, "node-b": 0}
                assert taints(kube, "node-a") == taints(kube, "node-b") == [OTHERS["key"], KEY]
                agents.said["node-a"] |= {"revision": RevisionNumber(1)}
                await one.until_said("startup taint taken off")
                assert taints(kube, "node-a") == [OTHERS["key"]]
                assert taints(kube, "node-b") == [OTHERS["key"], KEY]
                retaint(kube, "node-a")
                # The other node is looked at later: what was due for the first has been done by then, or never is.
                agents.said["node-b"] = {"epoch": epoch, "revision": RevisionNumber(1), "started_unix_nanos": 1}
                await one.until_said("startup taint taken off", times=2)
                assert taints(kube, "node-b") == [OTHERS["key"]]
                assert taints(kube, "node-a") == [OTHERS["key"], KEY]
                agents.said["node-a"] |= {"started_unix_nanos": 2}
                await one.until_said("startup taint taken off", times=3)
                assert taints(kube, "node-a") == [OTHERS["key"]]
                speaking.cancel()
            rights = {right for right in used(kube, code=200, since=since) if right[2] == "nodes"}
            added = granted(COMPONENT / "rbac.yaml")
            assert rights - granted() == added == {("get", "", "nodes", "", ""), ("patch", "", "nodes", "", "")}
            assert used(kube, code=403, since=since) == set()

    run(scenario(), 120)


async def nodes_known(client: Client) -> dict[str, int]:
    """The revision of every node, once the leader has heard both."""
    async with asyncio.timeout(20):
        while True:
            nodes = (await ask(client)).nodes
            if len(nodes) == 2:
                return dict(nodes)
            await asyncio.sleep(0.05)


def test_without_the_right_the_log_says_so_and_policy_goes_on(nats_server: NatsServer, kube: KubeServer) -> None:
    """The setting without the component's role: refused by the server, said by node, and revisions are published."""

    async def scenario() -> None:
        with installed(kube) as settings:
            kube.kubectl("delete", "-f", str(COMPONENT / "rbac.yaml"))
            async with connected(nats_server) as (client, _), reading(nats_server, kube, "one", **settings) as one:
                agents = Agents(client)
                speaking = asyncio.create_task(agents.speak())
                await one.until_said("published")
                epoch = (await ask(client)).epoch
                agents.said["node-a"] = {"epoch": epoch, "revision": RevisionNumber(1), "started_unix_nanos": 1}
                said = await one.until_said("startup taint not taken off")
                assert said["node"] == "node-a" and "403" in said["reason"]
                kube.admin.create_pod("shop", "later", address="10.0.0.77")
                await one.until_said("published", times=2)
                assert taints(kube, "node-a") == [OTHERS["key"], KEY]
                speaking.cancel()

    run(scenario(), 120)


def test_who_takes_the_taint_off_can_run_on_a_tainted_node() -> None:
    """In a cluster whose nodes are all new nothing else would ever start."""
    objects = render_with("startup-taint")
    for kind, name in (("Deployment", "yett-controller"), ("StatefulSet", "yett-nats"), ("DaemonSet", "yett-agent")):
        spec = find(objects, kind, name)["spec"]["template"]["spec"]
        assert any(each.get("key", KEY) == KEY and each["operator"] == "Exists" for each in spec["tolerations"])
    assert yaml.safe_load((COMPONENT / "kustomization.yaml").read_text())["kind"] == "Component"
