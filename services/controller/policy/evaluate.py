"""The oracle: what policies say about a packet, straight from the policies. Slow, obvious, and alone.

It never sees a ruleset, a bit or an identity number; with ``compile`` it shares the model, the terms and the selector
predicate, and nothing else. A packet is judged for one pod in one direction:

1. Traffic of a pod with itself passes; an address in a pod range that belongs to nobody is denied.
2. Admin rules in order: Accept and Deny are final, Pass ends the tier.
3. NetworkPolicy tier: DNS that a domain rule implies, then the union of allows; where the pod is isolated, else deny.
4. Baseline rules in order, if nothing isolates the pod in this direction; then the default.
5. Neither isolation nor the default stops traffic with the pod's own node.

A packet to a Service is seen twice: by pod peers as its backend with the backend's port, by prefixes as it is.

Where policies are under audit, that is asked twice: *enforced* is the answer without them and with a default of
``audit`` read as allow, *full* the answer with all of them. What enforced denies is denied; what it accepts and full
does not is ``audit``, told by what full was decided by. So a policy under audit opens nothing and shuts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from schemas.policy import AnyPeer, CidrPeer, DomainPeer, FrontendRow, NodePeer, Peer, PodPeer, PortRange
from schemas.selectors import NAMESPACE_NAME_LABEL, matches, peer_covers_address, peer_selects
from schemas.terms import (
    ANY_PROTOCOL,
    RULES_ADMIN,
    RULES_BASELINE,
    RULES_NETWORK_POLICY,
    Action,
    AddressKind,
    Default,
    Direction,
    Protocol,
    Reason,
    Tier,
    Verdict,
)
from services.controller.policy import names
from services.controller.policy.defaults import node_default, pod_default
from services.controller.policy.ground import Ground, all_rules, read_ground
from services.controller.policy.model import (
    ANY_PORT,
    AWS_KINDS,
    NAMESPACED_KINDS,
    Answer,
    Finding,
    Labels,
    NamedPort,
    Node,
    ObjectKey,
    Packet,
    Pod,
    Policy,
    PolicyKey,
    Rule,
    Settings,
    World,
)

BACKENDS_MAX = 64
"""Distinct backends of a Service that are judged together; beyond it the packet is denied with a reason."""

Place = tuple[int, int]
"""(tier, rule) in the order of evaluation."""
AFTER_ALL_RULES = 1 << 30

BUDGETS = {Tier.ADMIN: RULES_ADMIN, Tier.NETWORK_POLICY: RULES_NETWORK_POLICY, Tier.BASELINE: RULES_BASELINE}


@dataclass(frozen=True, slots=True)
class View:
    """One way to see the other side of a packet. ``owner``: pod or node it is; ``address``: for prefixes, or None."""

    port: int
    owner: Pod | Node | None = None
    address: str | None = None
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Question:
    """A packet as one pod's rules in one direction see it. ``expired``: names whose time is over, by the same views."""

    pod: Pod
    direction: Direction
    packet: Packet
    views: tuple[View, ...]


def evaluate(
    policies: Iterable[Policy],
    world: World,
    packet: Packet,
    *,
    direction: Direction,
    pod: Pod,
    answers: Sequence[Answer] = (),
    at: float = 0.0,
) -> Finding:
    """What is concluded about a packet from or to ``pod`` at a moment (seconds, on the answers' clock)."""
    return Oracle(policies, world, answers).evaluate(packet, direction=direction, pod=pod, at=at)


class Oracle:
    """Policies, a world and answers, with the questions that many packets share asked once."""

    def __init__(self, policies: Iterable[Policy], world: World, answers: Sequence[Answer] = ()) -> None:
        every = _with_prefixes_that_fit(policies, world.settings)
        enforced = [policy for policy in every if not policy.is_audited]
        self._ground = read_ground(every, world, answers)
        self._full = _Reading(every, self._ground)
        self._enforced = _Reading(enforced, self._ground, is_lenient=True) if len(enforced) < len(every) else None

    def owner_of(self, address: str) -> Pod | Node | None:
        """Whose address it is: a node's, else the newest live pod's."""
        return self._ground.owners.get(address)

    def frontend_of(self, packet: Packet) -> FrontendRow | None:
        """The Service's face that a packet is sent to; its backends are told by address."""
        return self._ground.frontend_of(packet)

    def evaluate(self, packet: Packet, *, direction: Direction, pod: Pod, at: float = 0.0) -> Finding:
        """See ``evaluate``."""
        full = self._full.judge(packet, direction, pod, at)
        if self._enforced is None:
            return full
        enforced = self._enforced.judge(packet, direction, pod, at)
        if enforced.verdict is Verdict.DENY or full.verdict is Verdict.ALLOW:
            return enforced
        return replace(full, verdict=Verdict.AUDIT)


