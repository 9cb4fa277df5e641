"""A reader of rows that judges packets as an agent and its kernel would: the other road to the oracle's answer.

It knows nothing of Kubernetes objects, only of rows, and walks bits in order: pod peers by identity, prefixes by
address, names by answers. Small on purpose; where it differs from the oracle one of the two is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from schemas.policy import (
    AnyPeer,
    CidrPeer,
    Config,
    DomainPeer,
    EndpointRow,
    FrontendRow,
    IdentityRow,
    Peer,
    PeersetPeer,
    Ruleset,
    RulesetRule,
)
from schemas.selectors import pattern_covers, peer_covers_address, peer_selects_identity
from schemas.terms import ANY_PROTOCOL, Action, AddressKind, Direction, Reason, Tier, Verdict
from services.controller.policy import names
from services.controller.policy.model import Answer, Finding, Packet
from services.scenario.rows import Rows

BACKENDS_MAX = 64


@dataclass(frozen=True)
class Side:
    """One way to see the other side: an identity, an address, names; and the port that goes with it."""

    port: int
    identity: IdentityRow | None = None
    address: str | None = None
    names: frozenset[str] = frozenset()


def judge(
    tables: Rows, packet: Packet, *, direction: Direction, endpoint: EndpointRow, answers: Iterable[Answer], at: float
) -> Finding:
    """The verdict on a new flow at one endpoint: a shadow opens nothing, and audits what it would not have opened."""
    is_egress = direction is Direction.EGRESS
    ruleset = tables.rulesets[endpoint.egress if is_egress else endpoint.ingress]
    shadow = endpoint.egress_shadow if is_egress else endpoint.ingress_shadow
    asked: dict[str, Any] = {"direction": direction, "endpoint": endpoint, "answers": answers, "at": at}
    enforced = _judge(tables, packet, ruleset, **asked)
    if not shadow or enforced.verdict is Verdict.DENY:
        return enforced
    full = _judge(tables, packet, tables.rulesets[shadow], **asked)
    return enforced if full.verdict is Verdict.ALLOW else replace(full, verdict=Verdict.AUDIT)


def _judge(
    tables: Rows,
    packet: Packet,
    ruleset: Ruleset,
    *,
    direction: Direction,
    endpoint: EndpointRow,
    answers: Iterable[Answer],
    at: float,
) -> Finding:
    other = packet.destination if direction is Direction.EGRESS else packet.source
    if other in endpoint.addresses:
        return Finding(Verdict.ALLOW, Tier.NONE, Reason.HAIRPIN)
    face = tables.frontends.get((other, packet.protocol, packet.port)) if direction is Direction.EGRESS else None
    if face is not None:
        return _judge_frontend(tables, packet, ruleset, face)
    row = tables.addresses.get(other)
    is_own = packet.from_own_node
    if direction is Direction.EGRESS:
        is_own = row is not None and row.kind is AddressKind.NODE and row.node == endpoint.node
    if row is None and not is_own and _is_in(tables.config.pod_cidrs, other):
        return Finding(Verdict.DENY, Tier.NONE, Reason.UNKNOWN_POD)
    live: frozenset[str] = frozenset()
    told: frozenset[str] = frozenset()
    if direction is Direction.EGRESS and row is None and _may_have_name(tables, other):
        known = [each for each in answers if other in each.addresses and each.at <= at]
        told = frozenset(each.name for each in known)
        live = frozenset(each.name for each in known if at < names.expiry_of(each, tables.config))
    identity = tables.identities[row.identity] if row is not None else None
    sides = (Side(packet.port, identity, other, live),)
    finding = _walk(tables, packet, ruleset, sides)[1]
    if finding.reason not in (Reason.ISOLATED, Reason.DEFAULT):
        return finding
    if is_own:
        return Finding(Verdict.ALLOW, Tier.NONE, Reason.OWN_NODE)
    if finding.verdict is not Verdict.DENY:
        return finding
    before = _walk(tables, packet, ruleset, (Side(packet.port, identity, other, told),))[1]
    if before.verdict is Verdict.ALLOW:
        return Finding(Verdict.DENY, finding.tier, Reason.NAME_EXPIRED, finding.policy, before.name)
    return finding


def _judge_frontend(tables: Rows, packet: Packet, ruleset: Ruleset, face: FrontendRow) -> Finding:
    plain = Side(packet.port, None, packet.destination)
    if not face.backends:
        finding = _walk(tables, packet, ruleset, (plain,))[1]
        if finding.verdict is Verdict.DENY and finding.reason in (Reason.ISOLATED, Reason.DEFAULT):
            return Finding(finding.verdict, finding.tier, Reason.NO_BACKEND, finding.policy)
        return finding
    if len(face.backends) > BACKENDS_MAX:
        return Finding(Verdict.DENY, Tier.NONE, Reason.TOO_MANY_BACKENDS)
    found = []
    for backend in face.backends:
        side = Side(backend.port, tables.identities.get(backend.identity), backend.address or None)
        found.append(_walk(tables, packet, ruleset, (plain, side)))
    denied = [each for each in found if each[1].verdict is Verdict.DENY]
    audited = [each for each in found if each[1].verdict is Verdict.AUDIT]
    _, finding = min(denied or audited or found, key=lambda each: each[0])
    if 0 < len(denied) < len(found):
        return Finding(finding.verdict, finding.tier, Reason.MIXED_BACKENDS, finding.policy, finding.name)
    return finding


def _walk(tables: Rows, packet: Packet, ruleset: Ruleset, sides: tuple[Side, ...]) -> tuple[tuple[int, int], Finding]:
    for tier in (Tier.ADMIN, Tier.NETWORK_POLICY, Tier.BASELINE):
        if tier is Tier.NETWORK_POLICY and ruleset.dns_implicit and _is_dns(tables.config, packet):
            return (tier, -1), Finding(Verdict.ALLOW, tier, Reason.DNS_IMPLICIT)
        for place, rule in enumerate(ruleset.tier(tier)):
            if not _matches(tables, packet, rule, sides):
                continue
            if rule.action is Action.PASS:
                break
            verdict = Verdict.ALLOW if rule.action is Action.ACCEPT else Verdict.DENY
            name = _name(tables, packet, rule, sides)
            return (tier, place), Finding(verdict, tier, Reason.RULE, rule.sources[0], name)
        if tier is Tier.NETWORK_POLICY and ruleset.isolated:
            return (tier, 1 << 30), Finding(Verdict.DENY, tier, Reason.ISOLATED, ruleset.isolated_by[0])
    verdict = Verdict(int(ruleset.default))
    return (Tier.DEFAULT, 0), Finding(verdict, Tier.DEFAULT, Reason.DEFAULT)


def _is_dns(config: Config, packet: Packet) -> bool:
    wanted = (packet.destination, packet.port)
    return packet.protocol in (6, 17) and any((each.address, each.port) == wanted for each in config.resolvers)


def _matches(tables: Rows, packet: Packet, rule: RulesetRule, sides: Iterable[Side]) -> bool:
    return any(
        any(_port_matches(port.protocol, port.first, port.last, packet.protocol, side.port) for port in rule.ports)
        and any(_peer_matches(tables, peer, side) for peer in _unfold(tables, rule.peers))
        for side in sides
    )


def _port_matches(protocol: int, first: int, last: int, actual: int, port: int) -> bool:
    return protocol == ANY_PROTOCOL or (protocol == actual and first <= port <= last)


def _peer_matches(tables: Rows, peer: Peer, side: Side) -> bool:
    if isinstance(peer, AnyPeer):
        return True
    if isinstance(peer, DomainPeer):
        return any(pattern_covers(peer.pattern, name) for name in side.names)
    if isinstance(peer, CidrPeer):
        return side.address is not None and peer_covers_address(peer, side.address)
    return side.identity is not None and peer_selects_identity(peer, side.identity, tables.namespaces)


def _unfold(tables: Rows, peers: Iterable[Peer]) -> Iterable[Peer]:
    for peer in peers:
        if isinstance(peer, PeersetPeer):
            yield from tables.peersets[peer.hash].peers
        else:
            yield peer


def _name(tables: Rows, packet: Packet, rule: RulesetRule, sides: tuple[Side, ...]) -> str:
    nameless = [Side(side.port, side.identity, side.address) for side in sides]
    if _matches(tables, packet, rule, nameless):
        return ""
    for side in sides:
        for name in sorted(side.names):
            one = Side(side.port, side.identity, side.address, frozenset({name}))
            if _matches(tables, packet, rule, (one,)):
                return name
    return ""


def _may_have_name(tables: Rows, address: str) -> bool:
    taken = tables.addresses.keys() | {face[0] for face in tables.frontends}
    return taken.isdisjoint(names.forms_of(address)) and names.is_learnable(address, tables.config)


def _is_in(cidrs: Iterable[str], address: str) -> bool:
    return any(peer_covers_address(CidrPeer(cidr=cidr), address) for cidr in cidrs)
