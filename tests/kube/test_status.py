"""What policies' owners are told, in the objects themselves, by a controller process on a real API server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client

from schemas import wire
from schemas.status import FOREIGN_ENFORCER, AgentStatus, EndpointStatus
from schemas.terms import NodeName
from tests.bus.controllers import ask
from tests.bus.harness import connected, eventually, run
from tests.kube.definitions import definition
from tests.kube.servers import KubeServer
from tests.kube.test_lease import reading
from tests.nats_server import NatsServer

pytestmark = pytest.mark.kube

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
PATH = "/apis/networking.k8s.aws/v1alpha1/namespaces/shop/applicationnetworkpolicies"
NETWORK = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
MERGE = "application/merge-patch+json"
POLICY = {
    "apiVersion": "networking.k8s.aws/v1alpha1",
    "kind": "ApplicationNetworkPolicy",
    "metadata": {"name": "p", "namespace": "shop"},
    "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"domainNames": ["a.example.com"]}]}]},
}


def fill(kube: KubeServer) -> None:
    kube.admin.create_namespace("yett-system")
    kube.admin.create_namespace("shop")
    kube.admin.create_pod("shop", "web", address="10.0.0.1", node="node-a")
    kube.admin.create(DEFINITIONS, definition("ApplicationNetworkPolicy"))
    kube.until(lambda: kube.admin.request("GET", PATH)[0] == 200, 20)
    kube.admin.create(PATH, POLICY)


async def until_conditions(kube: KubeServer, is_true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The policy's conditions by type, once they are as wanted."""
    async with asyncio.timeout(60):
        while True:
            obj = kube.admin.call("GET", f"{PATH}/p")
            found = {each["type"]: each for each in obj.get("status", {}).get("conditions", ())}
            if found and is_true(found):
                return found
            await asyncio.sleep(0.05)


class Agent:
    """The agent of the one node: says again and again how far it has come, as agents do."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._status = AgentStatus(node=NodeName("node-a"))

    async def speak(self) -> None:
        while True:
            await self.client.publish(wire.subject_status(self._status.node), wire.encode(self._status))
            await asyncio.sleep(0.2)

    def see(self, foreign: str) -> None:
        """A program of others runs before ours on the one interface; none if empty."""
        one = EndpointStatus(pod="shop/web", interface="eni1", ifindex=4, state="enforced", foreign=foreign)
        self._status = msgspec.structs.replace(self._status, endpoints=(one,))

    async def come_to_the_present(self) -> None:
        """To the leader's revision."""
        status = await ask(self.client)
        self._status = AgentStatus(node=NodeName("node-a"), epoch=status.epoch, revision=status.revision)


@asynccontextmanager
async def an_agent(nats: NatsServer) -> AsyncIterator[Agent]:
    async with connected(nats) as (client, _):
        agent = Agent(client)
        speaking = asyncio.create_task(agent.speak())
        try:
            yield agent
        finally:
            speaking.cancel()


def edit(kube: KubeServer, name: str) -> None:
    spec = {"egress": [{"to": [{"domainNames": [name]}]}]}
    kube.admin.call("PATCH", f"{PATH}/p", {"spec": spec}, content_type=MERGE)


def asked(kube: KubeServer, verb: str, path: str) -> int:
    """How often a controller asked this of the server, by the audit log."""
    return sum(
        (entry["verb"], entry.get("userAgent")) == (verb, "yett-controller") and entry["requestURI"].startswith(path)
        for entry in kube.audit()
    )


def writes(kube: KubeServer, name: str) -> int:
    return asked(kube, "patch", f"{PATH}/{name}/status")


def looks(kube: KubeServer) -> int:
    return asked(kube, "get", f"{PATH}/p")


def test_the_status_follows_the_nodes(nats_server: NatsServer, kube: KubeServer) -> None:
    """Accepted at once; Programmed when the node that holds the ruleset has come to its revision, not before; after an
    edit both speak of the new generation, and Programmed waits for the node again."""

    async def scenario() -> None:
        fill(kube)
        async with an_agent(nats_server) as agent, reading(nats_server, kube, "one"):
            found = await until_conditions(kube, lambda found: found["Programmed"]["reason"] == "Pending")
            assert found["Accepted"]["status"] == "True" and found["Programmed"]["status"] == "False"
            assert found["Programmed"]["message"] == "enforced on 0 of 1 nodes"
            await agent.come_to_the_present()
            found = await until_conditions(kube, lambda found: found["Programmed"]["status"] == "True")
            assert found["Programmed"]["message"] == "enforced on 1 of 1 nodes"
            edit(kube, "b.example.com")
            found = await until_conditions(kube, lambda found: found["Programmed"]["observedGeneration"] == 2)
            assert found["Programmed"]["status"] == "False" and found["Accepted"]["observedGeneration"] == 2
            await agent.come_to_the_present()
            await until_conditions(kube, lambda found: found["Programmed"]["status"] == "True")

    run(scenario(), 240)


