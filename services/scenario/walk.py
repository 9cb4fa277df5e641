"""Why: one packet at one pod's interface, walked through its ruleset rule by rule.

The walk reads compiled rows, as an agent does, so that it tells the same of manifests and of a live cluster; the
finding it ends with is the oracle's (a property test holds the two equal). A rule that does not match says what it
lacked.

Where policies under audit govern the pod, what the enforced rules accept is walked again with theirs.

A node's own DNS cache is no row: agents find it, and say so in their status. Where nobody told, a walk can suppose one.

Pure. Deliberately absent: where rows come from, how a flow finds its pods (``explain``), tables for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from schemas.policy import (
    AnyPeer,
    CidrPeer,
    DomainPeer,
    EndpointRow,
    FrontendRow,
    IdentityRow,
    Peer,
    Resolver,
    Ruleset,
    RulesetRule,
)
from schemas.selectors import pattern_covers, peer_covers_address, peer_selects_identity
from schemas.terms import ANY_PROTOCOL, Action, AddressKind, Direction, NodeName, Protocol, Reason, Tier, Verdict
from services.controller.policy import names
from services.controller.policy.model import ANY_PORT, Answer, Finding, Packet
from services.scenario.rows import Rows

BACKENDS_MAX = 64
"""As the agent's: more are not judged together."""
TIERS = (Tier.ADMIN, Tier.NETWORK_POLICY, Tier.BASELINE)
NODE_CACHE = "169.254.20.10"
"""Where NodeLocal DNSCache listens unless it is told otherwise: an agent that finds it there trusts it by itself."""
_AFTER_ALL_RULES = 1 << 30


class Outcome(StrEnum):
    """What became of one rule."""

    DECIDES = "decides"
    PASSES = "passes"
    LATER = "matches, but is not reached"
    EXPIRED = "the time of the name is over"
    PORT = "all but the port"
    PEER = "all but the peer"
    NEITHER = "neither peer nor port"


@dataclass(frozen=True, slots=True)
class View:
    """One way to see the other side: what it is, its address (for prefixes), its names, and the port."""

    port: int
    identity: IdentityRow | None = None
    address: str | None = None
    names: frozenset[str] = frozenset()
    expired: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RuleStep:
    rule: RulesetRule
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class TierStep:
    """``is_reached``: the walk came here. ``end``: how it went on without a rule that decides, if it did."""

    tier: Tier
    is_reached: bool
    rules: tuple[RuleStep, ...]
    end: str = ""


@dataclass(frozen=True, slots=True)
class Walk:
    """The walk of one view of the other side. ``seen_as``: what the other side is, in words."""

    finding: Finding
    tiers: tuple[TierStep, ...] = ()
    seen_as: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Full:
    """``finding`` and ``walks``: by all rules, those under audit included. ``enforced``: the finding without those."""

    enforced: Finding
    finding: Finding
    walks: tuple[Walk, ...]


@dataclass(frozen=True, slots=True)
class CrossingWalk:
    """A packet at an interface. Several walks where a Service has several kinds of backends.

    ``walks`` are of the enforced rules. ``full``: where what they accept is asked of policies under audit too.
    """

    endpoint: EndpointRow
    direction: Direction
    packet: Packet
    finding: Finding
    walks: tuple[Walk, ...] = ()
    full: Full | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a walk reads. ``at``: seconds on the answers' clock. ``caches``: node -> the addresses of its own DNS cache
    that its agent trusts."""

    rows: Rows
    answers: Sequence[Answer] = ()
    at: float = 0.0
    caches: Mapping[NodeName, frozenset[str]] = field(default_factory=dict)

    def on_node(self, node: NodeName) -> Facts:
        """As this node's agent has them: its own cache is a resolver there, as if the settings named it."""
        own = tuple(Resolver(address=address) for address in sorted(self.caches.get(node, ())))
        if not own:
            return self
        config = msgspec.structs.replace(self.rows.config, resolvers=(*self.rows.config.resolvers, *own))
        return replace(self, rows=replace(self.rows, config=config))


def suppose_cache(facts: Facts, endpoint: EndpointRow, packet: Packet) -> Finding | None:
    """On what a pod sends, if its destination were the DNS cache of the pod's node; None if the verdict is the same."""
    supposed = replace(facts, caches={endpoint.node: frozenset({packet.destination})})
    finding, other = (walk_crossing(each, endpoint, Direction.EGRESS, packet).finding for each in (facts, supposed))
    return other if other.verdict is not finding.verdict else None


