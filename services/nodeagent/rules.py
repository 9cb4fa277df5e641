"""One ruleset taken apart: which of its rules each content stands for, as bit masks.

Rules of this module: bits are those of ``schemas.terms`` (0..191 Admin, 192..447 NetworkPolicy, 448..511 Baseline). A
ruleset that does not fit or says what its tier cannot say is refused whole (the endpoint is then denied, NO_RULESET):
nothing is ever truncated. Deliberately absent: numbers, classes, the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from schemas.policy import (
    AnyPeer,
    CidrPeer,
    DomainPeer,
    NodePeer,
    Peer,
    PeersetPeer,
    PeersetRow,
    PodPeer,
    PortRange,
    Ruleset,
    RulesetRule,
    RuleSource,
)
from schemas.terms import FIRST_BIT, RULES_ADMIN, RULES_BASELINE, RULES_NETWORK_POLICY, Action, Tier

_BUDGETS = {Tier.ADMIN: RULES_ADMIN, Tier.NETWORK_POLICY: RULES_NETWORK_POLICY, Tier.BASELINE: RULES_BASELINE}
_ALLOWED = {
    Tier.ADMIN: frozenset({Action.DENY, Action.ACCEPT, Action.PASS}),
    Tier.NETWORK_POLICY: frozenset({Action.ACCEPT}),
    Tier.BASELINE: frozenset({Action.DENY, Action.ACCEPT, Action.PASS}),  # a Pass leads to the default
}


class RulesetRefused(ValueError):
    """A ruleset that cannot be enforced as it stands."""


@dataclass(frozen=True, slots=True)
class Parts:
    """content -> mask of the rules that name it."""

    any: int = 0
    deny: int = 0
    passes: int = 0
    identities: Mapping[PodPeer | NodePeer, int] = field(default_factory=dict)
    cidrs: Mapping[CidrPeer, int] = field(default_factory=dict)
    domains: Mapping[str, int] = field(default_factory=dict)
    ports: Mapping[PortRange, int] = field(default_factory=dict)


def number_rules(ruleset: Ruleset) -> Iterator[tuple[int, Tier, RulesetRule]]:
    """(bit, tier, rule) in order of evaluation. RulesetRefused if a tier is over its budget."""
    for tier, budget in _BUDGETS.items():
        rules = ruleset.tier(tier)
        if len(rules) > budget:
            raise RulesetRefused(f"{len(rules)} rules in tier {tier.name}, at most {budget}")
        for position, rule in enumerate(rules):
            yield FIRST_BIT[tier] + position, tier, rule


def take_apart(ruleset: Ruleset, peersets: Mapping[str, PeersetRow]) -> Parts:
    """The masks of all contents. RulesetRefused if a peerset is missing or an action is not its tier's."""
    simple = {"any": 0, "deny": 0, "passes": 0}
    identities: dict[PodPeer | NodePeer, int] = {}
    cidrs: dict[CidrPeer, int] = {}
    domains: dict[str, int] = {}
    ports: dict[PortRange, int] = {}
    for bit, tier, rule in number_rules(ruleset):
        mask = 1 << bit
        if rule.action not in _ALLOWED[tier]:
            raise RulesetRefused(f"{rule.action.name} in tier {tier.name}")
        simple["deny"] |= mask if rule.action is Action.DENY else 0
        simple["passes"] |= mask if rule.action is Action.PASS else 0
        for ports_of_rule in rule.ports:
            ports[ports_of_rule] = ports.get(ports_of_rule, 0) | mask
        for peer in _expand(rule.peers, peersets):
            if isinstance(peer, AnyPeer):
                simple["any"] |= mask
            elif isinstance(peer, CidrPeer):
                cidrs[peer] = cidrs.get(peer, 0) | mask
            elif isinstance(peer, DomainPeer):
                domains[peer.pattern] = domains.get(peer.pattern, 0) | mask
            elif isinstance(peer, PodPeer | NodePeer):
                identities[peer] = identities.get(peer, 0) | mask
    return Parts(**simple, identities=identities, cidrs=cidrs, domains=domains, ports=ports)


def _expand(peers: tuple[Peer, ...], peersets: Mapping[str, PeersetRow]) -> Iterator[Peer]:
    for peer in peers:
        if not isinstance(peer, PeersetPeer):
            yield peer
        elif peer.hash in peersets:
            yield from peersets[peer.hash].peers
        else:
            raise RulesetRefused(f"peerset {peer.hash} is missing")


def find_source(ruleset: Ruleset, tier: Tier, bit: int) -> RuleSource | None:
    """Who wrote the rule with this bit: the first of its sources; None if there is no such rule."""
    if tier not in FIRST_BIT:
        return None
    rules = ruleset.tier(tier)
    position = bit - FIRST_BIT[tier]
    return rules[position].sources[0] if 0 <= position < len(rules) and rules[position].sources else None
