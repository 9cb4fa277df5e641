"""What compile makes of policies, as text that a person reviews: tiers, order, sources, named ports, shared bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from schemas import wire
from schemas.policy import EndpointRow, Peer, PortRange, Ruleset, RulesetRule
from schemas.terms import ANY_PROTOCOL, FIRST_BIT, Protocol, Tier
from services.controller.world import State
from tests import builders as k8s
from tests.golden import compare

GOLDEN = Path(__file__).parent / "golden" / "compile.txt"
EVERYWHERE = {"namespaces": {}}
OBJECTS = [
    k8s.namespace("app", team="x"),
    k8s.namespace("db"),
    k8s.node("node-a", "192.168.0.1"),
    k8s.pod("app/web", "10.0.0.1", app="web", ports=[{"name": "http", "containerPort": 8080}]),
    k8s.pod("db/main", "10.0.0.2", app="db", ports=[{"name": "sql", "containerPort": 5432}]),
    k8s.pod("db/copy", "10.0.0.3", app="db", ports=[{"name": "sql", "containerPort": 5433}]),
    k8s.aws_cluster_policy(
        "aws",
        {
            "egress": [
                {"name": "leave", "action": "Pass", "to": [EVERYWHERE]},
                {"name": "open", "action": "Accept", "to": [{"domainNames": ["*.example.com", "example.com"]}]},
                {"name": "shut", "action": "Deny", "to": [{"networks": ["169.254.169.254/32"]}]},
            ]
        },
    ),
    k8s.cluster_policy(
        "between",
        {
            "egress": [
                {
                    "name": "ranges",
                    "action": "Accept",
                    "to": [{"networks": ["10.0.0.0/8"]}],
                    "protocols": [{"tcp": {"destinationPort": {"range": {"start": 80, "end": 90}}}}],
                }
            ],
            "ingress": [{"name": "in", "action": "Deny", "from": [{"namespaces": {"matchLabels": {"team": "y"}}}]}],
        },
    ),
    k8s.baseline_policy({"egress": [{"name": "last", "action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]}]}),
    k8s.network_policy(
        "named",
        {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": "http"}]}],
            "egress": [
                {
                    "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "db"}}}],
                    "ports": [{"port": "sql"}],
                },
                {"to": [{"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.7/32"]}}]},
            ],
        },
    ),
    k8s.application_policy(
        "same",
        {
            "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.7/32"]}}]}],
        },
    ),
]


def format_ruleset(ruleset: Ruleset) -> Iterator[str]:
    """A line for what holds for the whole, then one for each bit, in the order in which they are judged."""
    yield (
        f"{ruleset.direction.name.lower()}: default {ruleset.default.name.lower()},"
        f" isolated {ruleset.isolated}, dns implicit {ruleset.dns_implicit}"
    )
    yield from (f"  isolated by {each.kind} {each.namespace}/{each.name}" for each in ruleset.isolated_by)
    for tier, first in FIRST_BIT.items():
        for place, rule in enumerate(ruleset.tier(Tier(tier))):
            yield from _format_rule(first + place, Tier(tier), rule)


def _format_rule(bit: int, tier: Tier, rule: RulesetRule) -> Iterator[str]:
    ports = ", ".join(_format_port(port) for port in rule.ports)
    yield f"  bit {bit:3} {tier.name.lower()} {rule.action.name.lower()} on {ports}"
    yield from (f"    peer {_format_peer(peer)}" for peer in rule.peers)
    yield from (f"    from {each.kind} {each.namespace}/{each.name} {each.rule}" for each in rule.sources)


def _format_peer(peer: Peer) -> str:
    return wire.encode(peer).decode()


def _format_port(port: PortRange) -> str:
    if port.protocol == ANY_PROTOCOL:
        return "everything"
    return f"{Protocol(port.protocol).name}/{port.first}-{port.last}"


def test_what_compile_makes_of_policies_is_golden() -> None:
    """Bit by bit, for both directions of one pod that policies of six kinds govern."""
    state = State()
    for obj in OBJECTS:
        assert not [each for each in state.upsert(obj) if each.severity == "error"]
    rows = {subject: wire.decode(subject, body) for subject, body in state.rows().items()}
    (web,) = [row for row in rows.values() if isinstance(row, EndpointRow) and row.pod == "web"]
    lines = ["# What the pod app/web's policies are compiled to."]
    for digest in (web.egress, web.ingress):
        ruleset = rows[wire.subject_ruleset(digest)]
        assert isinstance(ruleset, Ruleset)
        lines += format_ruleset(ruleset)
    compare(GOLDEN, "\n".join(lines) + "\n")
