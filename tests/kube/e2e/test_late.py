"""Objects that are late or contradict each other: who has an address is who is newest, and nothing outlives its end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.demo import objects, topology
from services.demo.lab import in_namespace, run_command
from services.demo.servers import connects, start_web, wait_until
from services.demo.topology import NODE_A, NODE_B, POD_WEB_PORT, Pod, Service
from tests.kube.e2e.apiobjects import ApiObjects
from tests.kube.e2e.cluster import Cluster, applied, open_to

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(180)]

OPEN = "203.0.113.10"
CLIENT = "switch/switch-client"
SERVERS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-servers, namespace: switch}
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: of-servers, namespace: switch}
spec: {podSelector: {matchExpressions: [{key: app, operator: Exists}]}, policyTypes: [Ingress], ingress: [{}]}
"""


class Servers:
    """Pods that serve, by name; ``app: server`` may be reached by the clients, no other."""

    def __init__(self, whole: Cluster) -> None:
        self.whole = whole
        self._made: list[Pod] = []

    def announce(self, name: str, host: int, app: str) -> Pod:
        """The object alone: bound to the second node, with its address."""
        pod = Pod("switch", name, NODE_B, host, (("app", app),), serves=True)
        self.whole.objects.put(objects.make_pod(pod))
        self._made.append(pod)
        return pod

    def run(self, pod: Pod) -> None:
        """Its sandbox, and a web server in it that answers."""
        lab = self.whole.demo.lab
        lab.add_pod(pod)
        start_web(lab, lab.pod_namespace(pod), f"web-{pod.name}", http=[POD_WEB_PORT])

    def forget(self, pod: Pod) -> None:
        """The object goes; the sandbox may have gone before."""
        self._made.remove(pod)
        delete_pod(self.whole, pod.name)

    def end(self) -> None:
        before = self.whole.revision()
        for pod in list(self._made):
            self.forget(pod)
            if pod.key in self.whole.demo.lab.pods:
                self.whole.end_pod(pod)
        self.whole.settle(before)


def delete_pod(whole: Cluster, name: str) -> None:
    whole.kube.admin.call("DELETE", f"/api/v1/namespaces/switch/pods/{name}?gracePeriodSeconds=0")


@pytest.fixture
def servers(whole: Cluster) -> Iterator[Servers]:
    """The clients may reach pods of ``app: server``."""
    with applied(whole, "servers.yaml", SERVERS):
        made = Servers(whole)
        yield made
        made.end()


def test_an_address_belongs_to_the_newer_of_two_pods(servers: Servers) -> None:
    """A pod is gone from its node and not yet from the API; a newer one has its address and other labels: it is judged
    by its own; and when the older object goes at last, the address stays the newer's."""
    whole = servers.whole
    old = servers.announce("old", 81, "server")
    servers.run(old)
    whole.until(lambda: whole.reaches(CLIENT, old.address, POD_WEB_PORT), 20, "the old one is reached")
    whole.end_pod(old)
    # Kubernetes tells which is newer in whole seconds.
    made = read_pod(whole, old)["metadata"]["creationTimestamp"]
    whole.until(lambda: datetime.now(UTC) >= datetime.fromisoformat(made) + timedelta(seconds=1), 5, "the next second")
    new = servers.announce("new", 81, "other")
    servers.run(new)
    assert new.address == old.address and read_pod(whole, old)["status"]["podIP"] == new.address
    whole.settle(0)
    await_server(whole, new)
    await_shut(whole, new.address, POD_WEB_PORT)
    before = whole.revision()
    servers.forget(old)
    whole.settle(before)
    assert not whole.reaches(CLIENT, new.address, POD_WEB_PORT)
    relabel(whole, new, "server")
    whole.until(lambda: whole.reaches(CLIENT, new.address, POD_WEB_PORT), 20, "by its new label it is reached")