def walk_crossing(facts: Facts, endpoint: EndpointRow, direction: Direction, packet: Packet) -> CrossingWalk:
    """The verdict on a new flow at one interface, with its story."""
    facts = facts.on_node(endpoint.node)
    rows = facts.rows
    crossing = _walk_ruleset(facts, endpoint, direction, packet, rows.ruleset_of(endpoint, direction))
    if crossing.finding.verdict is Verdict.DENY or not rows.has_shadow(endpoint, direction):
        return crossing
    full = _walk_ruleset(facts, endpoint, direction, packet, rows.shadow_of(endpoint, direction))
    enforced = crossing.finding
    finding = enforced if full.finding.verdict is Verdict.ALLOW else replace(full.finding, verdict=Verdict.AUDIT)
    return replace(crossing, finding=finding, full=Full(enforced, full.finding, full.walks))


def _walk_ruleset(
    facts: Facts, endpoint: EndpointRow, direction: Direction, packet: Packet, ruleset: Ruleset | None
) -> CrossingWalk:
    rows = facts.rows
    other = packet.destination if direction is Direction.EGRESS else packet.source
    if other in endpoint.addresses:
        return _told(endpoint, direction, packet, Finding(Verdict.ALLOW, Tier.NONE, Reason.HAIRPIN))
    if ruleset is None:
        return _told(endpoint, direction, packet, Finding(Verdict.DENY, Tier.NONE, Reason.NO_RULESET))
    face = rows.frontends.get((other, packet.protocol, packet.port)) if direction is Direction.EGRESS else None
    if face is not None:
        return _walk_service(facts, endpoint, packet, ruleset, face)
    walk = _walk_address(facts, endpoint, direction, packet, ruleset)
    return CrossingWalk(endpoint, direction, packet, walk.finding, (walk,))


def _told(endpoint: EndpointRow, direction: Direction, packet: Packet, finding: Finding) -> CrossingWalk:
    return CrossingWalk(endpoint, direction, packet, finding)


# ---------------------------------------------------------------------------------------------------------------------
# The other side


def _walk_address(facts: Facts, endpoint: EndpointRow, direction: Direction, packet: Packet, ruleset: Ruleset) -> Walk:
    rows = facts.rows
    other = packet.destination if direction is Direction.EGRESS else packet.source
    row = rows.addresses.get(other)
    is_own = packet.from_own_node
    if direction is Direction.EGRESS:
        is_own = row is not None and row.kind is AddressKind.NODE and row.node == endpoint.node
    if row is None and not is_own and _is_in(rows.config.pod_cidrs, other):
        return Walk(Finding(Verdict.DENY, Tier.NONE, Reason.UNKNOWN_POD), seen_as=("an address of no known pod",))
    live, told = _names_of(facts, other) if direction is Direction.EGRESS else (frozenset(), frozenset())
    identity = rows.identities.get(row.identity) if row is not None else None
    view = View(packet.port, identity, other, live, told - live)
    walk = _walk_tiers(rows, packet, ruleset, (view,))
    seen = tuple(_describe_other(facts, other, is_own=is_own, live=live, expired=told - live))
    if direction is Direction.EGRESS and other in facts.caches.get(endpoint.node, ()):
        seen += ("the DNS cache of its node",)
    return replace(walk, finding=_refine(rows, packet, ruleset, view, walk.finding, is_own=is_own), seen_as=seen)


def _refine(rows: Rows, packet: Packet, ruleset: Ruleset, view: View, finding: Finding, *, is_own: bool) -> Finding:
    """The own node's pass, and the better reason of a name whose time is over."""
    if finding.reason not in (Reason.ISOLATED, Reason.DEFAULT):
        return finding
    if is_own:
        return Finding(Verdict.ALLOW, Tier.NONE, Reason.OWN_NODE)
    if finding.verdict is not Verdict.DENY or not view.expired:
        return finding
    earlier = replace(view, names=view.names | view.expired, expired=frozenset())
    before = _walk_tiers(rows, packet, ruleset, (earlier,)).finding
    if before.verdict is Verdict.ALLOW:
        return Finding(Verdict.DENY, finding.tier, Reason.NAME_EXPIRED, finding.policy, before.name)
    return finding


def _describe_other(
    facts: Facts, address: str, *, is_own: bool, live: frozenset[str], expired: frozenset[str]
) -> Iterable[str]:
    row = facts.rows.addresses.get(address)
    if row is not None:
        yield f"{row.kind.name.lower()} {row.owner}"
    if is_own:
        yield "its own node"
    yield from (f"known as {name}" for name in sorted(live))
    yield from (f"was known as {name}, whose time is over" for name in sorted(expired))


