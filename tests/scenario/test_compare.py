"""Which flows are asked about when two sets of manifests are compared."""

from __future__ import annotations

from typing import Any

from services.scenario.compare import choose_address, compare_clusters, list_outside, list_ports
from services.scenario.model import End
from services.scenario.world import Cluster, assemble_cluster
from tests import builders as k8s
from tests.scenario.build import CLUSTER


def build(*policies: Any, asked: tuple[str, ...] = ()) -> Cluster:
    return assemble_cluster([("", obj) for obj in (*CLUSTER, *policies)], asked=[(name, 0.0) for name in asked])


def egress(*rules: Any) -> Any:
    return k8s.application_policy("p", {"policyTypes": ["Egress"], "egress": list(rules)})


def test_ports_are_those_that_rules_name_and_one_that_none_does() -> None:
    """Both ends of a range, the numbers behind a name, ICMP for what has no ports."""
    ports = [{"port": 80, "endPort": 90}, {"protocol": "UDP", "port": "dns"}]
    named = k8s.pod("app/dns", "10.0.0.9", ports=[{"name": "dns", "containerPort": 5353, "protocol": "UDP"}])
    assert list_ports([build(egress({"ports": ports}), named)]) == [
        (6, 80),
        (6, 90),
        (6, 40000),
        (17, 5353),
        (17, 40000),
        (1, 0),
    ]


def test_prefixes_and_names_are_ends() -> None:
    """One address a prefix and an exception, one name a pattern."""
    rules = [
        {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}, {"ipBlock": {"cidr": "::/0"}}]},
        {"to": [{"domainNames": ["*.example.com", "example.org"]}]},
    ]
    assert list_outside(build(egress(*rules)).policies) == [
        End(address="10.0.0.1"),
        End(address="10.1.0.1"),
        End(address="2001:db8:0:3::7"),
        End(name="any.example.com"),
        End(name="example.org"),
    ]


def test_a_prefix_of_one_address_is_that_address() -> None:
    """And "anywhere" is a documentation address, which no other rule means."""
    assert [choose_address(each) for each in ("192.0.2.1/32", "192.0.2.0/31", "0.0.0.0/0")] == [
        "192.0.2.1",
        "192.0.2.0",
        "203.0.113.7",
    ]


def test_a_rule_that_goes_takes_its_flows_with_it() -> None:
    """A name that only the old rules have is asked about too."""
    old = build(egress({"to": [{"domainNames": ["x.com"]}], "ports": [{"port": 443}]}), asked=("x.com",))
    new = build(egress(), asked=("x.com",))
    changes = compare_clusters(old, new)
    assert {(str(each.source), str(each.destination), each.port) for each in changes} == {
        ("app/api", "x.com", 443),
        ("app/web", "x.com", 443),
    }


def test_pods_that_no_rule_tells_apart_are_asked_once() -> None:
    """Flows among themselves included."""
    twins = [k8s.pod(f"app/t{n}", f"10.0.3.{n}", app="t") for n in (1, 2, 3)]
    deny = k8s.network_policy("d", {"podSelector": {"matchLabels": {"app": "t"}}, "policyTypes": ["Ingress"]})
    changes = [each for each in compare_clusters(build(*twins), build(*twins, deny)) if each.protocol == 1]
    assert {(str(each.source), str(each.destination), each.alike) for each in changes} == {
        ("app/t1", "app/t2", (2, 2)),
        ("app/web", "app/t1", (0, 2)),
        ("app/api", "app/t1", (0, 2)),
        ("data/db", "app/t1", (0, 2)),
    }


def test_a_pod_of_one_side_alone_is_no_existing_endpoint() -> None:
    """What comes and goes is no change of policy."""
    assert not compare_clusters(build(), build(k8s.pod("app/new", "10.0.0.7")))
