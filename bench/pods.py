"""One node with real packets: a pair of pods that the agent enforces, and two pairs like it that it never touches.

The fabric, NATS, knot, unbound, controller and agent are the demo's, as processes of their own. The agent is told the
interfaces of the enforced pair by name, so the others stay as the CNI made them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.pairs import BARE, CONTROL, ENFORCED
from services.demo import objects, servers, topology
from services.demo.lab import in_namespace, run_command
from services.demo.runner import check_machine
from services.demo.state import DemoError
from services.demo.topology import Pod
from tests.e2e.onenode import OneNode, make_pod, one_node

PAIRS = {
    ENFORCED: (make_pod(11), make_pod(12)),
    BARE: (make_pod(21, "u"), make_pod(22, "u")),
    CONTROL: (make_pod(31, "u"), make_pod(32, "u")),
}
POLICIES = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: neighbours, namespace: t}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {}}]}]
  egress: [{to: [{podSelector: {}}]}]
---
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: names, namespace: t}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{domainNames: ["*.fresh.example.net"]}]}]
"""
"""The enforced pair isolated both ways: they may speak with each other, and ask for names that may be learned."""


def check_tools(*tools: str) -> None:
    """DemoError if the machine or one of these programs is not fit for it."""
    check_machine()
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise DemoError(f"not installed: {', '.join(missing)}; make bench installs them")


@dataclass(frozen=True, slots=True)
class Laboratory:
    """The node, and how to run something in a pod of it."""

    node: OneNode

    def inside(self, pod: Pod, *command: str) -> list[str]:
        """The command, inside a pod's network namespace."""
        return in_namespace(self.node.lab.pod_namespace(pod), *command)

    def serve(self, name: str, pod: Pod, port: int, *command: str) -> None:
        """A daemon in a pod, listening on a TCP port when this returns; it ends with the run."""
        run = self.node.run
        process = servers.start_process(run, name, self.inside(pod, *command))
        servers.wait_until(run, process, lambda: self._is_listening(pod, port))

    def _is_listening(self, pod: Pod, port: int) -> bool:
        return bool(run_command(self.inside(pod, "ss", "-Hltn", f"sport = :{port}")).strip())

    def is_attached(self, pod: Pod) -> bool:
        """Whether both our filters are on the pod's interface."""
        shown = [self.node.in_node("tc", "filter", "show", "dev", pod.interface, way) for way in ("ingress", "egress")]
        return all("yett/" in one for one in shown)


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    """Everything enforced on one pair, and on no other; gone afterwards."""
    with one_node() as node:
        enforced = PAIRS[ENFORCED]
        node.own["YETT_INTERFACES"] = ",".join(pod.interface for pod in enforced)
        node.folder.write("03-dns.yaml", objects.render(objects.make_dns_service()))
        node.folder.write("10-policies.yaml", POLICIES)
        node.start(
            enforced,
            config={
                "resolvers": f"{topology.DNS_SERVICE}:53",
                "service-cidrs": ",".join(topology.SERVICE_CIDRS),
                "pod-cidrs": ",".join(topology.POD_CIDRS),
            },
        )
        servers.start_outside(node.lab)
        made = Laboratory(node)
        for name, pods in PAIRS.items():
            for pod in pods:
                if name != ENFORCED:
                    node.lab.add_pod(pod)
                if made.is_attached(pod) is not (name == ENFORCED):
                    raise RuntimeError(f"{pod.key}: attached is not {name == ENFORCED}")
        yield made
