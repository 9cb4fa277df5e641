"""The verdict that the tables mean, worked out as the programs do it: for sets of mixed backends, and for tests.

Rules of this module:

* It reads ``Tables`` and nothing else, so it says what the maps say and not what the policy meant.
* Zero denies: a missing ruleset, set or row shuts.
* One call is one new flow. Live flows, parsing and learned expiry are the programs' own affair.

Deliberately absent: policies, selectors, bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

from schemas.policy import Backend
from schemas.selectors import parse_address
from schemas.terms import (
    RULES_ADMIN,
    RULES_BASELINE,
    RULES_NETWORK_POLICY,
    Default,
    Direction,
    Reason,
    Tier,
    Verdict,
)
from services.nodeagent.portranges import index_of
from services.nodeagent.tables import (
    CLASS_DOMAIN,
    CidrEntry,
    FrontendEntry,
    MixedEntry,
    RulesetEntry,
    Tables,
)

NO_BIT = 0xFFFF


class FrontendShape(IntEnum):
    """``FrontendEntry.kind``: enum frontend_kind of ``bpf/types.h``."""

    EMPTY = 0
    UNIFORM = 1
    MIXED = 2
    TOO_MANY = 3


_ADMIN = (1 << RULES_ADMIN) - 1
_NETWORK_POLICY = ((1 << RULES_NETWORK_POLICY) - 1) << RULES_ADMIN
_BASELINE = ((1 << RULES_BASELINE) - 1) << (RULES_ADMIN + RULES_NETWORK_POLICY)
_DNS_PROTOCOLS = frozenset({6, 17})
_NO_CIDR = CidrEntry(0)


@dataclass(frozen=True, slots=True)
class Packet:
    """A new flow as one side sees it. ``port``: destination port, host order, 0 where the protocol has none.

    ``rows``: domain rows that are live on ``remote``. ``own_node``: ingress, generated on this node.
    """

    direction: Direction
    remote: str
    protocol: int
    port: int = 0
    rows: frozenset[int] = frozenset()
    own_node: bool = False


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What was concluded, why, where. ``bit``: the rule that decided, or ``NO_BIT``."""

    verdict: Verdict
    reason: Reason
    tier: Tier
    bit: int = NO_BIT


def judge(tables: Tables, handle: int, packet: Packet) -> Conclusion:
    """The verdict of one ruleset on one new flow."""
    ruleset = tables.rulesets.get(handle)
    if ruleset is None:
        return Conclusion(Verdict.DENY, Reason.NO_RULESET, Tier.NONE)
    if packet.direction is Direction.EGRESS:
        frontend = tables.frontends.get((packet.remote, packet.protocol, packet.port))
        if frontend is not None:
            return _judge_frontend(tables, handle, packet, frontend)
    identity = tables.ipcache.get(packet.remote, 0)
    cidr = find_cidr(tables, packet.remote)
    is_own = _is_own_node(tables, packet)
    if cidr.unknown_pod and not identity and not is_own:
        return Conclusion(Verdict.DENY, Reason.UNKNOWN_POD, Tier.NONE)
    peers = ruleset.any | _peers(tables, handle, tables.classes.get(identity, 0)) | _peers(tables, handle, cidr.klass)
    for row in packet.rows if not identity else ():  # no name counts that was taught before a pod had the address
        peers |= _peers(tables, handle, CLASS_DOMAIN | row)
    mask = peers & _ports(tables, handle, packet.protocol, packet.port)
    return conclude(ruleset, mask, is_dns=_is_dns(tables, ruleset, packet), is_own_node=is_own)


def _judge_frontend(tables: Tables, handle: int, packet: Packet, frontend: FrontendEntry) -> Conclusion:
    if frontend.kind == FrontendShape.TOO_MANY:
        return Conclusion(Verdict.DENY, Reason.TOO_MANY_BACKENDS, Tier.NONE)
    if frontend.kind == FrontendShape.MIXED:
        entry = tables.mixed.get((handle, frontend.target))
        if entry is None:
            return Conclusion(Verdict.DENY, Reason.MIXED_BACKENDS, Tier.NONE)
        return Conclusion(entry.verdict, entry.reason, entry.tier, entry.bit)
    backend = None
    if frontend.kind == FrontendShape.UNIFORM:
        backend = (frontend.target, frontend.backend, frontend.port)
    return judge_backend(tables, handle, packet, find_cidr(tables, packet.remote), backend)


def judge_backend(
    tables: Tables, handle: int, packet: Packet, front: CidrEntry, backend: tuple[int, str, int] | None
) -> Conclusion:
    """One backend (identity, address if it has no identity, port) of the frontend that ``packet`` goes to, or none.

    Pod peers are matched with the backend and its port, CIDR peers with the packet's address and port (``front``).
    """
    ruleset = tables.rulesets[handle]
    mask = (ruleset.any | _peers(tables, handle, front.klass)) & _ports(tables, handle, packet.protocol, packet.port)
    if backend is not None:
        identity, address, port = backend
        behind = ruleset.any | _peers(tables, handle, tables.classes.get(identity, 0))
        if address:
            behind |= _peers(tables, handle, find_cidr(tables, address).klass)
        mask |= behind & _ports(tables, handle, packet.protocol, port)
    concluded = conclude(ruleset, mask, is_dns=_is_dns(tables, ruleset, packet), is_own_node=False)
    if backend is None and concluded.verdict is Verdict.DENY and concluded.reason is not Reason.RULE:
        return Conclusion(concluded.verdict, Reason.NO_BACKEND, concluded.tier)
    return concluded


