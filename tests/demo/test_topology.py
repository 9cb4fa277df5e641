"""The demo's world holds together: what rows refer to exists, and nothing stands for two things."""

from __future__ import annotations

import ipaddress
from collections import Counter

from services.demo import topology
from services.demo.objects import make_cluster, make_late, render
from services.demo.steps import STEPS, Connect, Lookup
from services.demo.topology import LATE_PODS, NODE_A, NODE_B, PODS

ALL_PODS = (*PODS, *LATE_PODS)


def test_every_name_has_addresses_of_its_own() -> None:
    """No row can pass because another name shares the address."""
    addresses = [address for pair in topology.OUTSIDE.values() for address in pair] + list(topology.DATABASE_NEXT)
    assert [address for address, count in Counter(addresses).items() if count > 1] == []


def test_every_name_is_in_one_zone_of_the_authoritative_server() -> None:
    """A name without a zone would never resolve, and its Blocked rows would prove nothing."""
    for name in topology.OUTSIDE:
        assert len([zone for zone in topology.ZONES if name == zone or name.endswith(f".{zone}")]) == 1, name


def test_every_outside_address_is_answered_for() -> None:
    """The fabric is local for every address that a name leads to."""
    ranges = [ipaddress.ip_network(prefix) for prefix in topology.LOCAL_RANGES]
    addresses = [address for pair in (*topology.OUTSIDE.values(), topology.DATABASE_NEXT) for address in pair]
    for address in (*addresses, topology.METADATA, topology.fresh_name(65534)[1]):
        assert any(ipaddress.ip_address(address) in prefix for prefix in ranges), address


def test_each_node_has_three_pods_or_more_and_dots_are_in_one_node_and_one_pod() -> None:
    """What a name with dots breaks would show in the demo."""
    assert min(Counter(pod.node.key for pod in PODS).values()) >= 3
    assert [node.name for node in (NODE_A, NODE_B) if "." in node.name] == [NODE_B.name]
    assert [pod.key for pod in ALL_PODS if "." in pod.name] == ["app/curl-frontend.b"]


def test_pods_and_interfaces_are_told_apart() -> None:
    """Keys, addresses, uids and interface names are unique, and the names fit the kernel's 15 bytes."""
    for values in (
        [pod.key for pod in ALL_PODS],
        [address for pod in ALL_PODS for address in pod.addresses],
        [pod.uid for pod in ALL_PODS],
        [pod.interface for pod in ALL_PODS],
    ):
        assert len(set(values)) == len(values)
    assert all(len(pod.interface) <= 15 for pod in ALL_PODS)


def test_interface_names_follow_the_cni_convention() -> None:
    """The digits are those of the VPC CNI and Calico: sha1("namespace.pod"), eleven of them (here by sha1sum)."""
    assert topology.find_pod("app/backend").interface == "podd69ad96de6a"


def test_every_probe_names_a_pod_that_exists_and_a_target_that_is_known() -> None:
    """A typing error in a step is found here and not in a lab."""
    for probe in (probe for step in STEPS for phase in step.phases for probe in phase.probes):
        topology.find_pod(probe.source)
        if isinstance(probe, Lookup):
            assert probe.name in topology.OUTSIDE
        if isinstance(probe, Connect) and "/" in probe.target:
            topology.find_service(probe.target)


def test_a_fresh_name_says_its_only_address() -> None:
    """The authoritative server computes it by the same rule."""
    assert topology.fresh_name(258) == ("n198-19-1-2.fresh.example.net", "198.19.1.2")


def test_objects_are_written_without_anchors_and_read_back_the_same() -> None:
    """What the demo puts into the folder is plain YAML, as a person would write it."""
    import yaml

    for made in (make_cluster(), make_late("vault")):
        text = render(made)
        assert "&id" not in text
        assert list(yaml.safe_load_all(text)) == made
