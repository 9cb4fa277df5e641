"""Policies -> rulesets: the order of evaluation made into lists, with nothing left to decide at the node.

* Admin and Baseline: by priority. At one priority AWS-group Denies come first, then upstream policies by name with
  their rules in order, then AWS-group Accepts, then AWS-group Passes.
* NetworkPolicy tier: a union, so order has no meaning; it is by (kind, namespace, name, rule), and the first that
  matches is the one a verdict names.
* Identical rules share a bit. In an ordered tier the first one stands: what it matches never reaches the second.
* Named ports: on a peer they are a label of its identity, one rule for each number; on the subject they are numbers.

``evaluate`` says the same from the policies themselves; a property test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from schemas import wire
from schemas.policy import (
    AnyPeer,
    DomainPeer,
    Peer,
    PeersetPeer,
    PeersetRow,
    PodPeer,
    PortRange,
    Requirement,
    Row,
    Ruleset,
    RulesetRule,
    RuleSource,
    Selector,
)
from schemas.selectors import IN
from schemas.terms import (
    RULES_ADMIN,
    RULES_BASELINE,
    RULES_NETWORK_POLICY,
    Action,
    Default,
    Direction,
    RulesetHash,
    Tier,
)
from services.controller.policy.model import ANY_PORT, AWS_KINDS, NamedPort, Policy, PolicyKey, Rule, hash_rule

BUDGETS = {Tier.ADMIN: RULES_ADMIN, Tier.NETWORK_POLICY: RULES_NETWORK_POLICY, Tier.BASELINE: RULES_BASELINE}

PEERS_INLINE_MAX = 1000
"""More peers than this in one rule go to peersets, so that editing another rule of the ruleset does not move them."""
PEERSET_BYTES_MAX = wire.MAX_ROW_BYTES // 2
"""Of one peerset chunk and of a ruleset's inline content: half of what a row may be, the rest is sources and names."""
SOURCES_MAX = 100
"""Sources kept of one shared bit, in order; a verdict reports the first."""

_ENCODER = msgspec.json.Encoder(order="deterministic")

OrderKey = tuple[int | str, ...]
Numbers = Callable[[NamedPort, Sequence[PodPeer]], Iterable[int]]
"""A named port (and, on egress, the peers to look at) -> the numbers it stands for."""


@dataclass(frozen=True, slots=True)
class Bit:
    """One rule as it will stand in a ruleset, with its place and where it comes from."""

    order: OrderKey
    action: Action
    peers: tuple[Peer, ...]
    ports: tuple[PortRange, ...]
    source: RuleSource
    hash: str

    @property
    def content(self) -> tuple[Action, tuple[Peer, ...], tuple[PortRange, ...]]:
        return self.action, self.peers, self.ports


@dataclass(frozen=True, slots=True)
class Fragment:
    """What one policy contributes to the rulesets of one direction."""

    policy: Policy
    bits: tuple[Bit, ...]
    patterns: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one tier contributes to the rulesets of one direction: its fragments merged, within its budget.

    Equal only to itself. Many rulesets share one. ``left_out``: policies that did not fit the NetworkPolicy tier; they
    isolate all the same.
    """

    rules: tuple[RulesetRule, ...]
    peersets: dict[str, bytes]
    patterns: frozenset[str]
    isolated_by: tuple[RuleSource, ...]
    left_out: tuple[PolicyKey, ...]
    encoded_rules: msgspec.Raw
    encoded_isolated_by: msgspec.Raw

    def is_like(self, other: Part) -> bool:
        """Whether another contributes the same; what was moved to peersets is named in the rules by its hash."""
        return (
            self.encoded_rules == other.encoded_rules
            and self.encoded_isolated_by == other.encoded_isolated_by
            and self.left_out == other.left_out
        )


class Compiled(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A ruleset ready to be published. ``left_out``: policies that did not fit the NetworkPolicy tier."""

    hash: RulesetHash
    body: bytes
    peersets: dict[str, bytes]
    patterns: frozenset[str]
    left_out: tuple[PolicyKey, ...]


# ---------------------------------------------------------------------------------------------------------------------
# One policy -> bits


def compile_policy(policy: Policy, direction: Direction, numbers: Numbers) -> Fragment:
    """The bits of one policy in one direction."""
    bits: list[Bit] = []
    for rule in policy.rules(direction):
        expand = _expand_egress if direction is Direction.EGRESS else _expand_ingress
        order, source, digest = _order(policy, rule), policy.source(rule.name), hash_rule(direction, rule)
        for peers, ports in expand(rule, numbers):
            bits.append(Bit(order=order, action=rule.action, peers=peers, ports=ports, source=source, hash=digest))
    patterns = {peer.pattern for bit in bits for peer in bit.peers if isinstance(peer, DomainPeer)}
    return Fragment(policy=policy, bits=tuple(bits), patterns=frozenset(patterns))


Expanded = list[tuple[tuple[Peer, ...], tuple[PortRange, ...]]]


