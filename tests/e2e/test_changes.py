"""What changes in the cluster reaches live traffic at once: policies, labels, backends, the default, an install."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import pytest

from schemas.terms import Direction, Reason, Tier, Verdict
from schemas.verdict import VerdictEvent
from services.demo import objects
from services.demo.topology import NODE_A, Pod
from tests.e2e.onenode import ALLOWED, DENIED, OneNode, allow_egress, echo_server, is_live, make_pod, one_node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

CLIENTS = [make_pod(host) for host in range(10, 14)]
FRIEND, STRANGER = make_pod(20, "u", role="friend"), make_pod(21, "u", role="stranger")
LIVE_ALLOWED, LIVE_DENIED = 1000, 100
CUT_SECONDS = 0.3
SERVICE, PORT = "10.100.0.90", 9300
FRIENDS_ONLY = f"""\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: only, namespace: t}}
spec:
  podSelector: {{}}
  policyTypes: [Egress]
  egress:
  - to: [{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{role: friend}}}}}}]
  - to: [{{ipBlock: {{cidr: {ALLOWED}/32}}}}]
"""
SHUT_INGRESS = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shut, namespace: t}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""


@pytest.fixture(scope="module")
def node() -> Iterator[OneNode]:
    """Everything but an agent: the first test installs it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with one_node() as made:
        made.folder.write("10-allow.yaml", FRIENDS_ONLY)
        made.folder.write("09-shut.yaml", SHUT_INGRESS)
        made.folder.write("11-free.yaml", allow_egress("free", "0.0.0.0/0", namespace="u"))
        config = {"service-cidrs": "10.100.0.0/16", "default": "allow"}
        made.build([*CLIENTS, FRIEND, STRANGER], config=config)
        yield made
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(node: OneNode, pod: Pod, address: str, port: int) -> socket.socket:
    opened = node.open(pod, socket.SOCK_STREAM)
    opened.settimeout(5)
    opened.connect((address, port))
    return opened


def test_a_thousand_live_connections_survive_the_first_install(node: OneNode) -> None:
    """Made before there was an agent: what policy allows goes on; what it would have let neither side open is cut."""
    with ExitStack() as stack:
        port = stack.enter_context(echo_server(node.lab.fabric))

        def open_many(address: str, count: int) -> list[socket.socket]:
            pods = [CLIENTS[number % len(CLIENTS)] for number in range(count)]
            return [stack.enter_context(closing(connect(node, pod, address, port))) for pod in pods]

        allowed, denied = open_many(ALLOWED, LIVE_ALLOWED), open_many(DENIED, LIVE_DENIED)
        assert all(is_live(one) for one in (*allowed, *denied))
        node.start_agent()
        node.settle(0, seconds=60)
        survived = sum(is_live(one) for one in allowed)
        cut = sum(not is_live(one, 0.02) for one in denied)
        print(f"\n{survived} of {LIVE_ALLOWED} allowed connections live on, {cut} of {LIVE_DENIED} denied ones are cut")
        assert (survived, cut) == (LIVE_ALLOWED, LIVE_DENIED)


def test_a_policy_cuts_live_flows_for_good(node: OneNode) -> None:
    """A rule that goes ends its connections, although the other side might open one to the pod; others go on."""
    node.remove("09-shut.yaml")
    with ExitStack() as stack:
        port = stack.enter_context(echo_server(node.lab.fabric))
        pods_port = stack.enter_context(echo_server(node.lab.pod_namespace(FRIEND)))
        live = stack.enter_context(closing(connect(node, CLIENTS[0], ALLOWED, port)))
        other = stack.enter_context(closing(connect(node, CLIENTS[0], FRIEND.address, pods_port)))
        node.apply("10-allow.yaml", FRIENDS_ONLY.replace(ALLOWED, "203.0.113.99"))
        assert not any(is_live(live, CUT_SECONDS) for _ in range(5)) and is_live(other)
        node.apply("10-allow.yaml", FRIENDS_ONLY)
        assert is_live(other)


def test_a_relabelled_pod_is_judged_as_what_it_is_now(node: OneNode) -> None:
    """The connection lives while the label is there, and TCP takes it up again when the label is back."""
    with ExitStack() as stack:
        port = stack.enter_context(echo_server(node.lab.pod_namespace(FRIEND)))
        live = stack.enter_context(closing(connect(node, CLIENTS[1], FRIEND.address, port)))
        others = [pod for pod in node.lab.pods.values() if pod.key != FRIEND.key]
        with changed(node, [*others, replace(FRIEND, labels=(("role", "stranger"),))]):
            assert not is_live(live, CUT_SECONDS)
        live.settimeout(10)
        assert live.recv(8) == b"x\n", "what was sent meanwhile arrives by retransmission"


@contextmanager
def changed(node: OneNode, pods: list[Pod]) -> Iterator[None]:
    """The cluster's pods are these while the block runs."""
    before = node.revision()
    node.announce(pods)
    node.settle(before)
    yield
    before = node.revision()
    node.announce(node.lab.pods.values())
    node.settle(before)


