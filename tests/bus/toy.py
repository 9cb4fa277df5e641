"""A toy cluster that makes closed sets of policy rows, and a check that a set of rows is closed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas import wire
from schemas.policy import (
    AddressRow,
    Config,
    DomainPeer,
    EndpointRow,
    IdentityRow,
    NamespaceRow,
    PeersetPeer,
    PeersetRow,
    PortRange,
    Ruleset,
    RulesetRule,
    RuleSource,
)
from schemas.terms import Action, Default, Direction, IdentityId, NodeName, RulesetHash


@dataclass
class Toy:
    """Pods on nodes, each pod under the one policy of its namespace, each policy with a large peer of its own."""

    nodes: list[str] = field(default_factory=lambda: ["node-a", "ip-10-0-1-2.ec2.internal"])
    pods: dict[str, tuple[str, str]] = field(default_factory=dict)
    policies: dict[str, int] = field(default_factory=dict)
    born: int = 0

    def add_pod(self, namespace: str, node: str) -> str:
        """A new pod, with a uid and an address of its own; its name."""
        self.born += 1
        name = f"pod-{self.born}"
        self.pods[name] = (namespace, node)
        self.policies.setdefault(namespace, 0)
        return name

    def remove_pod(self, name: str) -> None:
        del self.pods[name]

    def edit_policy(self, namespace: str) -> None:
        """New content for the policy of a namespace: a new peerset, a new ruleset, endpoints that flip."""
        self.policies[namespace] += 1

    def change(self, dice: random.Random) -> None:
        """One random change of one pod or policy."""
        namespace = f"ns-{dice.randrange(4)}"
        what = dice.random()
        if what < 0.4 or len(self.pods) < 5:
            self.add_pod(namespace, dice.choice(self.nodes))
        elif what < 0.7:
            self.remove_pod(dice.choice(sorted(self.pods)))
        elif namespace in self.policies:
            self.edit_policy(namespace)

    def rows(self) -> dict[str, bytes]:
        """All rows that this cluster wants on the bus."""
        rows = {wire.SUBJECT_CONFIG: wire.encode(Config(default=Default.DENY))}
        rulesets = {namespace: self._put_ruleset(rows, namespace) for namespace in self.policies}
        for pod, (namespace, node) in self.pods.items():
            self._put_pod(rows, pod, namespace, NodeName(node), rulesets[namespace])
        return rows

    def _put_ruleset(self, rows: dict[str, bytes], namespace: str) -> RulesetHash:
        version = self.policies[namespace]
        peerset = PeersetRow(peers=(DomainPeer(pattern=f"v{version}.{namespace}.example.com"),))
        peerset_hash = wire.hash_content(peerset)
        rows[wire.subject_peerset(peerset_hash)] = wire.encode(peerset)
        rule = RulesetRule(
            action=Action.ACCEPT,
            peers=(PeersetPeer(hash=peerset_hash),),
            ports=(PortRange(protocol=6, first=443, last=443),),
            sources=(RuleSource(kind="NetworkPolicy", namespace=namespace, name="toy", rule="egress[0]"),),
        )
        ruleset = Ruleset(direction=Direction.EGRESS, default=Default.DENY, network_policy=(rule,), isolated=True)
        ruleset_hash = RulesetHash(wire.hash_content(ruleset))
        rows[wire.subject_ruleset(ruleset_hash)] = wire.encode(ruleset)
        return ruleset_hash

    def _put_pod(self, rows: dict[str, bytes], pod: str, namespace: str, node: NodeName, ruleset: RulesetHash) -> None:
        number = int(pod.rpartition("-")[2])
        identity = IdentityId(256 + int(namespace.rpartition("-")[2]))
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        rows[wire.subject_namespace(namespace)] = wire.encode(NamespaceRow(name=namespace))
        rows[wire.subject_identity(identity)] = wire.encode(IdentityRow(id=identity, namespace=namespace))
        rows[wire.subject_address(address)] = wire.encode(
            AddressRow(address=address, identity=identity, uid=f"uid-{pod}", owner=f"{namespace}/{pod}", node=node)
        )
        rows[wire.subject_endpoint(node, namespace, pod)] = wire.encode(
            EndpointRow(
                node=node,
                namespace=namespace,
                pod=pod,
                uid=f"uid-{pod}",
                identity=identity,
                egress=ruleset,
                ingress=ruleset,
                addresses=(address,),
            )
        )


def find_dangling(rows: Mapping[str, bytes]) -> list[str]:
    """What rows refer to and is not there: endpoint -> ruleset -> peerset, endpoint and address -> identity."""
    missing = []
    for subject, body in rows.items():
        row = wire.decode(subject, body)
        wanted: list[str] = []
        if isinstance(row, EndpointRow):
            wanted = [wire.subject_ruleset(row.egress), wire.subject_ruleset(row.ingress)]
        if isinstance(row, EndpointRow | AddressRow):
            wanted.append(wire.subject_identity(row.identity))
        if isinstance(row, Ruleset):
            peers = (peer for rule in row.network_policy for peer in rule.peers)
            wanted = [wire.subject_peerset(peer.hash) for peer in peers if isinstance(peer, PeersetPeer)]
        missing += [f"{subject} -> {other}" for other in wanted if other not in rows]
    return missing