def read_pod(whole: Cluster, pod: Pod) -> dict[str, Any]:
    found: dict[str, Any] = whole.kube.admin.call("GET", f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
    return found


def await_server(whole: Cluster, pod: Pod) -> None:
    """Its web server answers inside the pod: what does not reach it from outside is policy's doing."""
    process = next(each for each in reversed(whole.demo.run.state.processes) if each.name == f"web-{pod.name}")
    namespace = whole.demo.lab.pod_namespace(pod)
    wait_until(whole.demo.run, process, lambda: connects("127.0.0.1", POD_WEB_PORT, namespace))


def await_shut(whole: Cluster, address: str, port: int) -> None:
    """The address is the newer pod's for both nodes: a pod that is enforced may still be without one, which comes with
    a revision of its own."""
    whole.until(lambda: not whole.reaches(CLIENT, address, port), 20, f"{address} is judged as the newer pod's")


def relabel(whole: Cluster, pod: Pod, app: str) -> None:
    whole.kube.kubectl("label", "pod", pod.name, "--namespace", pod.namespace, f"app={app}", "--overwrite")


def test_an_endpoint_slice_that_lags(servers: Servers) -> None:
    """A Service's slice still names a pod whose address another pod has by now: through the Service it is judged as
    who has the address, and the Service leads nowhere it must not; when the slice has caught up, to the new backend."""
    whole = servers.whole
    first = servers.announce("first", 82, "server")
    servers.run(first)
    service = Service("switch", "late", "10.100.12.40", "fd00:10:100::c28", 80, (("app", "server"),), (first.key,))
    slices = write_service(whole.objects, service, first)
    for node in topology.NODES:
        redirect(whole, node, service.address, first.address)
    try:
        whole.until(lambda: whole.reaches(CLIENT, service.address, 80), 20, "the Service leads to its backend")
        whole.end_pod(first)
        servers.forget(first)
        successor = servers.announce("successor", 82, "other")
        servers.run(successor)
        whole.settle(0)
        await_server(whole, successor)
        await_shut(whole, service.address, 80)
        relabel(whole, successor, "server")
        write_slices(whole.objects, slices, successor)
        whole.until(lambda: whole.reaches(CLIENT, service.address, 80), 20, "the slice has caught up")
    finally:
        whole.kube.kubectl("delete", "service,endpointslice", "--namespace", "switch", "--all")
        whole.demo.lab.apply_services(topology.SERVICES)


def write_service(store: ApiObjects, service: Service, backend: Pod) -> list[dict[str, Any]]:
    """The Service and its slices; the slices."""
    made, *slices = objects.make_service(service, [backend])
    store.put(made)
    write_slices(store, slices, backend)
    return slices


def write_slices(store: ApiObjects, slices: list[dict[str, Any]], backend: Pod) -> None:
    for index, each in enumerate(slices):
        target = {"kind": "Pod", "namespace": backend.namespace, "name": backend.name}
        endpoint = {"addresses": [backend.addresses[index]], "conditions": {"ready": True}, "targetRef": target}
        store.put({**each, "endpoints": [endpoint]})


def redirect(whole: Cluster, node: topology.Node, address: str, target: str) -> None:
    """What kube-proxy does for one more Service."""
    rule = f"ip daddr {address} tcp dport 80 dnat ip to {target}:{POD_WEB_PORT}"
    place = whole.demo.lab.node_namespace(node)
    run_command(in_namespace(place, "nft", "add", "rule", "inet", "kube-proxy", "prerouting", *rule.split()))


def test_a_namespace_is_deleted_with_its_policies(whole: Cluster) -> None:
    """Its pods and policies go with it, while traffic of others is as before; a namespace of the same name made anew
    has nothing of them: its pod is under the default."""
    pod = Pod("brief", "client", NODE_A, 95, (("app", "client"),))
    policy = open_to(OPEN, "brief")
    lab = whole.demo.lab
    before = whole.revision()
    whole.objects.put(objects.make_namespace("brief", {}))
    whole.objects.put(objects.make_pod(pod))
    whole.objects.write("brief.yaml", policy)
    lab.add_pod(pod)
    try:
        whole.settle(before)
        # Namespace, pod and policy are of different kinds, which are heard of each for itself: settled is the first.
        whole.until(lambda: is_open(whole, pod), 20, "the policy is in force")
        whole.kube.kubectl("delete", "namespace", "brief", "--wait=false")
        whole.end_pod(pod)
        delete_in_namespace(whole, pod)
        whole.kube.until(lambda: whole.kube.admin.request("GET", "/api/v1/namespaces/brief")[0] == 404, 60)
        before = whole.revision()
        whole.objects.put(objects.make_namespace("brief", {}))
        whole.objects.put(objects.make_pod(pod))
        lab.add_pod(pod)
        whole.settle(before)
        whole.until(lambda: not is_open(whole, pod), 20, "the default is in force")
    finally:
        if pod.key in lab.pods:
            whole.end_pod(pod)
        before = whole.revision()
        whole.kube.kubectl("delete", "namespace", "brief", "--wait=false")
        delete_in_namespace(whole, pod)
        whole.settle(before)


def is_open(whole: Cluster, pod: Pod) -> bool:
    return whole.run(whole.demo.traffic.connect(pod, OPEN, 443, OPEN)).is_open


def delete_in_namespace(whole: Cluster, pod: Pod) -> None:
    """The kubelet confirms that it ended; without one the pod would stay for ever."""
    path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}?gracePeriodSeconds=0"
    whole.kube.admin.request("DELETE", path)
