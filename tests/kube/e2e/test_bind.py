"""A pod is enforced from when it is bound: a kubelet reports its address only after its postStart hooks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from services.demo import objects
from services.demo.lab import HOST_VETH_MAC, in_namespace
from services.demo.pipeline import cni_results
from services.demo.topology import NODE_A, NODE_B, Node, Pod, find_pod
from tests.kube.e2e.cluster import Cluster, Unnamed
from tests.nodeagent.test_cniresult import make_file

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(120)]

POLICY = """
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: starters, namespace: switch}
spec:
  podSelector: {matchLabels: {app: starter}}
  policyTypes: [Egress]
  egress: [{to: [{domainNames: [example.com]}], ports: [{protocol: TCP, port: 80}]}]
"""
HOOK_SECONDS = 20
HOOK = (
    "for i in $(seq 100); do a=$(dig +short +time=1 +tries=1 @10.100.0.10 example.com A | head -1);"
    ' [ -n "$a" ] && curl -s -o /dev/null --connect-timeout 1 --resolve example.com:80:$a http://example.com/ && exit;'
    " done; exit 1"
)
"""As a careless postStart would: asks for a name, connects, tries again; it has no address of its own at hand."""


@pytest.fixture(scope="module")
def policed(whole: Cluster) -> Iterator[Cluster]:
    """Pods that are to start may reach example.com, under default deny."""
    whole.objects.write("starters.yaml", POLICY)
    # It governs no pod yet, so there is no revision to wait for.
    resource = "applicationnetworkpolicies.networking.k8s.aws/starters"
    whole.kube.kubectl("wait", "--for=condition=Accepted", resource, "--namespace", "switch", "--timeout=30s")
    yield whole
    whole.objects.remove("starters.yaml")


def write_answer(whole: Cluster, pod: Pod, *, former: Pod) -> Path:
    """As libcni keeps ptp's, a moment after the plugin returned: an agent that looked at once found none. Before that
    one of another pod, as if an interface of this name had been its: that is told, and not believed."""
    whole.until(lambda: whole.is_waiting(pod), 20, f"{pod.interface} is seen and nobody's")
    path = cni_results(whole.demo.run, pod.node) / "ptp-c0ffee-eth0"
    write = partial(make_file, interface=pod.interface, mac=HOST_VETH_MAC)
    path.write_bytes(write(former.key, addresses=(f"{former.address}/24",)))
    whole.until(lambda: is_told(whole, pod, former.address), 20, "the former pod's answer is told")
    assert whole.is_waiting(pod)
    path.write_bytes(write(pod.key, addresses=(f"{pod.address}/24", f"{pod.address6}/64")))
    whole.until(lambda: not is_told(whole, pod, former.address), 20, "it is told no more")
    return path


def is_told(whole: Cluster, pod: Pod, address: str) -> bool:
    """Whether the agent says of the pod's interface that no route leads to this address."""
    problems = whole.demo.bus.agents[pod.node.name].problems
    return any(one.object == f"interface {pod.interface}" and address in one.message for one in problems)


@pytest.mark.parametrize(
    ("kind", "node"),
    [
        pytest.param(Pod, NODE_A, id="node-a"),
        pytest.param(Pod, NODE_B, id="node-b"),
        pytest.param(Unnamed, NODE_A, id="ptp"),
    ],
)
def test_a_hook_uses_the_network_before_the_address_is_known(policed: Cluster, kind: type[Pod], node: Node) -> None:
    """Bound and without an address the pod has an endpoint row; its hook resolves, connects and ends; only then does
    its status carry an address, with which nothing changes for it. An interface whose name tells nothing is known by
    what its CNI plugin answered."""
    pod = kind("switch", "starter", node, 77, (("app", "starter"),))
    answer = None
    obj = objects.make_pod(pod)
    lab, before = policed.demo.lab, policed.revision()
    policed.objects.put({**obj, "status": {"phase": "Pending"}})
    try:
        lab.add_pod(pod)
        if kind is Unnamed:
            answer = write_answer(policed, pod, former=find_pod("switch/switch-client"))
        started = time.monotonic()
        hook = in_namespace(lab.pod_namespace(pod), "sh", "-c", HOOK)
        subprocess.run(hook, check=True, timeout=HOOK_SECONDS, capture_output=True)
        print(f"the hook on {node.name} took {time.monotonic() - started:.2f} s")
        status = policed.kube.admin.call("GET", "/api/v1/namespaces/switch/pods/starter")["status"]
        assert (status["phase"], status.get("podIP")) == ("Pending", None)
        policed.settle(before)
        before = policed.revision()
        policed.objects.put(obj)
        policed.settle(before)
        subprocess.run(hook, check=True, timeout=HOOK_SECONDS, capture_output=True)
        denied = policed.run(policed.demo.traffic.connect(pod, "203.0.113.10", 443, "203.0.113.10"))
        assert not denied.is_open
    finally:
        if answer:
            answer.unlink()
        before = policed.revision()
        path = "/api/v1/namespaces/switch/pods/starter?gracePeriodSeconds=0"
        policed.kube.admin.call("DELETE", path)
        policed.end_pod(pod)
        policed.settle(before)
