"""The source on a real API server: what it says, and what it says when the server is not there."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest
from nats.aio.client import Client

from schemas import wire
from schemas.policy import Config
from schemas.terms import Default
from services.common.jetstream import JetStream
from tests.bus.controllers import ask
from tests.bus.harness import connected, eventually, run, stored
from tests.kube.definitions import definition, open_definition
from tests.kube.proxy import wire_to
from tests.kube.seen import QUICK, seeing
from tests.kube.servers import ADMIN_TOKEN, READER_TOKEN, KubeServer
from tests.kube.test_lease import reading
from tests.nats_server import NatsServer

pytestmark = pytest.mark.kube

POLICIES = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
CLUSTER_POLICIES = "/apis/networking.k8s.aws/v1alpha1/clusternetworkpolicies"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CLOSED = {"metadata": {"name": "closed"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}


def cluster_policy(name: str) -> dict[str, Any]:
    """A ClusterNetworkPolicy of the AWS group."""
    subject = {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}
    return {
        "apiVersion": "networking.k8s.aws/v1alpha1",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": "Admin", "priority": 10, "subject": subject},
    }


def fill(kube: KubeServer) -> None:
    """A namespace with five pods, a Service with its slice, a node, a policy."""
    kube.admin.create_namespace("shop", team="retail")
    node = {"metadata": {"name": "node-a"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.1.0.1"}]}}
    kube.admin.create("/api/v1/nodes", node)
    for number in range(5):
        kube.admin.create_pod("shop", f"web-{number}", address=f"10.0.0.{number}", app="web")
    port = {"name": "http", "port": 80, "protocol": "TCP"}
    service = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [port]}}
    kube.admin.create("/api/v1/namespaces/shop/services", service)
    sliced = {
        "metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "web-1"}}],
        "ports": [port],
    }
    kube.admin.create("/apis/discovery.k8s.io/v1beta1/namespaces/shop/endpointslices", sliced)
    kube.admin.create(POLICIES, CLOSED)


def test_everything_is_said_at_once_then_every_change(kube: KubeServer) -> None:
    """The first batch has every object of every kind, with the fields that count; then come additions, changes and
    removals, and nothing where an object changed in what does not count."""

    async def scenario() -> None:
        fill(kube)
        async with seeing(kube.kubeconfig("admin", ADMIN_TOKEN)) as seen:
            await seen.until(lambda: bool(seen.batches))
            assert seen.names("Pod", "shop") == {f"web-{number}" for number in range(5)}
            assert seen.names("Service", "shop") == {"web"} and seen.names("EndpointSlice", "shop") == {"web-x"}
            assert seen.names("NetworkPolicy", "shop") == {"closed"} and seen.names("Node") == {"node-a"}
            pod: Any = seen.objects["Pod", "shop", "web-1"]
            assert pod["status"]["podIPs"] == [{"ip": "10.0.0.1"}] and pod["spec"]["nodeName"] == "node-a"
            assert pod["metadata"]["labels"] == {"app": "web"} and "resourceVersion" not in pod["metadata"]
            namespace: Any = seen.objects["Namespace", "", "shop"]
            assert namespace["metadata"]["labels"]["team"] == "retail"
            before = seen.events
            note = {"metadata": {"annotations": {"seen": "yes"}}}
            merge = "application/merge-patch+json"
            kube.admin.call("PATCH", "/api/v1/namespaces/shop/pods/web-0", note, content_type=merge)
            kube.admin.call("DELETE", f"{POLICIES}/closed")
            kube.admin.create_pod("shop", "late")
            await seen.until(lambda: "late" in seen.names("Pod", "shop") and not seen.names("NetworkPolicy", "shop"))
            assert seen.events == before + 2

    run(scenario())


def test_nothing_is_said_while_one_kind_cannot_be_listed(kube: KubeServer) -> None:
    """A user that may read all kinds but NetworkPolicies is told nothing at all; once it may, everything at once."""

    def rule(*resources: str) -> dict[str, Any]:
        return {"apiGroups": ["*"], "resources": [*resources], "verbs": ["list", "watch", "get"]}

    async def scenario() -> None:
        fill(kube)
        kinds = ("namespaces", "nodes", "pods", "services", "endpointslices", "configmaps")
        kube.grant("most", "reader", rule(*kinds, "customresourcedefinitions"))
        async with seeing(kube.kubeconfig("reader", READER_TOKEN)) as seen:
            watchers = seen.cluster.watchers
            await eventually(
                lambda: (
                    [each.kind.plural for each in watchers if not each.is_complete] == ["networkpolicies"]
                    and not any(each.trouble for each in watchers if each.is_complete)
                    and any(each.trouble for each in watchers)
                )
            )
            [refused] = [each for each in watchers if not each.is_complete]
            assert "403" in refused.trouble and not seen.batches
            kube.grant("rest", "reader", rule("networkpolicies"))
            await seen.until(lambda: bool(seen.batches))
            assert seen.names("NetworkPolicy", "shop") == {"closed"} and len(seen.names("Pod", "shop")) == 5

    run(scenario())


def test_a_kind_that_is_defined_later_is_read_from_then_on(kube: KubeServer) -> None:
    """Its objects come when its definition does, go when the definition is deleted, and come back with it."""

    async def scenario() -> None:
        async with seeing(kube.kubeconfig("admin", ADMIN_TOKEN)) as seen:
            await seen.until(lambda: bool(seen.batches))
            for _ in range(2):
                kube.admin.create(DEFINITIONS, definition("ClusterNetworkPolicy"))
                kube.until(lambda: kube.admin.request("GET", CLUSTER_POLICIES)[0] == 200, 20)
                kube.admin.create(CLUSTER_POLICIES, cluster_policy("first"))
                await seen.until(lambda: seen.names("ClusterNetworkPolicy.networking.k8s.aws") == {"first"})
                kube.admin.call("DELETE", f"{DEFINITIONS}/clusternetworkpolicies.networking.k8s.aws")
                await seen.until(lambda: not seen.names("ClusterNetworkPolicy.networking.k8s.aws"))
                kube.until(lambda: not kube.admin.call("GET", DEFINITIONS)["items"], 20)

    run(scenario())


def test_what_went_during_a_gap_is_seen_after_it(kube: KubeServer) -> None:
    """The wire is cut; a pod goes, another comes, and the server forgets the old versions (compaction, restart): after
    the gap there is a new list, and the difference is said, nothing else."""

    async def scenario() -> None:
        fill(kube)
        async with (
            wire_to(kube.port) as wire,
            seeing(kube.kubeconfig("wired", ADMIN_TOKEN, port=wire.port)) as seen,
        ):
            await seen.until(lambda: bool(seen.batches))
            lists, events = seen.cluster.lists, seen.events
            wire.cut()
            kube.admin.call("DELETE", "/api/v1/namespaces/shop/pods/web-0")
            kube.admin.create_pod("shop", "late")
            kube.apiserver.stop(signal.SIGKILL)
            kube.compact()
            kube.start_apiserver()
            wire.mend()
            await seen.until(
                lambda: "web-0" not in seen.names("Pod", "shop") and "late" in seen.names("Pod", "shop"), 40
            )
            said = [event for batch in seen.batches for event in batch][events:]
            assert len([event for event in said if event.problems is None]) == 2
            assert seen.cluster.lists > lists

    run(scenario(), 120)


def test_a_short_cut_needs_no_new_list(kube: KubeServer) -> None:
    """A watch goes on from the version that it had come to: what happened in the gap is said, and nothing is listed."""

    async def scenario() -> None:
        fill(kube)
        async with (
            wire_to(kube.port) as wire,
            seeing(kube.kubeconfig("wired", ADMIN_TOKEN, port=wire.port)) as seen,
        ):
            await seen.until(lambda: bool(seen.batches))
            lists = seen.cluster.lists
            wire.cut()
            kube.admin.call("DELETE", "/api/v1/namespaces/shop/pods/web-0")
            wire.mend()
            await seen.until(lambda: "web-0" not in seen.names("Pod", "shop"))
            assert seen.cluster.lists == lists

    run(scenario())


def test_a_silent_watch_is_given_up(kube: KubeServer) -> None:
    """Connections stand and nothing passes: after the time a watch may last the source connects anew, and hears."""

    async def scenario() -> None:
        fill(kube)
        pace = type(QUICK)(page=3, watch_seconds=2, silence_seconds=2)
        async with (
            wire_to(kube.port) as wire,
            seeing(kube.kubeconfig("wired", ADMIN_TOKEN, port=wire.port), pace) as seen,
        ):
            await seen.until(lambda: bool(seen.batches))
            wire.hush()
            kube.admin.call("DELETE", f"{POLICIES}/closed")
            await seen.until(lambda: bool(seen.problems), 30)
            assert seen.names("NetworkPolicy", "shop") == {"closed"}
            assert "stale since" in seen.problems[0].message
            wire.mend()
            await seen.until(lambda: not seen.names("NetworkPolicy", "shop") and not seen.problems, 60)

    run(scenario(), 120)


def test_while_the_server_is_away_the_last_good_state_stays(kube: KubeServer) -> None:
    """Nothing is said to be gone; a problem for every kind says since when; when the server is back they go."""

    async def scenario() -> None:
        fill(kube)
        kube.admin.create(DEFINITIONS, definition("ClusterNetworkPolicy"))
        kube.until(lambda: kube.admin.request("GET", CLUSTER_POLICIES)[0] == 200, 20)
        kube.admin.create(CLUSTER_POLICIES, cluster_policy("first"))
        async with seeing(kube.kubeconfig("admin", ADMIN_TOKEN)) as seen:
            await seen.until(lambda: bool(seen.names("ClusterNetworkPolicy.networking.k8s.aws")))
            before = dict(seen.objects)
            kube.apiserver.stop(signal.SIGKILL)
            # Seven kinds that every server has, one that is defined here, and the definitions.
            await seen.until(lambda: len(seen.problems) == 9, 30)
            assert all(problem.severity == "warning" for problem in seen.problems)
            assert seen.objects == before
            kube.start_apiserver()
            await seen.until(lambda: not seen.problems, 60)
            assert seen.objects == before

    run(scenario(), 150)


def test_a_token_that_is_rotated_is_taken_up(kube: KubeServer) -> None:
    """The server comes back knowing only a new token: until it stands in the kubeconfig nothing is gone, then changes
    are heard again."""

    async def scenario() -> None:
        fill(kube)
        kube.tokens["old-token"] = ("old", ("system:masters",))
        kube.apiserver.stop()
        kube.start_apiserver()
        async with seeing(kube.kubeconfig("rotating", "old-token")) as seen:
            await seen.until(lambda: bool(seen.batches))
            before = dict(seen.objects)
            kube.tokens["new-token"] = kube.tokens.pop("old-token")
            kube.apiserver.stop(signal.SIGKILL)
            kube.start_apiserver()
            await seen.until(lambda: any("401" in problem.message for problem in seen.problems), 40)
            assert seen.objects == before
            kube.kubeconfig("rotating", "new-token")
            kube.admin.call("DELETE", f"{POLICIES}/closed")
            await seen.until(lambda: not seen.names("NetworkPolicy", "shop") and not seen.problems, 40)

    run(scenario(), 150)


def test_what_cannot_be_read_any_more_outlives_a_restart_and_what_is_gone_does_not(
    nats_server: NatsServer, kube: KubeServer
) -> None:
    """While no controller runs definitions go over to a version that nobody reads, and a NetworkPolicy is deleted: the
    next controller keeps the remembered policies of the kind and the NodeClass's default, names them, and drops the
    NetworkPolicy. Once the kinds are read again it keeps what is there, and nothing else."""
    read = {"clusternetworkpolicies.networking.k8s.aws": "v1alpha1", "nodeclasses.eks.amazonaws.com": "v1"}
    foreign = "/apis/networking.k8s.aws/v9/clusternetworkpolicies"
    classes = "/apis/eks.amazonaws.com/v1/nodeclasses"

    def serve(*, is_read: bool) -> None:
        """Both versions are defined, and stored as the one that is read."""
        for resource, version in read.items():
            one = kube.admin.call("GET", f"{DEFINITIONS}/{resource}")
            [known] = [each for each in one["spec"]["versions"] if each["name"] == version]
            one["spec"]["versions"] = [
                {**known, "served": is_read},
                {**known, "name": "v9", "served": True, "storage": False},
            ]
            kube.admin.call("PUT", f"{DEFINITIONS}/{resource}", one)

    async def remembered(client: Client, jetstream: JetStream) -> set[str]:
        """The policies of which the stream has the specs."""
        rows = {subject: row.body for subject, row in (await stored(client, jetstream)).items()}
        return {subject.rpartition(".")[2] for subject, body in rows.items() if body and ".source." in subject}

    async def until(client: Client, jetstream: JetStream, names: set[str], complaints: set[str]) -> None:
        """These are remembered, the leader's problems are of these objects, and the node's default is its class's."""
        async with asyncio.timeout(30):
            while (  # noqa: ASYNC110  another process's deeds
                await remembered(client, jetstream) != names
                or {each.object for each in (await ask(client)).problems} != complaints
            ):
                await asyncio.sleep(0.05)
        config = (await stored(client, jetstream))[wire.SUBJECT_CONFIG]
        row = wire.decode(wire.SUBJECT_CONFIG, config.body)
        assert isinstance(row, Config) and row.node_defaults == {"node-a": Default.DENY}

    async def scenario() -> None:
        for name in ("yett-system", "shop"):
            kube.admin.create_namespace(name)
        labels = {"eks.amazonaws.com/nodeclass": "strict"}
        kube.admin.create("/api/v1/nodes", {"metadata": {"name": "node-a", "labels": labels}})
        kube.admin.create(POLICIES, CLOSED)
        kube.admin.create(DEFINITIONS, definition("ClusterNetworkPolicy"))
        defined = open_definition("eks.amazonaws.com", "v1", "NodeClass", "nodeclasses", scope="Cluster")
        kube.admin.create(DEFINITIONS, defined)
        for path in (CLUSTER_POLICIES, classes):
            kube.until(lambda path=path: kube.admin.request("GET", path)[0] == 200, 20)
        strict = {"apiVersion": "eks.amazonaws.com/v1", "kind": "NodeClass", "metadata": {"name": "strict"}}
        kube.admin.create(classes, strict | {"spec": {"networkPolicy": "DefaultDeny"}})
        for name in ("stays", "goes"):
            kube.admin.create(CLUSTER_POLICIES, cluster_policy(name))
        async with connected(nats_server) as (client, jetstream):
            async with reading(nats_server, kube, "one") as one:
                await one.until_said("published")
                await until(client, jetstream, {"closed", "stays", "goes", "strict"}, set())
            serve(is_read=False)
            kube.until(lambda: kube.admin.request("GET", foreign)[0] == 200, 20)
            kube.admin.call("DELETE", f"{POLICIES}/closed")
            kube.admin.call("DELETE", f"{foreign}/goes")
            async with reading(nats_server, kube, "two") as two:
                await two.until_said("leading")
                kept = {f"ClusterNetworkPolicy.networking.k8s.aws {name}" for name in ("stays", "goes")}
                sources = {f"Kubernetes API {resource}" for resource in read}
                await until(client, jetstream, {"stays", "goes", "strict"}, kept | {"NodeClass strict"} | sources)
                serve(is_read=True)
                await until(client, jetstream, {"stays", "strict"}, set())

    run(scenario())