def test_a_refusal_is_in_the_status_and_an_event(nats_server: NatsServer, kube: KubeServer) -> None:
    """A field that the schema keeps and nobody knows: Accepted is false with its path, Programmed with the version that
    is in force instead, one Warning stands beside the object; mended, it is accepted again."""

    async def scenario() -> None:
        fill(kube)
        async with reading(nats_server, kube, "one"):
            await until_conditions(kube, lambda found: found["Accepted"]["status"] == "True")
            kube.admin.call("PATCH", f"{PATH}/p", {"spec": {"podSelectr": {}}}, content_type=MERGE)
            found = await until_conditions(kube, lambda found: found["Accepted"]["status"] == "False")
            assert found["Accepted"]["message"].startswith("spec.podSelectr: unknown field")
            assert (found["Programmed"]["status"], found["Programmed"]["reason"]) == ("False", "LastGoodVersion")
            await eventually(lambda: bool(kube.admin.call("GET", "/api/v1/namespaces/shop/events")["items"]), 30)
            [event] = kube.admin.call("GET", "/api/v1/namespaces/shop/events")["items"]
            assert (event["type"], event["reason"], event["involvedObject"]["name"]) == ("Warning", "Refused", "p")
            assert event["message"] == found["Accepted"]["message"]
            kube.admin.call("PATCH", f"{PATH}/p", {"spec": {"podSelectr": None}}, content_type=MERGE)
            await until_conditions(kube, lambda found: found["Accepted"]["status"] == "True")

    run(scenario(), 240)


def test_a_refusal_of_a_kind_without_a_status_is_an_event_alone(nats_server: NatsServer, kube: KubeServer) -> None:
    """A NetworkPolicy under a mode that nobody knows: one Warning with the annotation's path stands beside the object.
    Neither it nor its status is ever asked for or written, while the status of another kind is."""
    one, events = f"{NETWORK}/shut", "/api/v1/namespaces/shop/events"
    metadata = {"name": "shut", "annotations": {"yett.dev/mode": "nonsense"}}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata}

    async def scenario() -> None:
        fill(kube)
        made = kube.admin.create(NETWORK, {**policy, "spec": {"podSelector": {}, "policyTypes": ["Egress"]}})
        async with reading(nats_server, kube, "one"):
            await eventually(lambda: bool(kube.admin.call("GET", events)["items"]), 30)
            kube.admin.call("PATCH", one, {"spec": {"policyTypes": ["Ingress"]}}, content_type=MERGE)
            # A new generation, refused as the first one was, is said anew: whatever came of either has come by then.
            await eventually(lambda: len(kube.admin.call("GET", events)["items"]) == 2, 30)
            await until_conditions(kube, lambda found: found["Accepted"]["status"] == "True")
        for event in kube.admin.call("GET", events)["items"]:
            assert (event["type"], event["reason"]) == ("Warning", "Refused")
            involved = event["involvedObject"]
            assert (involved["kind"], involved["name"]) == ("NetworkPolicy", "shut")
            assert involved["uid"] == made["metadata"]["uid"]
            assert event["message"] == "metadata.annotations.yett.dev/mode: 'nonsense' is none of enforce, audit"
        assert writes(kube, "p") and looks(kube)
        assert not [verb for verb in ("get", "patch", "update", "create") if asked(kube, verb, one)]
        assert not kube.admin.call("GET", one).get("status")

    run(scenario(), 240)