def _names_of(facts: Facts, address: str) -> tuple[frozenset[str], frozenset[str]]:
    """(names that may be used for it now, those it was ever given)."""
    rows, config = facts.rows, facts.rows.config
    services = {face[0] for face in rows.frontends}
    if any(form in rows.addresses or form in services for form in names.forms_of(address)):
        return frozenset(), frozenset()
    if not names.is_learnable(address, config):
        return frozenset(), frozenset()
    known = [
        each for each in facts.answers if each.at <= facts.at and address in each.addresses[: config.addresses_per_name]
    ]
    live = frozenset(each.name for each in known if facts.at < names.expiry_of(each, config))
    return live, frozenset(each.name for each in known)


def _is_in(cidrs: Iterable[str], address: str) -> bool:
    return any(peer_covers_address(CidrPeer(cidr=cidr), address) for cidr in cidrs)


def _walk_service(
    facts: Facts, endpoint: EndpointRow, packet: Packet, ruleset: Ruleset, face: FrontendRow
) -> CrossingWalk:
    """Prefixes see the packet as it is, pod peers every backend with its own port: all must be allowed."""
    rows, direction = facts.rows, Direction.EGRESS
    front = View(packet.port, address=packet.destination)
    service = f"{face.kind.name.lower().replace('_', ' ')} of {face.service}"
    if not face.backends:
        walk = _walk_tiers(rows, packet, ruleset, (front,))
        finding = walk.finding
        if finding.verdict is Verdict.DENY and finding.reason in (Reason.ISOLATED, Reason.DEFAULT):
            finding = replace(finding, reason=Reason.NO_BACKEND)
        walk = replace(walk, finding=finding, seen_as=(f"{service}, without a backend",))
        return CrossingWalk(endpoint, direction, packet, finding, (walk,))
    if len(face.backends) > BACKENDS_MAX:
        return _told(endpoint, direction, packet, Finding(Verdict.DENY, Tier.NONE, Reason.TOO_MANY_BACKENDS))
    walks = []
    for backend in face.backends:
        behind = View(backend.port, rows.identities.get(backend.identity), backend.address or None)
        walk = _walk_tiers(rows, packet, ruleset, (front, behind))
        owners = backend.address or ", ".join(
            sorted({row.owner for row in rows.addresses.values() if row.identity == backend.identity})
        )
        walks.append(replace(walk, seen_as=(f"{service}, backend {owners} port {backend.port}",)))
    walks.sort(key=lambda walk: walk.seen_as)
    return CrossingWalk(endpoint, direction, packet, _conclude_backends(walks), tuple(walks))


def _conclude_backends(walks: Sequence[Walk]) -> Finding:
    denied = [walk for walk in walks if walk.finding.verdict is Verdict.DENY]
    audited = [walk for walk in walks if walk.finding.verdict is Verdict.AUDIT]
    finding = min(denied or audited or walks, key=_place).finding
    return replace(finding, reason=Reason.MIXED_BACKENDS) if 0 < len(denied) < len(walks) else finding


def _place(walk: Walk) -> tuple[int, int]:
    """Where in the order of evaluation a walk ended."""
    tier, reason = walk.finding.tier, walk.finding.reason
    if reason is not Reason.RULE:
        return tier, -1 if reason is Reason.DNS_IMPLICIT else _AFTER_ALL_RULES
    steps = next(step.rules for step in walk.tiers if step.tier is tier)
    return tier, next(place for place, step in enumerate(steps) if step.outcome is Outcome.DECIDES)


# ---------------------------------------------------------------------------------------------------------------------
# The tiers


def _walk_tiers(rows: Rows, packet: Packet, ruleset: Ruleset, views: Sequence[View]) -> Walk:
    finding: Finding | None = None
    steps = []
    for tier in TIERS:
        is_reached = finding is None
        rules: tuple[RuleStep, ...] = ()
        end = ""
        if is_reached and tier is Tier.NETWORK_POLICY and _is_implied_dns(rows, ruleset, packet):
            finding = Finding(Verdict.ALLOW, tier, Reason.DNS_IMPLICIT)
            end = "DNS to a trusted resolver, which a domain rule of the pod implies"
        rules = tuple(_walk_rules(rows, packet, ruleset.tier(tier), views, is_open=finding is None))
        decider = next((step.rule for step in rules if step.outcome is Outcome.DECIDES), None)
        if decider is not None:
            finding = _conclude_rule(rows, packet, decider, views, tier)
        elif finding is None and tier is Tier.NETWORK_POLICY and ruleset.isolated:
            finding = Finding(Verdict.DENY, tier, Reason.ISOLATED, next(iter(ruleset.isolated_by), None))
            end = "isolated, and no rule allows it"
        steps.append(TierStep(tier, is_reached, rules, end))
    if finding is None:
        finding = Finding(Verdict(int(ruleset.default)), Tier.DEFAULT, Reason.DEFAULT)
    return Walk(finding, tuple(steps))