def _expand_ingress(rule: Rule, numbers: Numbers) -> Expanded:
    """Named ports are the subject's own: numbers in the ruleset's content."""
    ports = [port for port in rule.ports if isinstance(port, PortRange)]
    for port in rule.ports:
        if isinstance(port, NamedPort):
            ports += [_single(port.protocol, number) for number in numbers(port, ())]
    return [(canonical_peers(rule.peers), canonical_ports(ports))] if ports else []


def _expand_egress(rule: Rule, numbers: Numbers) -> Expanded:
    """Named ports are the peers': one rule for each number, whose peers bear it as a derived label.

    Prefixes and names have no named ports: such peers match nothing there.
    """
    expanded: Expanded = []
    plain = [port for port in rule.ports if isinstance(port, PortRange)]
    if plain:
        expanded.append((canonical_peers(rule.peers), canonical_ports(plain)))
    pods = [PodPeer() if isinstance(peer, AnyPeer) else peer for peer in rule.peers]
    selected = [peer for peer in pods if isinstance(peer, PodPeer)]
    for port in sorted(port for port in rule.ports if isinstance(port, NamedPort)):
        for number in sorted(set(numbers(port, selected))):
            labelled = canonical_peers(_with_port(peer, port, number) for peer in selected)
            expanded.append((labelled, (_single(port.protocol, number),)))
    return expanded


def _with_port(peer: PodPeer, port: NamedPort, number: int) -> PodPeer:
    labelled = Requirement(key=port.label, operator=IN, values=(str(number),))
    requirements = sorted({*peer.pods.requirements, labelled}, key=lambda each: (each.key, each.operator, each.values))
    return PodPeer(namespaces=peer.namespaces, pods=Selector(requirements=tuple(requirements)))


def _single(protocol: int, number: int) -> PortRange:
    return PortRange(protocol=protocol, first=number, last=number)


def canonical_peers(peers: Iterable[Peer]) -> tuple[Peer, ...]:
    """Without repetition, in the order of their encoding."""
    unique = set(peers)
    return tuple(unique) if len(unique) == 1 else tuple(sorted(unique, key=_ENCODER.encode))


