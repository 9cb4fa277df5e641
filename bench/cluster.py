"""A cluster of a given size as Kubernetes objects, always the same for the same size, and edits of it.

Of 10,000 pods it has 100 nodes, 500 namespaces, 1,000 policies and 5,000 prefixes; everything grows with the pods but
ten policies that govern the whole cluster or large parts of it: as many govern a pod at any size. Most namespaces are
alike: 20 pods of five workloads, a policy for all of them, one for a workload, and one namespace is large. Every pod
bears a label that no policy names.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from tests import builders as k8s

Obj = dict[str, Any]

PODS_A_NAMESPACE, PODS_A_NODE, WORKLOADS = 20, 100, 5
PREFIXES_A_POLICY = 10
TEAMS, ZONES = 20, 4
WIDE_POLICIES = 10
"""Cluster-wide ones: the first governs every pod, the others a team's each."""
LARGE = "ns-0"
"""The namespace that holds a fiftieth of all pods: 200 of 10,000."""
FIRST_POD = int(ipaddress.ip_address("10.0.0.1"))
FIRST_PREFIX = int(ipaddress.ip_address("100.64.0.0"))
EVERYBODY, TYPICAL = "everybody", "typical"


@dataclass(frozen=True)
class Size:
    """How much there is of everything, from the number of pods: a multiple of 1,250."""

    pods: int

    @property
    def namespaces(self) -> int:
        return self.pods // PODS_A_NAMESPACE

    @property
    def nodes(self) -> int:
        return max(1, self.pods // PODS_A_NODE)

    @property
    def workload_policies(self) -> int:
        """490 of 10,000 pods: with those of the namespaces and the wide ones, of which there are ten at any size."""
        return self.pods * 49 // 1_000

    @property
    def prefixes(self) -> int:
        return self.pods // 2

    @property
    def large(self) -> int:
        """Pods of the large namespace."""
        return self.pods // 50


def make_cluster(size: Size) -> list[Obj]:
    """Facts first, then policies: as a folder of manifests, or a cluster's lists, would give them."""
    objects = [make_namespace(number) for number in range(size.namespaces)]
    objects += [make_node(number) for number in range(size.nodes)]
    objects += [make_pod(size, number) for number in range(size.pods)]
    for number in range(size.namespaces):
        objects.append(make_namespace_policy(number))
    for number in range(size.workload_policies):
        objects.append(make_workload_policy(size, number))
    objects += [make_wide_policy(number) for number in range(WIDE_POLICIES)]
    return objects


def make_namespace(number: int, **labels: str) -> Obj:
    return k8s.namespace(f"ns-{number}", **({"team": f"t{number % TEAMS}", "zone": f"z{number % ZONES}"} | labels))


def make_node(number: int) -> Obj:
    return k8s.node(f"node-{number}", f"192.168.{number // 250}.{number % 250 + 1}", zone=f"z{number % ZONES}")


def make_pod(size: Size, number: int, *, revision: int = 0, **labels: str) -> Obj:
    """``revision``: of its workload's template, which shows in a label that no policy names."""
    in_large = number < size.large
    place = 0 if in_large else 1 + (number - size.large) % (size.namespaces - 1)
    workload = number // size.namespaces % WORKLOADS
    made = k8s.pod(
        f"ns-{place}/pod-{number}",
        str(ipaddress.ip_address(FIRST_POD + number)),
        node=f"node-{number % size.nodes}",
        ports=[{"name": "http", "containerPort": 8080}],
        **({"app": f"app-{workload}", "pod-template-hash": f"{place}-{workload}-{revision}"} | labels),
    )
    made["metadata"]["uid"] = f"uid-{number}"
    return made


def make_namespace_policy(number: int, *, port: int = 8080, team: int | None = None, app: str = "") -> Obj:
    """Governs a namespace: in from a team and from one of its workloads, out to cluster DNS and another namespace."""
    from_team = {"namespaceSelector": {"matchLabels": {"team": f"t{number % TEAMS if team is None else team}"}}}
    neighbour = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": f"ns-{number // 2}"}}}
    spec = {
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"from": [from_team, {"podSelector": {"matchLabels": {"app": "app-0"}}}], "ports": [{"port": port}]}
        ],
        "egress": [
            {"to": [{"ipBlock": {"cidr": "10.96.0.10/32"}}], "ports": [{"port": 53, "protocol": "UDP"}]},
            {"to": [neighbour], "ports": [{"port": 8080}]},
        ],
    }
    if app:
        spec["podSelector"] = {"matchLabels": {"app": app}}
    return k8s.network_policy(TYPICAL, spec, namespace=f"ns-{number}")


def make_workload_policy(size: Size, number: int) -> Obj:
    """Governs a workload: out to prefixes of its own; the cluster's prefixes are spread over all such policies."""
    count = size.workload_policies
    own = range(size.prefixes * number // count, size.prefixes * (number + 1) // count)
    blocks = [{"ipBlock": {"cidr": f"{ipaddress.ip_address(FIRST_PREFIX + 256 * each)}/24"}} for each in own]
    subject = {"matchLabels": {"app": f"app-{number % WORKLOADS}"}}
    spec = {"podSelector": subject, "policyTypes": ["Egress"], "egress": [{"to": blocks, "ports": [{"port": 443}]}]}
    build = k8s.application_policy if number % 5 == 0 else k8s.network_policy
    return build(f"prefixes-{number}", spec, namespace=f"ns-{number % size.namespaces}")


def make_wide_policy(number: int, *, port: int = 22, priority: int = 10, team: str = "", prefix: str = "") -> Obj:
    """Number 0 governs every pod (or those of ``team``'s namespaces), the others one team's."""
    asked = team or ("" if number == 0 else f"t{number}")
    selector: Obj = {"matchLabels": {"team": asked}} if asked else {}
    rules = [
        {"action": "Deny", "to": [{"networks": ["169.254.169.254/32"]}]},
        {
            "action": "Deny",
            "to": [{"networks": [prefix or f"198.51.100.{number}/32"]}],
            "ports": [{"portNumber": {"protocol": "TCP", "port": port}}],
        },
    ]
    spec = {"priority": priority + number, "subject": {"namespaces": selector}, "egress": rules}
    return k8s.aws_cluster_policy(EVERYBODY if number == 0 else f"team-{number}", spec)


def make_repeated(rules: int, subjects: int = 8) -> list[Obj]:
    """Policies of one prefix again and again: so many rules, each with a port of its own, spread over the subjects."""
    found: list[Obj] = [k8s.namespace("app"), k8s.node("node-a", "192.168.0.1")]
    for subject in range(subjects):
        found.append(k8s.pod(f"app/pod-{subject}", f"10.0.0.{subject + 1}", app=f"app-{subject}"))
        listed = [
            {"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}], "ports": [{"port": 1000 + number}]}
            for number in range(subject, rules, subjects)
        ]
        spec = {
            "podSelector": {"matchLabels": {"app": f"app-{subject}"}},
            "policyTypes": ["Egress"],
            "egress": listed,
        }
        found.append(k8s.network_policy(f"repeated-{subject}", spec))
    return found


def make_many_peers(count: int) -> list[Obj]:
    """One rule with so many distinct prefixes."""
    blocks = [{"ipBlock": {"cidr": f"{ipaddress.ip_address(FIRST_PREFIX + 16 * n)}/28"}} for n in range(count)]
    rule = k8s.network_policy("peers", {"policyTypes": ["Egress"], "egress": [{"to": blocks}]})
    return [k8s.namespace("app"), k8s.node("node-a", "192.168.0.1"), k8s.pod("app/pod", "10.0.0.1"), rule]