def test_another_enforcer_is_an_event_of_its_node(nats_server: NatsServer, kube: KubeServer) -> None:
    """A Warning beside the Node with the condition's name and the program; a second leader says nothing again."""
    events = "/api/v1/namespaces/default/events"

    def told() -> list[dict[str, Any]]:
        return [one for one in kube.admin.call("GET", events)["items"] if one["reason"] == FOREIGN_ENFORCER]

    async def scenario() -> None:
        fill(kube)
        async with an_agent(nats_server) as agent, reading(nats_server, kube, "one") as one:
            await one.until_said("leading")
            assert not told()
            agent.see("bpf handle_ingress at tc ingress, priority 1, handle 0x1")
            await eventually(lambda: bool(told()), 30)
            async with reading(nats_server, kube, "two") as other:
                await other.until_said("standing by")
                one.signal(signal.SIGTERM)
                await other.until_said("leading")
                agent.see("bpf other at tc egress, priority 1, handle 0x1")
                await eventually(lambda: len(told()) == 2, 30)
            first = min(told(), key=lambda event: "other" in event["message"])
            assert (first["type"], first["involvedObject"]["kind"]) == ("Warning", "Node")
            assert first["involvedObject"]["name"] == "node-a" and "handle_ingress at tc ingress" in first["message"]

    run(scenario(), 240)


def test_nothing_is_written_twice(nats_server: NatsServer, kube: KubeServer) -> None:
    """Another controller's condition stays; a pod that changes makes no write; a new leader finds everything said and
    writes nothing."""

    async def scenario() -> None:
        fill(kube)
        foreign = {"type": "Foreign", "status": "True", "reason": "R", "message": "m"}
        foreign["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        kube.admin.call("PATCH", f"{PATH}/p/status", {"status": {"conditions": [foreign]}}, content_type=MERGE)
        async with an_agent(nats_server) as agent, reading(nats_server, kube, "one") as one:
            await one.until_said("published")
            await until_conditions(kube, lambda found: "Programmed" in found)
            await agent.come_to_the_present()
            found = await until_conditions(kube, lambda found: found["Programmed"]["status"] == "True")
            assert found["Foreign"]["reason"] == "R"
            before = writes(kube, "p")
            kube.admin.give_address("shop", "web", "10.0.0.2")
            await one.until_said("published", times=2)
            await agent.come_to_the_present()
            async with reading(nats_server, kube, "two") as other:
                await other.until_said("standing by")
                looked = looks(kube)
                one.signal(signal.SIGTERM)
                await other.until_said("leading")
                await eventually(lambda: looks(kube) > looked, 60)
                # An object that is new to it, so that what it might have written before is written.
                kube.admin.create(PATH, {**POLICY, "metadata": {"name": "later"}})
                await eventually(lambda: bool(kube.admin.call("GET", f"{PATH}/later").get("status")), 60)
                await agent.come_to_the_present()
                assert writes(kube, "p") == before
                assert await until_conditions(kube, lambda found: "Foreign" in found) == found

    run(scenario(), 240)


def test_seeds_applied_with_kubectl_say_what_became_of_them(nats_server: NatsServer, kube: KubeServer) -> None:
    """Every policy of the seeds is accepted, through kubectl, and has a source row in the stream's last revision."""

    async def scenario() -> None:
        fill(kube)
        kube.admin.create(DEFINITIONS, definition("ClusterNetworkPolicy"))
        cluster = "/apis/networking.k8s.aws/v1alpha1/clusternetworkpolicies"
        kube.until(lambda: kube.admin.request("GET", cluster)[0] == 200, 20)
        for name in ("app", "cart-services"):
            kube.admin.create_namespace(name)
        seeds = Path(__file__).parents[1] / "seeds"
        async with an_agent(nats_server) as agent, reading(nats_server, kube, "one") as one:
            await one.until_said("published")
            for path in sorted(seeds.glob("*.yaml")):
                if "kind: " in path.read_text():
                    # No object's name has capitals on a server.
                    text = path.read_text().replace("access-to-DynamoDB", "access-to-dynamodb")
                    kube.kubectl("apply", "-f", "-", stdin=text)
            wanted = {
                f"{cluster}/{name}"
                for name in ("allow-intra-app", "block-instance-metadata-service", "on-premises-access")
            }
            root = "/apis/networking.k8s.aws/v1alpha1/namespaces"
            wanted.add(f"{root}/default/applicationnetworkpolicies/access-to-s3")
            wanted.add(f"{root}/cart-services/applicationnetworkpolicies/access-to-dynamodb")
            wanted.add(f"{root}/app/applicationnetworkpolicies/allow-example-com-only")
            async with asyncio.timeout(60):
                for path in sorted(wanted):
                    while not (status := kube.admin.call("GET", path).get("status")):  # noqa: ASYNC110  a server's deed
                        await asyncio.sleep(0.1)
                    assert {each["type"]: each["status"] for each in status["conditions"]}["Accepted"] == "True", path
            assert [problem for problem in (await ask(agent.client)).problems if problem.severity == "error"] == []

    run(scenario(), 240)
