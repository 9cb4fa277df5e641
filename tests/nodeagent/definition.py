"""The verdict of one ruleset by definition: rule by rule, from the rows alone. Slow and obvious; shares no table."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.policy import AnyPeer, Backend, CidrPeer, DomainPeer, NodePeer, Peer, PodPeer, Ruleset, RulesetRule
from schemas.selectors import pattern_covers, peer_covers_address, peer_selects_identity
from schemas.terms import ANY_PROTOCOL, FIRST_BIT, Action, Default, Direction, Reason, Tier, Verdict
from services.nodeagent.judge import NO_BIT, Conclusion
from services.nodeagent.policystate import PolicyState
from tests.nodeagent.worlds import EXTRA_ADDRESSES, NODE_ADDRESS

Target = tuple[str, int | None, int, frozenset[str], bool]
"""(address, identity, port, names, whether pods (not prefixes) are to be matched)"""


def evaluate(
    state: PolicyState,
    ruleset: Ruleset,
    remote: str,
    protocol: int,
    port: int,
    names: frozenset[str] = frozenset(),
    own_node: bool = False,
) -> Conclusion:
    """What this ruleset says of a new flow."""
    front = state.frontends.get((remote, protocol, port))
    if ruleset.direction is Direction.EGRESS and front is not None:
        found = [_behind(state, ruleset, remote, protocol, port, backend) for backend in front.backends]
        return _all_of(found) if found else _no_backend(_behind(state, ruleset, remote, protocol, port, None))
    row = state.addresses.get(remote)
    is_own = own_node
    if ruleset.direction is Direction.EGRESS:
        is_own = remote == NODE_ADDRESS or remote in EXTRA_ADDRESSES
    in_pod_range = any(peer_covers_address(CidrPeer(cidr=one), remote) for one in state.config.pod_cidrs)
    if row is None and in_pod_range and not is_own:
        return Conclusion(Verdict.DENY, Reason.UNKNOWN_POD, Tier.NONE)

    held = names if row is None else frozenset()  # the address of a pod or a node is no name's

    def matches(peer: Peer) -> bool:
        return _names_pod(state, peer, row.identity if row else None) or _names_address(peer, remote, held)

    def is_match(rule: RulesetRule) -> bool:
        return _has_port(rule, protocol, port) and any(matches(peer) for peer in rule.peers)

    return _walk(ruleset, is_match, is_dns=_is_dns(state, ruleset, remote, protocol, port), is_own=is_own)


def _behind(
    state: PolicyState, ruleset: Ruleset, remote: str, protocol: int, port: int, backend: Backend | None
) -> Conclusion:
    def is_match(rule: RulesetRule) -> bool:
        front = _has_port(rule, protocol, port) and any(_names_address(one, remote, frozenset()) for one in rule.peers)
        if front or backend is None:
            return front
        return _has_port(rule, protocol, backend.port) and any(
            _names_pod(state, one, backend.identity)
            or isinstance(one, AnyPeer)
            or bool(backend.address and _names_address(one, backend.address, frozenset()))
            for one in rule.peers
        )

    return _walk(ruleset, is_match, is_dns=_is_dns(state, ruleset, remote, protocol, port), is_own=False)


def _all_of(found: list[Conclusion]) -> Conclusion:
    """Decision D16: a denial by one denies; of those that say the same, the one that is judged first tells why."""
    for verdict in (Verdict.DENY, Verdict.AUDIT, Verdict.ALLOW):
        said = sorted((one for one in found if one.verdict is verdict), key=lambda one: (one.tier, one.bit))
        if said and verdict is Verdict.DENY and len(said) < len(found):
            return Conclusion(Verdict.DENY, Reason.MIXED_BACKENDS, said[0].tier, said[0].bit)
        if said:
            return said[0]
    raise ValueError("no backend says allow, audit or deny")


def _no_backend(found: Conclusion) -> Conclusion:
    if found.verdict is Verdict.DENY and found.reason is not Reason.RULE:
        return Conclusion(found.verdict, Reason.NO_BACKEND, found.tier)
    return found


def _walk(ruleset, is_match, *, is_dns: bool, is_own: bool) -> Conclusion:  # type: ignore[no-untyped-def]  # a predicate
    def first(tier: Tier) -> Iterator[tuple[int, RulesetRule]]:
        return ((FIRST_BIT[tier] + n, rule) for n, rule in enumerate(ruleset.tier(tier)) if is_match(rule))

    for bit, rule in first(Tier.ADMIN):
        if rule.action is Action.PASS:
            break
        return Conclusion(_said(rule), Reason.RULE, Tier.ADMIN, bit)
    if is_dns:
        return Conclusion(Verdict.ALLOW, Reason.DNS_IMPLICIT, Tier.NETWORK_POLICY)
    for bit, _ in first(Tier.NETWORK_POLICY):
        return Conclusion(Verdict.ALLOW, Reason.RULE, Tier.NETWORK_POLICY, bit)
    if ruleset.isolated:
        if is_own:
            return Conclusion(Verdict.ALLOW, Reason.OWN_NODE, Tier.NONE)
        return Conclusion(Verdict.DENY, Reason.ISOLATED, Tier.NETWORK_POLICY)
    for bit, rule in first(Tier.BASELINE):
        if rule.action is Action.PASS:
            break
        return Conclusion(_said(rule), Reason.RULE, Tier.BASELINE, bit)
    if is_own:
        return Conclusion(Verdict.ALLOW, Reason.OWN_NODE, Tier.NONE)
    verdict = {Default.DENY: Verdict.DENY, Default.ALLOW: Verdict.ALLOW, Default.AUDIT: Verdict.AUDIT}[ruleset.default]
    return Conclusion(verdict, Reason.DEFAULT, Tier.DEFAULT, NO_BIT)


def _said(rule: RulesetRule) -> Verdict:
    return Verdict.DENY if rule.action is Action.DENY else Verdict.ALLOW


def _has_port(rule: RulesetRule, protocol: int, port: int) -> bool:
    return any(
        one.protocol == ANY_PROTOCOL
        or (one.protocol == protocol and (protocol not in (6, 17, 132) or one.first <= port <= one.last))
        for one in rule.ports
    )


def _names_pod(state: PolicyState, peer: Peer, identity: int | None) -> bool:
    row = state.identities.get(identity) if identity is not None else None
    labels = {name: one.labels for name, one in state.namespaces.items()}
    return isinstance(peer, PodPeer | NodePeer) and row is not None and peer_selects_identity(peer, row, labels)


def _names_address(peer: Peer, address: str, names: frozenset[str]) -> bool:
    if isinstance(peer, DomainPeer):
        return any(pattern_covers(peer.pattern, name) for name in names)
    return peer_covers_address(peer, address)


def _is_dns(state: PolicyState, ruleset: Ruleset, remote: str, protocol: int, port: int) -> bool:
    resolvers = {(one.address, one.port) for one in state.config.resolvers}
    return (
        ruleset.dns_implicit
        and ruleset.direction is Direction.EGRESS
        and protocol in (6, 17)
        and (remote, port) in resolvers
    )