def judge_mixed(
    tables: Tables, handle: int, front: tuple[str, int, int], front_cidr: CidrEntry, backends: Iterable[Backend]
) -> MixedEntry:
    """The AND over all backends of (address, protocol, port): a denial by one denies all.

    Whichever backend is asked first must not matter: the story is told by the rule that is judged first.
    """
    address, protocol, port = front
    packet = Packet(Direction.EGRESS, address, protocol, port)
    found = [
        judge_backend(tables, handle, packet, front_cidr, (backend.identity, backend.address, backend.port))
        for backend in backends
    ]
    denied = [one for one in found if one.verdict is Verdict.DENY]
    audited = [one for one in found if one.verdict is Verdict.AUDIT]
    told = min(denied or audited or found, key=lambda one: (one.tier, one.bit))
    reason = Reason.MIXED_BACKENDS if 0 < len(denied) < len(found) else told.reason
    return MixedEntry(told.verdict, reason, told.tier, told.bit)


def conclude(ruleset: RulesetEntry, mask: int, *, is_dns: bool, is_own_node: bool) -> Conclusion:
    """From the matching rules to the verdict: the tiers in order, then isolation, Baseline, the default."""
    bit = _first_bit(mask & _ADMIN)
    if bit != NO_BIT and not ruleset.passes >> bit & 1:
        return _by_rule(ruleset, Tier.ADMIN, bit)
    if is_dns:
        return Conclusion(Verdict.ALLOW, Reason.DNS_IMPLICIT, Tier.NETWORK_POLICY)
    bit = _first_bit(mask & _NETWORK_POLICY)
    if bit != NO_BIT:
        return _by_rule(ruleset, Tier.NETWORK_POLICY, bit)
    if ruleset.isolated and not is_own_node:
        return Conclusion(Verdict.DENY, Reason.ISOLATED, Tier.NETWORK_POLICY)
    bit = NO_BIT if ruleset.isolated else _first_bit(mask & _BASELINE)
    if bit != NO_BIT and not ruleset.passes >> bit & 1:
        return _by_rule(ruleset, Tier.BASELINE, bit)
    if is_own_node:
        return Conclusion(Verdict.ALLOW, Reason.OWN_NODE, Tier.NONE)
    return Conclusion(_DEFAULTS[ruleset.default], Reason.DEFAULT, Tier.DEFAULT)


_DEFAULTS = {Default.DENY: Verdict.DENY, Default.ALLOW: Verdict.ALLOW, Default.AUDIT: Verdict.AUDIT}


def _by_rule(ruleset: RulesetEntry, tier: Tier, bit: int) -> Conclusion:
    verdict = Verdict.DENY if ruleset.deny >> bit & 1 else Verdict.ALLOW
    return Conclusion(verdict, Reason.RULE, tier, bit)


def _first_bit(mask: int) -> int:
    return (mask & -mask).bit_length() - 1 if mask else NO_BIT


def _peers(tables: Tables, handle: int, klass: int) -> int:
    return tables.peers.get((handle, klass), 0) if klass else 0


def _ports(tables: Tables, handle: int, protocol: int, port: int) -> int:
    klass = tables.port_classes.get(index_of(protocol, port), 0)
    return tables.ports.get((handle, klass), 0)


def find_cidr(tables: Tables, address: str) -> CidrEntry:
    """The longest prefix of ``cidrs`` that has this address."""
    found = (tables.cidrs.get(prefix) for prefix in _list_prefixes(address))
    return next((entry for entry in found if entry is not None), _NO_CIDR)


@lru_cache(maxsize=1024)
def _list_prefixes(address: str) -> tuple[str, ...]:
    """Every prefix that has this address, the longest first."""
    parsed = parse_address(address)
    network_type = IPv4Network if parsed.version == 4 else IPv6Network
    bits, number = parsed.max_prefixlen, int(parsed)
    starts = ((number >> (bits - length) << (bits - length), length) for length in range(bits, -1, -1))
    return tuple(str(network_type(start)) for start in starts)


def _is_own_node(tables: Tables, packet: Packet) -> bool:
    if packet.direction is Direction.INGRESS:
        return packet.own_node
    return packet.remote in tables.own_addresses


def _is_dns(tables: Tables, ruleset: RulesetEntry, packet: Packet) -> bool:
    return (
        ruleset.dns_implicit
        and packet.direction is Direction.EGRESS
        and packet.protocol in _DNS_PROTOCOLS
        and bool(tables.resolvers.get((packet.remote, packet.port), 0) & 1)
    )