def canonical_ports(ports: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Without repetition, sorted; "every protocol" swallows the rest."""
    unique = set(ports)
    if ANY_PORT in unique:
        return (ANY_PORT,)
    return tuple(sorted(unique, key=lambda port: (port.protocol, port.first, port.last)))


def _order(policy: Policy, rule: Rule) -> OrderKey:
    if policy.tier is Tier.NETWORK_POLICY:
        return policy.kind.value, policy.namespace, policy.name, rule.index
    if policy.kind not in AWS_KINDS:
        return policy.priority, _UPSTREAM_PLACE, policy.name, policy.kind.value, rule.index
    return policy.priority, _AWS_PLACE[rule.action], policy.name, policy.kind.value, rule.index


_UPSTREAM_PLACE = 1
_AWS_PLACE = {Action.DENY: 0, Action.ACCEPT: 2, Action.PASS: 3}


# ---------------------------------------------------------------------------------------------------------------------
# Budgets


def fit(fragments: Iterable[Fragment], tier: Tier) -> tuple[list[Fragment], list[Fragment]]:
    """(those that fit a tier's budget, those left out): the longest beginning in order of age whose bits fit."""
    by_age = sorted((each for each in fragments if each.policy.tier is tier), key=lambda each: each.policy.age_key)
    contents: set[object] = set()
    for place, fragment in enumerate(by_age):
        contents.update(bit.content for bit in fragment.bits)
        if len(contents) > BUDGETS[tier]:
            return by_age[:place], by_age[place:]
    return by_age, []


# ---------------------------------------------------------------------------------------------------------------------
# Fragments -> parts -> ruleset


def compile_part(direction: Direction, tier: Tier, fragments: Sequence[Fragment]) -> Part:
    """One tier of the rulesets of all pods that these policies govern; the fragments are that tier's.

    Those of Admin and Baseline fit (see ``fit``).
    """
    kept, left_out = fit(fragments, tier) if tier is Tier.NETWORK_POLICY else (fragments, [])
    peersets: dict[str, bytes] = {}
    isolated_by = sorted(
        (each.policy.source("") for each in fragments if direction in each.policy.isolates),
        key=lambda source: (source.kind, source.namespace, source.name),
    )
    rules = _move_large(_merge(kept), PEERS_INLINE_MAX, peersets)
    return Part(
        rules=rules,
        peersets=peersets,
        patterns=frozenset(pattern for each in kept for pattern in each.patterns),
        isolated_by=tuple(isolated_by[:SOURCES_MAX]),
        left_out=tuple(each.policy.key for each in left_out),
        encoded_rules=_encode_list(rules),
        encoded_isolated_by=_encode_list(isolated_by[:SOURCES_MAX]),
    )


def compile_ruleset(
    direction: Direction, default: Default, admin: Part, network_policy: Part, baseline: Part, *, dns_implicit: bool
) -> Compiled:
    """The ruleset of pods that the policies behind these parts govern."""
    patterns, peersets = _NO_PATTERNS, _NO_PEERSETS
    for part in (admin, network_policy, baseline):
        patterns = patterns | part.patterns if part.patterns else patterns
        peersets = peersets | part.peersets if part.peersets else peersets
    spliced = _Spliced(
        direction=direction,
        default=default,
        admin=admin.encoded_rules,
        network_policy=network_policy.encoded_rules,
        baseline=baseline.encoded_rules,
        isolated=bool(network_policy.isolated_by),
        isolated_by=network_policy.encoded_isolated_by,
        dns_implicit=dns_implicit and bool(patterns),
    )
    body = _ENCODER.encode(spliced)
    if len(body) > PEERSET_BYTES_MAX:
        ruleset = Ruleset(
            direction=direction,
            default=default,
            admin=admin.rules,
            network_policy=network_policy.rules,
            baseline=baseline.rules,
            isolated=spliced.isolated,
            isolated_by=network_policy.isolated_by,
            dns_implicit=spliced.dns_implicit,
        )
        peersets = dict(peersets)
        body = wire.encode(_shrink(ruleset, peersets))
    return Compiled(
        hash=RulesetHash(wire.hash_body(body)),
        body=body,
        peersets=peersets,
        patterns=patterns,
        left_out=network_policy.left_out,
    )


_NO_PATTERNS: frozenset[str] = frozenset()
_NO_PEERSETS: dict[str, bytes] = {}
"""Shared by all rulesets without any, which are most: nobody changes it."""
_NO_LIST = msgspec.Raw(b"[]")


class _Spliced(Row, frozen=True, kw_only=True):
    """A ``Ruleset`` whose lists are encoded already, field by field: the two have the same bytes."""

    direction: Direction
    default: Default
    admin: msgspec.Raw = _NO_LIST
    network_policy: msgspec.Raw = _NO_LIST
    baseline: msgspec.Raw = _NO_LIST
    isolated: bool = False
    isolated_by: msgspec.Raw = _NO_LIST
    dns_implicit: bool = False


def _encode_list(rows: Sequence[msgspec.Struct]) -> msgspec.Raw:
    """An empty one is the default, and so left out like any default."""
    return msgspec.Raw(_ENCODER.encode(rows)) if rows else _NO_LIST


def _merge(fragments: Iterable[Fragment]) -> tuple[RulesetRule, ...]:
    """Bits of one tier in order; identical ones share the first one's place."""
    bits = [bit for each in fragments for bit in each.bits]
    sources: dict[tuple[Action, tuple[Peer, ...], tuple[PortRange, ...]], dict[RuleSource, str]] = {}
    for bit in sorted(bits, key=lambda each: each.order):
        sources.setdefault(bit.content, {})[bit.source] = bit.hash
    return tuple(
        RulesetRule(
            action=action,
            peers=peers,
            ports=ports,
            sources=tuple(given)[:SOURCES_MAX],
            hashes=tuple(given.values())[:SOURCES_MAX],
        )
        for (action, peers, ports), given in sources.items()
    )


def _shrink(ruleset: Ruleset, peersets: dict[str, bytes]) -> Ruleset:
    """A ruleset that is too large for a row sheds its peers, larger rules first, until it fits."""
    limit = PEERS_INLINE_MAX
    while limit > 1 and len(_ENCODER.encode(ruleset)) > PEERSET_BYTES_MAX:
        limit //= 4
        ruleset = msgspec.structs.replace(
            ruleset,
            admin=_move_large(ruleset.admin, limit, peersets),
            network_policy=_move_large(ruleset.network_policy, limit, peersets),
            baseline=_move_large(ruleset.baseline, limit, peersets),
        )
    return ruleset


def _move_large(rules: tuple[RulesetRule, ...], peers_max: int, peersets: dict[str, bytes]) -> tuple[RulesetRule, ...]:
    moved = []
    for rule in rules:
        if len(rule.peers) > peers_max and not any(isinstance(peer, PeersetPeer) for peer in rule.peers):
            rule = msgspec.structs.replace(rule, peers=_as_peersets(rule.peers, peersets))
        moved.append(rule)
    return tuple(moved)


def _as_peersets(peers: tuple[Peer, ...], peersets: dict[str, bytes]) -> tuple[Peer, ...]:
    """Chunks in the peers' canonical order, each under ``PEERSET_BYTES_MAX``."""
    found: list[Peer] = []
    for chunk in _chunks(peers):
        row = PeersetRow(peers=chunk)
        digest = wire.hash_content(row)
        peersets[digest] = wire.encode(row)
        found.append(PeersetPeer(hash=digest))
    return canonical_peers(found)


def _chunks(peers: tuple[Peer, ...]) -> Iterable[tuple[Peer, ...]]:
    chunk: list[Peer] = []
    size = 0
    for peer in peers:
        length = len(_ENCODER.encode(peer)) + 1
        if chunk and (size + length > PEERSET_BYTES_MAX or len(chunk) >= PEERS_INLINE_MAX):
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(peer)
        size += length
    if chunk:
        yield tuple(chunk)