def _walk_rules(
    rows: Rows, packet: Packet, rules: Iterable[RulesetRule], views: Sequence[View], *, is_open: bool
) -> Iterable[RuleStep]:
    """``is_open``: nothing has decided before; a rule that matches ends that."""
    for rule in rules:
        outcome = _compare(rows, packet, rule, views)
        if outcome is Outcome.DECIDES:
            if not is_open:
                outcome = Outcome.LATER
            elif rule.action is Action.PASS:
                outcome = Outcome.PASSES
            is_open = False
        yield RuleStep(rule, outcome)


def _conclude_rule(rows: Rows, packet: Packet, rule: RulesetRule, views: Sequence[View], tier: Tier) -> Finding:
    verdict = Verdict.ALLOW if rule.action is Action.ACCEPT else Verdict.DENY
    return Finding(verdict, tier, Reason.RULE, rule.sources[0], _deciding_name(rows, packet, rule, views))


def _compare(rows: Rows, packet: Packet, rule: RulesetRule, views: Sequence[View]) -> Outcome:
    """DECIDES if it matches; else what it would have matched but for."""
    if _matches(rows, packet, rule, views):
        return Outcome.DECIDES
    earlier = [replace(view, names=view.names | view.expired) for view in views]
    if _matches(rows, packet, rule, earlier):
        return Outcome.EXPIRED
    if _matches(rows, packet, msgspec.structs.replace(rule, ports=(ANY_PORT,)), views):
        return Outcome.PORT
    if rule.peers and _matches(rows, packet, msgspec.structs.replace(rule, peers=(AnyPeer(),)), views):
        return Outcome.PEER
    return Outcome.NEITHER


def _matches(rows: Rows, packet: Packet, rule: RulesetRule, views: Iterable[View]) -> bool:
    return any(
        any(_port_matches(port.protocol, port.first, port.last, packet.protocol, view.port) for port in rule.ports)
        and any(_peer_matches(rows, peer, view) for peer in rows.unfold(rule.peers))
        for view in views
    )


def _port_matches(protocol: int, first: int, last: int, actual: int, port: int) -> bool:
    return protocol == ANY_PROTOCOL or (protocol == actual and first <= port <= last)


def _peer_matches(rows: Rows, peer: Peer, view: View) -> bool:
    if isinstance(peer, AnyPeer):
        return True
    if isinstance(peer, DomainPeer):
        return any(pattern_covers(peer.pattern, name) for name in view.names)
    if isinstance(peer, CidrPeer):
        return view.address is not None and peer_covers_address(peer, view.address)
    return view.identity is not None and peer_selects_identity(peer, view.identity, rows.namespaces)


def _deciding_name(rows: Rows, packet: Packet, rule: RulesetRule, views: Sequence[View]) -> str:
    """The name without which the rule would not have matched; empty if another peer matched as well."""
    if _matches(rows, packet, rule, [replace(view, names=frozenset()) for view in views]):
        return ""
    told = sorted({name for view in views for name in view.names})
    for peer in rows.unfold(rule.peers):
        if isinstance(peer, DomainPeer):
            found = next((name for name in told if pattern_covers(peer.pattern, name)), "")
            if found:
                return found
    return ""


def _is_implied_dns(rows: Rows, ruleset: Ruleset, packet: Packet) -> bool:
    if ruleset.direction is not Direction.EGRESS or not ruleset.dns_implicit:
        return False
    if packet.protocol not in (Protocol.TCP, Protocol.UDP):
        return False
    wanted = (packet.destination, packet.port)
    claims = (rows.frontends.get((packet.destination, number, packet.port)) for number in (Protocol.TCP, Protocol.UDP))
    if any(claim is not None and claim.kind.is_claim for claim in claims):
        return False  # a Service shows it to the outside: not trusted, as on the node
    return any((each.address, each.port) == wanted for each in rows.config.resolvers)
