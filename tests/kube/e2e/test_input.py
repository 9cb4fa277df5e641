"""What a cluster says when it is wrong, late, away or silent: the last good state stays in force, and is called old."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.status import Problem
from services.demo import objects, topology
from services.demo.lab import in_namespace, run_command
from services.demo.servers import connects, start_web, wait_until
from services.demo.topology import NODE_A, NODE_B, POD_WEB_PORT, Pod, Service
from tests.kube.e2e.apiobjects import ApiObjects
from tests.kube.e2e.cluster import Cluster, applied, open_to
from tests.kube.servers import CONTROLLER_TOKEN

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(180)]

OPEN, SHUT = "203.0.113.10", "203.0.113.20"
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


@pytest.fixture
def policed(whole: Cluster) -> Iterator[Cluster]:
    """One address is open to the clients."""
    with applied(whole, "input.yaml", open_to(OPEN)):
        yield whole


def reaches(whole: Cluster, address: str, port: int = 443, source: str = CLIENT) -> bool:
    traffic = whole.demo.traffic
    return whole.run(traffic.connect(topology.find_pod(source), address, port, address)).is_open


def problems(whole: Cluster) -> tuple[Problem, ...]:
    status = whole.run(whole.demo.bus.ask_controller())
    return status.problems if status else ()


def is_stale(whole: Cluster) -> bool:
    """The leader says since when."""
    return any("stale since 20" in problem.message for problem in problems(whole))


def check_in_force(whole: Cluster, *, open_to: str = OPEN, shut_to: str = SHUT) -> None:
    assert reaches(whole, open_to) and not reaches(whole, shut_to)


def edit(whole: Cluster, address: str) -> None:
    """The clients' one address is another from now on, and it is enforced."""
    whole.objects.write("input.yaml", open_to(address))
    whole.until(lambda: reaches(whole, address), 60, "the edit is enforced")


# ---------------------------------------------------------------------------------------------------------------------
# The server


def test_a_server_that_is_away_with_a_new_token_when_it_is_back(policed: Cluster) -> None:
    """Killed: packets pass as before, the status says since when it is stale. Back, it knows only another token: still
    stale, refused with 401. The new token in its file: heard again, and what was edited meanwhile is enforced."""
    kube = policed.kube
    kube.apiserver.stop(signal.SIGKILL)
    policed.until(lambda: is_stale(policed), 40, "it is called stale")
    check_in_force(policed)
    kube.tokens["renewed"] = kube.tokens.pop(CONTROLLER_TOKEN)
    try:
        kube.start_apiserver()
        policed.until(lambda: any("401" in each.message for each in problems(policed)), 40, "401 is in the status")
        policed.objects.write("input.yaml", open_to(SHUT))
        check_in_force(policed)
    finally:
        kube.kubeconfig("controller", "renewed")
    policed.until(lambda: reaches(policed, SHUT), 60, "the edit is enforced")
    policed.until(lambda: not problems(policed), 60, "nothing is stale any more")


def test_a_server_that_hangs(policed: Cluster) -> None:
    """It is paused: connections stand, nothing comes. Its watches are given up, the status says so, packets pass as
    before; when it goes on, an edit is enforced, by whichever of the two is then the faster at the Lease."""
    policed.kube.apiserver.send(signal.SIGSTOP)
    try:
        policed.until(lambda: is_stale(policed), 60, "it is called stale")
        check_in_force(policed)
    finally:
        policed.kube.apiserver.send(signal.SIGCONT)
    edit(policed, SHUT)
    policed.until(lambda: not problems(policed), 60, "nothing is stale any more")


# ---------------------------------------------------------------------------------------------------------------------
# The objects


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
    whole.until(lambda: reaches(whole, old.address, POD_WEB_PORT), 20, "the old one is reached")
    whole.end_pod(old)
    # Kubernetes tells which is newer in whole seconds.
    made = read_pod(whole, old)["metadata"]["creationTimestamp"]
    whole.until(lambda: datetime.now(UTC) >= datetime.fromisoformat(made) + timedelta(seconds=1), 5, "the next second")
    new = servers.announce("new", 81, "other")
    servers.run(new)
    assert new.address == old.address and read_pod(whole, old)["status"]["podIP"] == new.address
    whole.settle(0)
    await_server(whole, new)
    assert not reaches(whole, new.address, POD_WEB_PORT)
    before = whole.revision()
    servers.forget(old)
    whole.settle(before)
    assert not reaches(whole, new.address, POD_WEB_PORT)
    relabel(whole, new, "server")
    whole.until(lambda: reaches(whole, new.address, POD_WEB_PORT), 20, "by its new label it is reached")


def read_pod(whole: Cluster, pod: Pod) -> dict[str, Any]:
    found: dict[str, Any] = whole.kube.admin.call("GET", f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
    return found


def await_server(whole: Cluster, pod: Pod) -> None:
    """Its web server answers inside the pod: what does not reach it from outside is policy's doing."""
    process = next(each for each in reversed(whole.demo.run.state.processes) if each.name == f"web-{pod.name}")
    namespace = whole.demo.lab.pod_namespace(pod)
    wait_until(whole.demo.run, process, lambda: connects("127.0.0.1", POD_WEB_PORT, namespace))


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
        whole.until(lambda: reaches(whole, service.address, 80), 20, "the Service leads to its backend")
        whole.end_pod(first)
        servers.forget(first)
        successor = servers.announce("successor", 82, "other")
        servers.run(successor)
        whole.settle(0)
        await_server(whole, successor)
        assert not reaches(whole, service.address, 80)
        relabel(whole, successor, "server")
        write_slices(whole.objects, slices, successor)
        whole.until(lambda: reaches(whole, service.address, 80), 20, "the slice has caught up")
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
        since = time.monotonic()
        assert is_open(whole, pod), whole.demo.bus.find_verdicts(since, lambda event: event.namespace == "brief")
        whole.kube.kubectl("delete", "namespace", "brief", "--wait=false")
        whole.end_pod(pod)
        delete_in_namespace(whole, pod)
        whole.kube.until(lambda: whole.kube.admin.request("GET", "/api/v1/namespaces/brief")[0] == 404, 60)
        before = whole.revision()
        whole.objects.put(objects.make_namespace("brief", {}))
        whole.objects.put(objects.make_pod(pod))
        lab.add_pod(pod)
        whole.settle(before)
        assert not is_open(whole, pod)
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