def _with_prefixes_that_fit(policies: Iterable[Policy], settings: Settings) -> list[Policy]:
    """In order of age, enforced ones first: from where a namespace's quota of prefixes ends, its blocks match nothing
    with all that stands beside them."""
    fitting: list[Policy] = []
    needed: dict[str, set[str]] = {}
    full: set[str] = set()
    for policy in sorted(policies, key=lambda each: (each.is_audited, *each.age_key)):
        blocks = [peer for rule in all_rules(policy) for peer in rule.peers if isinstance(peer, CidrPeer)]
        if policy.kind not in NAMESPACED_KINDS or not blocks:
            fitting.append(policy)
            continue
        before = needed.get(policy.namespace, set())
        needed[policy.namespace] = before | {prefix for block in blocks for prefix in (block.cidr, *block.excepts)}
        is_over = len(needed[policy.namespace]) > settings.prefixes_per_namespace
        if is_over or sum(map(len, needed.values())) > settings.prefixes_of_namespaces:
            full.add(policy.namespace)
        if policy.namespace in full:
            needed[policy.namespace] = before
            policy = replace(policy, egress=(), ingress=())
        fitting.append(policy)
    return fitting


class _Reading:
    """What one set of policies says. ``is_lenient``: a default of audit is read as allow."""

    def __init__(self, policies: Sequence[Policy], ground: Ground, *, is_lenient: bool = False) -> None:
        self._is_lenient = is_lenient
        self._ground = ground
        self._world = ground.world
        self._config = ground.world.settings.config
        self._owners = ground.owners
        self._applied: dict[ObjectKey, list[Policy]] = {}
        self._policies = policies
        refused = self._refused()
        self._policies = [policy for policy in policies if policy.key not in refused]
        self._applied.clear()
        self._rules: dict[tuple[ObjectKey, Direction, Tier], list[tuple[Policy, Rule]]] = {}

    def judge(self, packet: Packet, direction: Direction, pod: Pod, at: float) -> Finding:
        """What these policies say about a packet."""
        other = packet.destination if direction is Direction.EGRESS else packet.source
        if other in pod.addresses:
            return Finding(Verdict.ALLOW, Tier.NONE, Reason.HAIRPIN)
        face = self._ground.frontend_of(packet) if direction is Direction.EGRESS else None
        if face is None:
            return self._judge_plain(packet, direction, pod, other, at)
        return self._judge_service(packet, pod, face)

    # -- a packet to an address ---------------------------------------------------------------------------------------

    def _judge_plain(self, packet: Packet, direction: Direction, pod: Pod, other: str, at: float) -> Finding:
        owner = self._owners.get(other)
        is_own_node = self._is_own_node(packet, direction, pod, owner)
        if owner is None and not is_own_node and _covers(self._config.pod_cidrs, other):
            return Finding(Verdict.DENY, Tier.NONE, Reason.UNKNOWN_POD)
        live, expired = self._names_of(other, at) if direction is Direction.EGRESS else (frozenset(), frozenset())
        view = View(port=packet.port, owner=owner, address=other, names=live)
        finding = self._walk(Question(pod, direction, packet, (view,)))
        if finding.reason not in (Reason.ISOLATED, Reason.DEFAULT):
            return finding
        if is_own_node:
            return Finding(Verdict.ALLOW, Tier.NONE, Reason.OWN_NODE)
        if expired and finding.verdict is Verdict.DENY:
            before = self._walk(Question(pod, direction, packet, (replace(view, names=live | expired),)))
            if before.verdict is Verdict.ALLOW:
                return replace(finding, reason=Reason.NAME_EXPIRED, name=before.name)
        return finding

    def _is_own_node(self, packet: Packet, direction: Direction, pod: Pod, owner: Pod | Node | None) -> bool:
        if direction is Direction.INGRESS:
            return packet.from_own_node
        return isinstance(owner, Node) and owner.name == pod.node

    def _names_of(self, address: str, at: float) -> tuple[frozenset[str], frozenset[str]]:
        """(names that may be used for it now, names whose time is over)."""
        is_taken = any(form in self._owners or self._is_service(form) for form in names.forms_of(address))
        if is_taken or not names.is_learnable(address, self._config):
            return frozenset(), frozenset()
        told = [
            each
            for each in self._ground.answers
            if each.at <= at and address in each.addresses[: self._config.addresses_per_name]
        ]
        live = frozenset(each.name for each in told if at < names.expiry_of(each, self._config))
        return live, frozenset(each.name for each in told) - live

    def _is_service(self, address: str) -> bool:
        return any(face[0] == address for face in self._ground.frontends)

    # -- a packet to a Service ----------------------------------------------------------------------------------------

    def _judge_service(self, packet: Packet, pod: Pod, face: FrontendRow) -> Finding:
        as_written = View(port=packet.port, address=packet.destination)
        backends = self._backends(face)
        if not backends:
            finding = self._walk(Question(pod, Direction.EGRESS, packet, (as_written,)))
            is_silent = finding.verdict is Verdict.DENY and finding.reason in (Reason.ISOLATED, Reason.DEFAULT)
            return replace(finding, reason=Reason.NO_BACKEND) if is_silent else finding
        if len(backends) > BACKENDS_MAX:
            return Finding(Verdict.DENY, Tier.NONE, Reason.TOO_MANY_BACKENDS)
        views = [(as_written, backend) for backend in backends]
        found = [self._place(Question(pod, Direction.EGRESS, packet, each)) for each in views]
        denied = [each for each in found if each[1].verdict is Verdict.DENY]
        audited = [each for each in found if each[1].verdict is Verdict.AUDIT]
        # Whichever backend is asked first must not matter: the story is told by the rule that is judged first.
        _, finding = min(denied or audited or found, key=lambda each: each[0])
        return replace(finding, reason=Reason.MIXED_BACKENDS) if 0 < len(denied) < len(found) else finding

    def _backends(self, face: FrontendRow) -> list[View]:
        """The distinct backends as an identity tells them apart: namespace, labels that policies name, and port."""
        distinct: dict[object, View] = {}
        for backend in face.backends:
            owner = self._owners.get(backend.address)
            view = View(port=backend.port, owner=owner, address=backend.address if owner is None else None)
            distinct.setdefault((self._kind_of(owner, backend.address), backend.port), view)
        return list(distinct.values())

    def _kind_of(self, owner: Pod | Node | None, address: str) -> object:
        if owner is None:
            return address
        pod_keys, node_keys, ports = self._ground.label_keys
        keys = pod_keys if isinstance(owner, Pod) else node_keys
        labels = frozenset((key, value) for key, value in owner.labels.items() if key in keys)
        if isinstance(owner, Node):
            return "node", labels
        return owner.namespace, labels, tuple(owner.number_of(port) for port in sorted(ports))

    # -- the walk -----------------------------------------------------------------------------------------------------

    def _walk(self, question: Question) -> Finding:
        return self._place(question)[1]

    def _place(self, question: Question) -> tuple[Place, Finding]:
        """What is concluded, and where in the order of evaluation."""
        for tier in (Tier.ADMIN, Tier.NETWORK_POLICY, Tier.BASELINE):
            if tier is Tier.NETWORK_POLICY and self._is_implied_dns(question):
                return (tier, -1), Finding(Verdict.ALLOW, tier, Reason.DNS_IMPLICIT)
            found = self._first_match(question, tier)
            if found is not None:
                return (tier, found[0]), found[1]
            isolating = self._isolating(question.pod, question.direction)
            if tier is Tier.NETWORK_POLICY and isolating is not None:
                finding = Finding(Verdict.DENY, tier, Reason.ISOLATED, isolating.source(""))
                return (tier, AFTER_ALL_RULES), finding
        verdict = {Default.ALLOW: Verdict.ALLOW, Default.DENY: Verdict.DENY, Default.AUDIT: Verdict.AUDIT}
        return (Tier.DEFAULT, 0), Finding(verdict[self._default(question.pod)], Tier.DEFAULT, Reason.DEFAULT)

    def _first_match(self, question: Question, tier: Tier) -> tuple[int, Finding] | None:
        """The first rule of a tier that matches, unless it passes the packet on."""
        for place, (policy, rule) in enumerate(self._ordered(question.pod, question.direction, tier)):
            if any(self._matches(question, rule, view) for view in question.views):
                if rule.action is Action.PASS:
                    return None
                verdict = Verdict.ALLOW if rule.action is Action.ACCEPT else Verdict.DENY
                name = self._deciding_name(question, rule)
                return place, Finding(verdict, tier, Reason.RULE, policy.source(rule.name), name)
        return None

    def _matches(self, question: Question, rule: Rule, view: View) -> bool:
        """Whether a rule matches one view: some port does, and some peer."""
        protocol = question.packet.protocol
        if any(isinstance(port, PortRange) and _port_matches(port, protocol, view.port) for port in rule.ports):
            return any(self._peer_matches(peer, view) for peer in rule.peers)
        named = [port for port in rule.ports if isinstance(port, NamedPort) and port.protocol == protocol]
        if question.direction is Direction.INGRESS:
            has_port = any(question.pod.number_of(port) == view.port for port in named)
            return has_port and any(self._peer_matches(peer, view) for peer in rule.peers)
        # On egress a name is a pod's: prefixes and domains have none.
        if not isinstance(view.owner, Pod) or all(view.owner.number_of(port) != view.port for port in named):
            return False
        return any(isinstance(peer, AnyPeer | PodPeer) and self._peer_matches(peer, view) for peer in rule.peers)

    def _peer_matches(self, peer: Peer, view: View) -> bool:
        if isinstance(peer, AnyPeer):
            return True
        if isinstance(peer, DomainPeer):
            return bool(names.covered(peer.pattern, view.names))
        if isinstance(peer, CidrPeer):
            return view.address is not None and peer_covers_address(peer, view.address)
        if view.owner is None or not isinstance(peer, PodPeer | NodePeer):
            return False
        kind = AddressKind.POD if isinstance(view.owner, Pod) else AddressKind.NODE
        namespace = self._namespace_labels(view.owner.namespace) if isinstance(view.owner, Pod) else {}
        return peer_selects(peer, kind=kind, namespace_labels=namespace, labels=view.owner.labels)

    def _deciding_name(self, question: Question, rule: Rule) -> str:
        """The name without which the rule would not have matched; empty if another peer matched as well.

        Of several the first by alphabet, in whatever order the rule lists its patterns.
        """
        for view in question.views:
            without = replace(view, names=frozenset())
            if self._matches(question, rule, without):
                return ""
        patterns = [peer.pattern for peer in rule.peers if isinstance(peer, DomainPeer)]
        found = [names.covered(pattern, view.names) for view in question.views for pattern in patterns]
        return min(filter(None, found), default="")

    def _is_implied_dns(self, question: Question) -> bool:
        packet = question.packet
        if question.direction is not Direction.EGRESS or not self._config.dns_implicit:
            return False
        if packet.protocol not in (Protocol.TCP, Protocol.UDP):
            return False
        if (packet.destination, packet.port) not in self._ground.resolvers:
            return False
        kept = [rule for tier in BUDGETS for _, rule in self._ordered(question.pod, Direction.EGRESS, tier)]
        return any(_has_domain(rule) for rule in kept)

    # -- which policies, in which order -------------------------------------------------------------------------------

    def _governing(self, pod: Pod) -> list[Policy]:
        known = self._applied.get(pod.key)
        if known is None:
            labels = self._namespace_labels(pod.namespace)
            known = [policy for policy in self._policies if _governs(policy, pod, labels)]
            self._applied[pod.key] = known
        return known

    def _ordered(self, pod: Pod, direction: Direction, tier: Tier) -> list[tuple[Policy, Rule]]:
        """A tier's rules for one pod, in the order in which they are judged."""
        place = (pod.key, direction, tier)
        known = self._rules.get(place)
        if known is None:
            policies = [policy for policy in self._governing(pod) if policy.tier is tier]
            if tier is Tier.NETWORK_POLICY:
                policies = self._fitting(policies, direction, tier, pod)
            pairs = [(policy, rule) for policy in policies for rule in policy.rules(direction)]
            known = sorted(pairs, key=lambda pair: _order(*pair))
            self._rules[place] = known
        return known

    def _isolating(self, pod: Pod, direction: Direction) -> Policy | None:
        isolating = [policy for policy in self._governing(pod) if direction in policy.isolates]
        return min(isolating, key=lambda policy: policy.key, default=None)

    def _fitting(
        self, policies: Sequence[Policy], direction: Direction, tier: Tier, subject: Pod | None
    ) -> list[Policy]:
        """The oldest policies whose distinct rules fit the tier's budget together; for any subject if it is None."""
        contents: set[object] = set()
        fitting = []
        for policy in sorted(policies, key=lambda each: each.age_key):
            contents.update(self._contents(policy, direction, subject))
            if len(contents) > BUDGETS[tier]:
                break
            fitting.append(policy)
        return fitting

    def _contents(self, policy: Policy, direction: Direction, subject: Pod | None) -> Iterator[object]:
        """What takes a place of its own: a rule's plain ports are one, each number of a named port on peers is one."""
        for rule in policy.rules(direction):
            ports: set[object] = {port for port in rule.ports if isinstance(port, PortRange)}
            named = sorted(port for port in rule.ports if isinstance(port, NamedPort))
            if direction is Direction.INGRESS:
                ports |= _own_ports(named, subject)
            if ports:
                yield rule.action, frozenset(rule.peers), frozenset({ANY_PORT} if ANY_PORT in ports else ports)
            pods = {PodPeer() if isinstance(peer, AnyPeer) else peer for peer in rule.peers}
            chosen = frozenset(peer for peer in pods if isinstance(peer, PodPeer))
            for port in named if direction is Direction.EGRESS else ():
                for number in self._numbers(port, chosen):
                    yield rule.action, chosen, port, number

    def _numbers(self, port: NamedPort, peers: Iterable[Peer]) -> set[int]:
        pods = [pod for pod in self._world.pods.values() if pod.is_governed and pod.number_of(port) is not None]
        views = [View(port=0, owner=pod) for pod in pods]
        chosen = [view for view in views if any(self._peer_matches(peer, view) for peer in peers)]
        return {
            number
            for view in chosen
            if isinstance(view.owner, Pod) and (number := view.owner.number_of(port)) is not None
        }

    def _refused(self) -> set[PolicyKey]:
        """Admin and Baseline policies that do not fit some pod's budget are refused for all pods."""
        totals = {
            tier: sum(1 for each in self._policies if each.tier is tier for _ in all_rules(each)) for tier in BUDGETS
        }
        refused: set[PolicyKey] = set()
        for tier in (Tier.ADMIN, Tier.BASELINE):
            has_named = any(isinstance(p, NamedPort) for each in self._policies for r in each.egress for p in r.ports)
            if totals[tier] <= BUDGETS[tier] and not has_named:
                continue
            for pod in self._world.pods.values():
                if not pod.is_governed:
                    continue
                policies = [policy for policy in self._governing(pod) if policy.tier is tier]
                for direction in Direction:
                    fitting = self._fitting(policies, direction, tier, None)
                    refused |= {policy.key for policy in policies} - {policy.key for policy in fitting}
        return refused

    def _namespace_labels(self, name: str) -> Labels:
        namespace = self._world.namespaces.get(name)
        return namespace.labels if namespace is not None else {NAMESPACE_NAME_LABEL: name}

    def _default(self, pod: Pod) -> Default:
        world = self._world
        node = world.nodes.get(pod.node)
        node_class = world.node_classes.get(node.node_class) if node is not None else None
        of_node = node_default(world.settings, node, node_class, pod.node)
        default = pod_default(world.settings, world.namespaces.get(pod.namespace), pod.namespace, of_node)
        return Default.ALLOW if self._is_lenient and default is Default.AUDIT else default


