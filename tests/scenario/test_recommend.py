"""A policy from what pods did: it is accepted, it allows what was seen, and nothing is made of no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from schemas.terms import Direction, NodeName, Protocol
from schemas.usage import Contact, PeerKind, PodUsage
from services.cli.__main__ import app
from services.scenario.recommend import NotEnough, recommend_policy, write_yaml
from tests import builders as k8s

NOW = 10_000
LABELS = {"app": "web"}
OBJECTS = [
    k8s.namespace("shop"),
    k8s.namespace("data"),
    k8s.namespace("kube-system"),
    k8s.node("node-a", "192.168.0.1"),
    k8s.pod("shop/web", "10.0.0.1", app="web"),
    k8s.pod("shop/cart", "10.0.0.2", app="cart"),
    k8s.pod("data/db", "10.0.0.3", app="db"),
    k8s.pod("kube-system/dns", "10.0.0.4", **{"k8s-app": "kube-dns"}),
    k8s.service(
        "kube-system/kube-dns",
        "10.96.0.10",
        {"port": 53, "targetPort": 5353, "protocol": "UDP"},
        selector={"k8s-app": "kube-dns"},
    ),
]


def contact(kind: PeerKind, peer: str, port: int = 0, **more: Any) -> Contact:
    given = {"direction": Direction.EGRESS, "protocol": int(Protocol.TCP), "flows": 1, "last": 9_000} | more
    return Contact(kind=kind, peer=peer, port=port, **given)


SEEN = (
    contact(PeerKind.NAME, "api.example.com", 443, address="198.51.100.7"),
    contact(PeerKind.NAME, "b.example.com", 443, address="198.51.100.8"),
    contact(PeerKind.POD, "data/db", 5432, address="10.0.0.3", labels={"app": "db"}, labels_known=True),
    contact(PeerKind.POD, "shop/cart", 8080, address="10.0.0.2", labels={"app": "cart"}, labels_known=True),
    contact(PeerKind.ADDRESS, "203.0.113.9", 25, address="203.0.113.9"),
    contact(
        PeerKind.SERVICE,
        "kube-system/kube-dns",
        53,
        address="10.96.0.10",
        target_port=5353,
        labels={"k8s-app": "kube-dns"},
        labels_known=True,
        protocol=int(Protocol.UDP),
    ),
    contact(
        PeerKind.POD,
        "shop/cart",
        80,
        address="10.0.0.2",
        labels={"app": "cart"},
        labels_known=True,
        direction=Direction.INGRESS,
    ),
    contact(PeerKind.NODE, "node-a", 80, address="192.168.0.1", own_node=True, direction=Direction.INGRESS),
)


def usage(*contacts: Contact, pod: str = "web", **more: Any) -> PodUsage:
    given = {"labels": LABELS, "labels_known": True, "since": 1_000} | more
    return PodUsage(namespace="shop", pod=pod, uid=pod, node=NodeName("node-a"), contacts=contacts, **given)


def recommend(*pods: PodUsage, **more: Any) -> Any:
    return recommend_policy({(one.namespace, one.pod): one for one in pods}, "shop", "web", now=NOW, **more)


def probe(to: dict[str, str], port: int, expect: str, **more: str) -> dict[str, Any]:
    return {"from": {"pod": "shop/web"}, "to": to, "port": port, "expect": expect, **more}


def test_what_is_recommended_is_accepted_and_allows_what_was_seen(tmp_path: Path) -> None:
    """``yett check`` has nothing to say of it, and under it ``yett test`` allows what was seen and denies the rest."""
    text = write_yaml(recommend(usage(*SEEN)), lambda policy: yaml.safe_dump(policy, sort_keys=False))
    (tmp_path / "policy.yaml").write_text(text)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump_all(OBJECTS))
    checked = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert checked.exit_code == 0, checked.output
    names = [
        {"name": name, "addresses": [address]}
        for name, address in (("api.example.com", "198.51.100.7"), ("b.example.com", "198.51.100.8"))
    ]
    scenario = {
        "files": ["policy.yaml", "cluster.yaml"],
        "config": {"default": "deny"},
        "resolutions": names,
        "probes": [
            probe({"name": "api.example.com"}, 443, "allow"),
            probe({"name": "b.example.com"}, 443, "allow"),
            probe({"name": "api.example.com"}, 80, "deny"),
            probe({"address": "198.51.100.9"}, 443, "deny"),
            probe({"address": "203.0.113.9"}, 25, "allow"),
            probe({"address": "203.0.113.10"}, 25, "deny"),
            {"from": {"pod": "shop/cart"}, "to": {"pod": "shop/web"}, "port": 80, "expect": "deny"},
        ],
    }
    opened = {
        "files": ["policy.yaml", "cluster.yaml"],
        "config": {"default": "allow"},
        "probes": [
            probe({"pod": "data/db"}, 5432, "allow"),
            probe({"pod": "data/db"}, 5433, "deny"),
            probe({"pod": "shop/cart"}, 8080, "allow"),
            probe({"pod": "shop/cart"}, 8081, "deny"),
            probe({"service": "kube-system/kube-dns"}, 53, "allow", protocol="UDP"),
            {"from": {"pod": "shop/cart"}, "to": {"pod": "shop/web"}, "port": 80, "expect": "allow"},
            {"from": {"pod": "data/db"}, "to": {"pod": "shop/web"}, "port": 80, "expect": "deny"},
            {"from": {"address": "192.168.0.1"}, "to": {"pod": "shop/web"}, "port": 80, "expect": "allow"},
        ],
    }
    (tmp_path / "scenario").mkdir()
    for name, one in (("names", scenario), ("pods", opened)):
        one["files"] = [f"../{file}" for file in one["files"]]
        (tmp_path / "scenario" / f"{name}.yaml").write_text(yaml.safe_dump(one))
    tested = CliRunner().invoke(app, ["test", str(tmp_path / "scenario")])
    assert tested.exit_code == 0, tested.output


def test_names_with_the_same_ports_are_one_peer_and_pods_go_by_their_owners_labels() -> None:
    """Names come before addresses; a namespace is named where it is another one."""
    spec = recommend(usage(*SEEN)).policy["spec"]
    peers = {str(peer): rule["ports"] for rule in spec["egress"] for peer in rule["to"]}
    assert peers[str({"domainNames": ["api.example.com", "b.example.com"]})] == [{"protocol": "TCP", "port": 443}]
    db = {
        "podSelector": {"matchLabels": {"app": "db"}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "data"}},
    }
    assert peers[str(db)] == [{"protocol": "TCP", "port": 5432}]
    assert spec["podSelector"] == {"matchLabels": LABELS} and spec["policyTypes"] == ["Egress", "Ingress"]


def test_pods_of_one_kind_are_taken_together() -> None:
    """What any pod that the policy would select did is allowed: replicas do not all do the same."""
    other = contact(PeerKind.ADDRESS, "203.0.113.50", 26, address="203.0.113.50")
    stranger = contact(PeerKind.ADDRESS, "203.0.113.60", 27, address="203.0.113.60")
    found = recommend(
        usage(*SEEN), usage(other, pod="web-2"), usage(stranger, pod="job", labels={"app": "job"}, labels_known=True)
    )
    text = yaml.safe_dump(found.policy)
    assert "203.0.113.50/32" in text and "203.0.113.60" not in text and "from 2 pods" in found.notes[0]


@pytest.mark.parametrize(
    ("pods", "words"),
    [
        ((), "nothing is known"),
        ((usage(),), "nothing was seen of shop/web in 2h"),
        ((usage(*SEEN, labels={}, labels_known=True),), "it has none"),
        ((usage(*SEEN, labels={}, labels_known=False),), "does not know them"),
        ((usage(*SEEN, lost_egress=3),), "3 flows or contacts found no room"),
        ((usage(SEEN[-1]),), "needs a rule"),
    ],
)
def test_no_data_is_no_recommendation(pods: tuple[PodUsage, ...], words: str) -> None:
    """Nothing known, nothing seen, no labels to select by, or not all that was seen: it says so and writes nothing."""
    with pytest.raises(NotEnough, match=words):
        recommend(*pods)


def test_what_is_known_not_to_be_all_is_marked_where_it_is_wanted_all_the_same() -> None:
    """Asked for all the same, it says first that it is not all."""
    found = recommend(usage(*SEEN, dropped=2), is_partial_fine=True)
    assert any("NOT ALL: 2" in note for note in found.notes)


def test_a_direction_without_traffic_is_left_as_it_is() -> None:
    """Nothing seen is no proof that nothing is needed."""
    found = recommend(usage(SEEN[0]))
    assert found.policy["spec"]["policyTypes"] == ["Egress"]
    assert any(note.startswith("ingress: nothing was seen") for note in found.notes)


def test_implicit_dns_needs_a_rule_only_where_no_name_brings_it() -> None:
    """With a name in the policy the resolvers are open; without one the question is a flow like others."""
    dns = msgspec.structs.replace(SEEN[5], implicit=True)
    with_name = recommend(usage(SEEN[0], dns)).policy["spec"]["egress"]
    without = recommend(usage(SEEN[2], dns)).policy["spec"]["egress"]
    assert len(with_name) == 1 and len(without) == 2


def test_what_no_rule_can_say_is_left_out_and_told() -> None:
    """A ping to one peer would need a rule for every protocol: it is named and not written."""
    ping = contact(PeerKind.ADDRESS, "203.0.113.9", address="203.0.113.9", protocol=int(Protocol.ICMP))
    found = recommend(usage(SEEN[0], ping))
    assert "203.0.113.9" not in yaml.safe_dump(found.policy)
    assert any("ICMP with 203.0.113.9" in note for note in found.notes)