def make_service(backend: Pod) -> str:
    """A UDP Service with one backend."""
    ports = [{"name": "p", "protocol": "UDP", "port": PORT, "targetPort": PORT}]
    metadata = {"name": "moving", "namespace": "u"}
    endpoint = {
        "addresses": [backend.address],
        "nodeName": NODE_A.name,
        "conditions": {"ready": True},
        "targetRef": {"kind": "Pod", "namespace": "u", "name": backend.name, "uid": backend.uid},
    }
    labels = {"kubernetes.io/service-name": "moving"}
    return objects.render(
        [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata,
                "spec": {"clusterIP": SERVICE, "clusterIPs": [SERVICE], "ports": ports},
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {**metadata, "labels": labels},
                "addressType": "IPv4",
                "ports": [{"name": "p", "protocol": "UDP", "port": PORT}],
                "endpoints": [endpoint],
            },
        ]
    )


def test_a_services_new_backends_judge_its_live_flows(node: OneNode) -> None:
    """Datagrams to the Service go on while its backend is allowed, and stop when another stands behind it; with
    connection tracking still leading the flow to the old one."""
    rule = f"ip daddr {SERVICE} udp dport {PORT} dnat to {FRIEND.address}"
    hook = "type nat hook prerouting priority dstnat;"
    given = f"table ip moving {{\n chain pre {{\n {hook}\n {rule}\n }}\n }}\n"
    node.in_node("nft", "-f", "-", given=given)
    node.apply("12-service.yaml", make_service(FRIEND))
    with echo_server(node.lab.pod_namespace(FRIEND), socket.SOCK_DGRAM, PORT), closing(node.open(CLIENTS[2])) as live:
        live.connect((SERVICE, PORT))
        assert is_live(live)
        node.apply("12-service.yaml", make_service(STRANGER))
        assert not is_live(live, CUT_SECONDS)
        node.apply("12-service.yaml", make_service(FRIEND))
        assert is_live(live)


def test_the_default_reaches_live_flows_both_ways(node: OneNode) -> None:
    """A pod that no policy governs: deny cuts its connection, allow lets TCP take it up again."""
    node.remove("11-free.yaml")
    with echo_server(node.lab.fabric) as port, closing(connect(node, STRANGER, DENIED, port)) as live:
        assert is_live(live)
        set_default(node, "deny")
        assert not is_live(live, CUT_SECONDS)
        set_default(node, "allow")
        live.settimeout(10)
        assert live.recv(8) == b"x\n"


def make_trial(mode: str) -> str:
    """A Deny of everything to one address, for the namespace u; ``mode`` empty: no annotation."""
    rule = {"name": "not-there", "action": "Deny", "to": [{"networks": [f"{DENIED}/32"]}]}
    spec = {"tier": "Admin", "priority": 5, "egress": [rule]}
    spec["subject"] = {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "u"}}}
    metadata = {"name": "trial", "annotations": {"yett.dev/mode": mode} if mode else {}}
    kind = {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy"}
    return objects.render([{**kind, "metadata": metadata, "spec": spec}])


def test_a_policy_under_audit_passes_and_tells_until_it_is_enforced(node: OneNode) -> None:
    """Live connections and new ones pass and are told as audit with the policy's rule, those to elsewhere are not;
    without the annotation the same policy ends the one and refuses the others at the next revision."""
    with echo_server(node.lab.fabric) as port, closing(connect(node, STRANGER, DENIED, port)) as live:

        def told_of(source_port: int, verdict: Verdict) -> VerdictEvent:
            def matches(event: VerdictEvent) -> bool:
                return event.verdict is verdict and event.source_port == source_port

            return node.await_verdict(began, matches, f"{verdict.name} of port {source_port}")

        assert is_live(live)
        began = time.monotonic()
        revision = node.apply("13-trial.yaml", make_trial("audit"))
        assert is_live(live)
        found = [told_of(live.getsockname()[1], Verdict.AUDIT)]
        with closing(connect(node, STRANGER, DENIED, port)) as new, closing(connect(node, STRANGER, ALLOWED, port)):
            assert is_live(new)
            found.append(told_of(new.getsockname()[1], Verdict.AUDIT))
        for event in found:
            assert event.policy is not None and (event.policy.name, event.policy.rule) == ("trial", "not-there")
            assert (event.direction, event.destination_address) == (Direction.EGRESS, DENIED)
            assert (event.tier, event.reason, event.revision) == (Tier.ADMIN, Reason.RULE, revision)
        audited = node.bus.find_verdicts(began, lambda event: event.verdict is Verdict.AUDIT)
        assert {event.destination_address for event in audited} == {DENIED}
        began = time.monotonic()
        node.apply("13-trial.yaml", make_trial(""))
        assert not is_live(live, CUT_SECONDS) and not node.reaches(STRANGER, DENIED, port, CUT_SECONDS)
        assert node.reaches(STRANGER, ALLOWED, port)
        ended = told_of(live.getsockname()[1], Verdict.DENY)
        assert ended.policy is not None and (ended.policy.name, ended.policy.rule) == ("trial", "not-there")
        node.remove("13-trial.yaml")


def set_default(node: OneNode, default: str) -> None:
    settings = {"default": default, "service-cidrs": "10.100.0.0/16", "resolvers": ""}
    node.apply("00-config.yaml", objects.render([objects.make_config(settings)]))
