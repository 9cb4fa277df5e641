"""Whom the cluster's DNS Service makes a trusted resolver, from Kubernetes objects to what a pod's answer teaches."""

from __future__ import annotations

import pytest

from schemas.terms import Reason
from tests import builders as k8s
from tests.bpf import packets
from tests.bpf.messages import answer, query
from tests.bpf.prog_run import Kernel, Result
from tests.bpf.test_matches_core import build_tables, make_state, read_rows

pytestmark = pytest.mark.kernel
POD, SERVICE, BACKEND, WEB = "10.0.0.5", "10.96.0.10", "10.0.0.9", "198.51.100.7"
NAME = "www.example.com"
PORTS = {SERVICE: 53, BACKEND: 5353}
NAMED = {"to": [{"domainNames": [NAME]}], "ports": [{"protocol": "TCP", "port": 443}]}


def fill(kernel: Kernel, *, is_ready: bool) -> None:
    """A pod that may connect to one name, and DNS at 5353 behind its Service."""
    state = make_state(
        [
            k8s.namespace("app"),
            k8s.node("node-a", "192.168.0.1"),
            k8s.pod("app/web", POD),
            k8s.pod("kube-system/coredns", BACKEND, node="node-b"),
            k8s.service("kube-system/kube-dns", SERVICE, {"port": 53, "protocol": "UDP", "targetPort": "dns"}),
            k8s.endpoint_slice(
                "kube-system/kube-dns",
                {"addresses": [BACKEND], "conditions": {"ready": is_ready}},
                ports=[{"port": 5353, "protocol": "UDP"}],
            ),
            k8s.application_policy("fqdn", {"policyTypes": ["Egress", "Ingress"], "egress": [NAMED]}),
        ]
    )
    rows = read_rows(state.rows())
    kernel.fill(build_tables(rows, rows.endpoints["app", "web"]).tables)


def ask(kernel: Kernel, to: str, port: int) -> Result:
    return kernel.from_pod(packets.ip(POD, to, packets.UDP, packets.udp(40000, port, query(NAME))))


def tell(kernel: Kernel, source: str, port: int) -> Result:
    message = packets.udp(port, 40000, answer(NAME, WEB))
    return kernel.to_pod(packets.ip(source, POD, packets.UDP, message), ingress=77)


def connect(kernel: Kernel) -> Result:
    return kernel.from_pod(packets.ip(POD, WEB, packets.TCP, packets.tcp(50000, 443)))


@pytest.mark.parametrize("address", [SERVICE, BACKEND])
def test_what_answers_behind_the_service_teaches_as_the_service_does(kernel: Kernel, address: str) -> None:
    """A pod that asks a backend by its own address and port, as after translation in its socket, learns from it."""
    fill(kernel, is_ready=True)
    assert not connect(kernel).passed
    assert ask(kernel, address, PORTS[address]).passed
    assert tell(kernel, address, PORTS[address]).passed
    assert connect(kernel).passed


def test_a_backend_is_no_resolver_at_another_port_nor_before_it_is_ready(kernel: Kernel) -> None:
    """Its question is an ordinary packet, which isolation denies."""
    fill(kernel, is_ready=True)
    assert ask(kernel, BACKEND, 53).reason is Reason.ISOLATED
    fill(kernel, is_ready=False)
    assert ask(kernel, BACKEND, 5353).reason is Reason.ISOLATED


def test_one_backend_does_not_answer_for_another_address(kernel: Kernel) -> None:
    """What was asked of the Service is not answered by the pod behind it, nor at the Service's port by the pod."""
    fill(kernel, is_ready=True)
    for source, port in ((BACKEND, 5353), (BACKEND, 53), (SERVICE, 5353)):
        assert ask(kernel, SERVICE, 53).passed
        assert not tell(kernel, source, port).passed
        assert not connect(kernel).passed
    assert not kernel.maps["resolutions"].keys()
