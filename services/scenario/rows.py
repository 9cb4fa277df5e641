"""The rows of a policy state by type, decoded: what ``explain`` reads, whether they were compiled here or are a bus's.

Pure. Deliberately absent: digests, agents, which rows are whose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from schemas import wire
from schemas.policy import (
    AddressRow,
    Config,
    EndpointRow,
    FrontendRow,
    IdentityRow,
    NamespaceRow,
    Peer,
    PeersetPeer,
    PeersetRow,
    Ruleset,
)
from schemas.terms import Direction
from services.controller.policy.model import ObjectKey


@dataclass
class Rows:
    """One state. Rulesets and peersets by hash, frontends by (address, protocol, port)."""

    config: Config = field(default_factory=Config)
    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)
    identities: dict[int, IdentityRow] = field(default_factory=dict)
    addresses: dict[str, AddressRow] = field(default_factory=dict)
    frontends: dict[tuple[str, int, int], FrontendRow] = field(default_factory=dict)
    rulesets: dict[str, Ruleset] = field(default_factory=dict)
    peersets: dict[str, PeersetRow] = field(default_factory=dict)
    endpoints: dict[ObjectKey, EndpointRow] = field(default_factory=dict)

    @classmethod
    def read(cls, encoded: Mapping[str, bytes]) -> Rows:
        """Subject -> body, decoded; rows of kinds that judge nothing are left out. WireError."""
        rows = cls()
        for subject, body in encoded.items():
            row = wire.decode(subject, body)
            if isinstance(row, Config):
                rows.config = row
            elif isinstance(row, NamespaceRow):
                rows.namespaces[row.name] = row.labels
            elif isinstance(row, IdentityRow):
                rows.identities[row.id] = row
            elif isinstance(row, AddressRow):
                rows.addresses[row.address] = row
            elif isinstance(row, FrontendRow):
                rows.frontends[row.address, row.protocol, row.port] = row
            elif isinstance(row, Ruleset):
                rows.rulesets[subject.rpartition(".")[2]] = row
            elif isinstance(row, PeersetRow):
                rows.peersets[subject.rpartition(".")[2]] = row
            elif isinstance(row, EndpointRow):
                rows.endpoints[row.namespace, row.pod] = row
        return rows

    def ruleset_of(self, endpoint: EndpointRow, direction: Direction) -> Ruleset | None:
        """The rules of one side of a pod; None if the state lacks them."""
        return self.rulesets.get(endpoint.egress if direction is Direction.EGRESS else endpoint.ingress)

    def has_shadow(self, endpoint: EndpointRow, direction: Direction) -> bool:
        """Whether policies under audit govern this side of a pod."""
        return bool(endpoint.egress_shadow if direction is Direction.EGRESS else endpoint.ingress_shadow)

    def shadow_of(self, endpoint: EndpointRow, direction: Direction) -> Ruleset | None:
        """The rules of one side with those of policies under audit; None if there are none, or the state lacks them."""
        return self.rulesets.get(endpoint.egress_shadow if direction is Direction.EGRESS else endpoint.ingress_shadow)

    def endpoint_at(self, address: str) -> EndpointRow | None:
        """The pod that has an address now."""
        row = self.addresses.get(address)
        namespace, _, pod = row.owner.partition("/") if row is not None else ("", "", "")
        found = self.endpoints.get((namespace, pod))
        return found if found is not None and row is not None and found.uid == row.uid else None

    def unfold(self, peers: Iterable[Peer]) -> Iterator[Peer]:
        """Peers, those in peersets included."""
        for peer in peers:
            if isinstance(peer, PeersetPeer):
                yield from self.peersets[peer.hash].peers
            else:
                yield peer