# ---------------------------------------------------------------------------------------------------------------------
# Policies and rules one by one


def _governs(policy: Policy, pod: Pod, namespace_labels: Labels) -> bool:
    if policy.kind in NAMESPACED_KINDS and policy.namespace != pod.namespace:
        return False
    return matches(policy.subject.namespaces, namespace_labels) and matches(policy.subject.pods, pod.labels)


def _order(policy: Policy, rule: Rule) -> tuple[int | str, ...]:
    """Priority first. At one priority: AWS Denies, upstream policies by name, AWS Accepts, AWS Passes.

    In the NetworkPolicy tier the order has no meaning but for which of several allows is named.
    """
    if policy.tier is Tier.NETWORK_POLICY:
        return policy.kind.value, policy.namespace, policy.name, rule.index
    group = {Action.DENY: 0, Action.ACCEPT: 2, Action.PASS: 3}[rule.action] if policy.kind in AWS_KINDS else 1
    return policy.priority, group, policy.name, policy.kind.value, rule.index


def _has_domain(rule: Rule) -> bool:
    """Whether a rule lets a name through at all: named ports are pods', a name has none."""
    has_port = any(isinstance(port, PortRange) for port in rule.ports)
    return has_port and any(isinstance(peer, DomainPeer) for peer in rule.peers)


def _own_ports(named: Iterable[NamedPort], subject: Pod | None) -> set[object]:
    """The subject's numbers behind named ports; without a subject each name counts as itself."""
    if subject is None:
        return set(named)
    numbers = ((port.protocol, subject.number_of(port)) for port in named)
    return {PortRange(protocol=protocol, first=n, last=n) for protocol, n in numbers if n is not None}


def _port_matches(port: PortRange, protocol: int, number: int) -> bool:
    if port.protocol == ANY_PROTOCOL:
        return True
    return port.protocol == protocol and port.first <= number <= port.last


@lru_cache(maxsize=65536)
def _covers(cidrs: tuple[str, ...], address: str) -> bool:
    return any(peer_covers_address(CidrPeer(cidr=cidr), address) for cidr in cidrs)
