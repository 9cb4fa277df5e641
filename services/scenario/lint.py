"""What is legal and probably not meant: findings about policies, with the file and the path of the rule.

Each lint is one function from a ``Case`` to findings; ``LINTS`` lists them, and the page of commands is held to it.
What only a running cluster could tell is asked only where the manifests have pods.

Pure. Deliberately absent: refusals (``policy.parse``), which ``yett check`` shows beside these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from schemas.policy import CidrPeer, DomainPeer, PodPeer
from schemas.selectors import parse_address, parse_network
from schemas.terms import Action, Direction, PolicyKind, Protocol, Tier, Verdict
from services.controller.policy.model import AWS_KINDS, ObjectKey, Packet, Policy, PolicyKey, Rule, World
from services.controller.policy.parse import MODE_ANNOTATION, identify
from services.scenario import overlap
from services.scenario.walk import NODE_CACHE
from services.scenario.words import format_list, format_peer, format_source
from services.scenario.world import Cluster, Placed

METADATA = ("169.254.169.254", "fd00:ec2::254")
POD_IDENTITY = ("169.254.170.23", "fd00:ec2::23")
METADATA_RANGES = ("169.254.0.0/16", "fd00:ec2::/32")
"""A Deny that lies in these is about metadata services; a wider one is about the world."""
BROAD_SUFFIXES = frozenset(
    {
        "amazonaws.com",
        "azure.com",
        "azurewebsites.net",
        "blob.core.windows.net",
        "cloudfront.net",
        "co.jp",
        "co.uk",
        "com.au",
        "com.br",
        "core.windows.net",
        "github.io",
        "githubusercontent.com",
        "googleapis.com",
        "googleusercontent.com",
        "herokuapp.com",
        "netlify.app",
        "pages.dev",
        "s3.amazonaws.com",
        "vercel.app",
        "windows.net",
        "workers.dev",
    }
)
"""Names under which anybody may have a host of their own."""
SERVICE_PREFIX_MIN = 12
"""A prefix this long or longer that holds Services is taken to mean them."""


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One thing to look at. ``path``: of the rule, in the object."""

    lint: str
    file: str
    object: str
    path: str
    message: str


Governed = dict[PolicyKey, frozenset[ObjectKey]]
"""Policy -> the pods that it governs."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A rule in its policy. ``place``: in the order of evaluation."""

    policy: Policy
    rule: Rule
    direction: Direction
    place: tuple[int | str, ...]

    @property
    def path(self) -> str:
        return f"spec.{self.direction.name.lower()}[{self.rule.index}]"

    @property
    def title(self) -> str:
        return f"{format_source(self.policy.source(''))} {self.path}"


@dataclass
class Case:
    """What lints look at. ``objects``: as they were given, by (kind, namespace, name)."""

    cluster: Cluster
    objects: dict[tuple[str, str, str], Placed] = field(default_factory=dict)

    @property
    def world(self) -> World:
        return self.cluster.world

    @cached_property
    def rules(self) -> tuple[Placement, ...]:
        """Every rule, in the order of evaluation within its direction."""
        return place_rules(self.cluster.policies)

    @cached_property
    def governed(self) -> Governed:
        """Policy -> the pods that it governs."""
        return {policy.key: overlap.governed_pods(policy, self.world) for policy in self.cluster.policies}

    @property
    def has_pods(self) -> bool:
        return any(pod.is_governed for pod in self.world.pods.values())

    def find(self, lint: str, policy: Policy, path: str, message: str) -> LintFinding:
        where = self.objects.get(policy.key, ("", None))[0]
        return LintFinding(lint, where, format_source(policy.source("")), path, message)

    def find_rule(self, lint: str, rule: Placement, message: str) -> LintFinding:
        return self.find(lint, rule.policy, rule.path, message)


def place_rules(policies: Iterable[Policy]) -> tuple[Placement, ...]:
    """Every rule of these policies, in the order of evaluation within its direction."""
    found = [
        Placement(policy, rule, direction, _order(policy, rule))
        for policy in policies
        for direction in Direction
        for rule in policy.rules(direction)
    ]
    return tuple(sorted(found, key=lambda each: (each.direction, each.place)))


def _order(policy: Policy, rule: Rule) -> tuple[int | str, ...]:
    """As rules are judged: by tier and priority; at one priority AWS Denies, upstream by name, AWS Accepts, Passes."""
    if policy.tier is Tier.NETWORK_POLICY:
        return int(policy.tier), 0, 0, policy.kind.value, f"{policy.namespace}/{policy.name}", rule.index
    group = {Action.DENY: 0, Action.ACCEPT: 2, Action.PASS: 3}[rule.action] if policy.kind in AWS_KINDS else 1
    return int(policy.tier), policy.priority, group, policy.name, policy.kind.value, rule.index


def make_case(cluster: Cluster, objects: Iterable[Placed]) -> Case:
    """A case from a cluster and the objects that it was made of."""
    placed = {key: (where, obj) for where, obj in objects if (key := identify(obj)) is not None}
    return Case(cluster, placed)


def find_all(case: Case) -> list[LintFinding]:
    """Every finding, by file, object and path."""
    found = {finding for lint in LINTS.values() for finding in lint(case)}
    return sorted(found, key=lambda each: (each.file, each.object, each.path, each.lint, each.message))


# ---------------------------------------------------------------------------------------------------------------------
# Names


def find_blind_pods(case: Case) -> Iterator[LintFinding]:
    """A domain rule whose pods cannot ask the resolver, so that no name is ever learned."""
    resolvers = [(each.address, each.port) for each in case.cluster.state.trusted.named]
    for policy, rule in _domain_policies(case):
        for key in sorted(case.governed[policy.key])[:1] if resolvers else ():
            denials = [_ask_dns(case, key, address, port) for address, port in resolvers]
            if all(denials):
                message = f"its pods cannot reach DNS: {'/'.join(key)} to {resolvers[0][0]} is {denials[0]}"
                yield case.find_rule("dns-unreachable", rule, message)


def _ask_dns(case: Case, key: ObjectKey, address: str, port: int) -> str:
    """Why the pod may not ask; empty if it may."""
    pod = case.world.pods[key]
    source = next((each for each in pod.addresses if (":" in each) == (":" in address)), "")
    if not source:
        return ""
    packet = Packet(source, address, Protocol.UDP, port)
    finding = case.cluster.oracle.evaluate(packet, direction=Direction.EGRESS, pod=pod)
    if finding.verdict is not Verdict.DENY:
        return ""
    return f"denied by {format_source(finding.policy)}" if finding.policy else "denied by the default"


def find_own_resolvers(case: Case) -> Iterator[LintFinding]:
    """A domain rule whose pods ask a resolver that is not trusted, so that its answers teach nothing."""
    trusted = {NODE_CACHE, *(each.address for each in case.cluster.state.trusted.resolvers)}
    for policy, rule in _domain_policies(case):
        for key in sorted(case.governed[policy.key]):
            _, obj = case.objects.get(("Pod", *key), ("", None))
            spec = obj.get("spec") if isinstance(obj, dict) else None
            asked = _own_resolvers(spec if isinstance(spec, dict) else {}, trusted)
            if asked:
                yield case.find_rule("own-resolver", rule, f"pod {'/'.join(key)} asks {asked}, which is not trusted")
                break


def _own_resolvers(spec: dict[str, Any], trusted: set[str]) -> str:
    policy = spec.get("dnsPolicy")
    config = spec.get("dnsConfig")
    given = config.get("nameservers") if isinstance(config, dict) else None
    strange = [str(each) for each in given or () if str(each) not in trusted]
    if strange:
        return ", ".join(strange)
    return "the resolver of its node (dnsPolicy: Default)" if policy == "Default" else ""


def find_broad_wildcards(case: Case) -> Iterator[LintFinding]:
    """A wildcard under which anybody may have a name."""
    for rule, pattern in _patterns(case):
        suffix = pattern.removeprefix("*.")
        if pattern.startswith("*.") and ("." not in suffix or suffix in BROAD_SUFFIXES):
            yield case.find_rule("broad-wildcard", rule, f"{pattern} covers names that anybody may register")


def find_cluster_names(case: Case) -> Iterator[LintFinding]:
    """A name of the cluster itself: its addresses are pods' and Services', which no name may have."""
    for rule, pattern in _patterns(case):
        if pattern.removeprefix("*.").endswith("cluster.local"):
            message = f"{pattern} never matches: addresses of pods and Services are not learned; select the pods"
            yield case.find_rule("cluster-name", rule, message)


def find_names_without_ports(case: Case) -> Iterator[LintFinding]:
    """A domain rule for every port of whatever shares the name's address."""
    for rule in case.rules:
        names = [peer.pattern for peer in rule.rule.peers if isinstance(peer, DomainPeer)]
        if names and any(overlap.spans_everything(port) for port in rule.rule.ports):
            message = f"{format_list(names)} on every port and protocol: everything else at these addresses is open too"
            yield case.find_rule("name-without-port", rule, message)


def _domain_policies(case: Case) -> Iterator[tuple[Policy, Placement]]:
    """The first domain rule of each policy that has one."""
    seen = set()
    for rule in case.rules:
        is_domain = any(isinstance(peer, DomainPeer) for peer in rule.rule.peers)
        if is_domain and rule.policy.key not in seen:
            seen.add(rule.policy.key)
            yield rule.policy, rule


def _patterns(case: Case) -> Iterator[tuple[Placement, str]]:
    for rule in case.rules:
        yield from ((rule, peer.pattern) for peer in rule.rule.peers if isinstance(peer, DomainPeer))


# ---------------------------------------------------------------------------------------------------------------------
# Order


def find_shadowed(case: Case) -> Iterator[LintFinding]:
    """A rule that never decides: an earlier one matches all that it matches."""
    for index, rule in enumerate(case.rules):
        for earlier in case.rules[:index]:
            if _shadows(case.governed, earlier, rule):
                word = {Action.DENY: "denies", Action.ACCEPT: "accepts", Action.PASS: "passes"}[earlier.rule.action]
                yield case.find_rule("shadowed", rule, f"never decides: {earlier.title} {word} all of it before")
                break


def find_shadowed_rules(
    policies: Sequence[Policy], world: World
) -> Iterator[tuple[tuple[PolicyKey, Direction, int], str]]:
    """(policy, direction, index) of every rule that never decides, and by which one, without manifests."""
    governed = {policy.key: overlap.governed_pods(policy, world) for policy in policies}
    rules = place_rules(policies)
    for index, rule in enumerate(rules):
        earlier = next((each for each in rules[:index] if _shadows(governed, each, rule)), None)
        if earlier is not None:
            yield (rule.policy.key, rule.direction, rule.rule.index), earlier.title


def _shadows(governed: Governed, earlier: Placement, later: Placement) -> bool:
    if earlier.direction is not later.direction or earlier.policy.tier is Tier.NETWORK_POLICY:
        return False
    if _is_unfelt(earlier, later):
        return False
    if earlier.policy.tier is not later.policy.tier:
        is_final = earlier.rule.action is Action.DENY and earlier.policy.tier is Tier.ADMIN
        if not is_final:
            return False
    return _governs_all(governed, earlier.policy, later.policy) and overlap.rule_covers(earlier.rule, later.rule)


def _is_unfelt(earlier: Placement, later: Placement) -> bool:
    """Under audit it stands before nothing that is enforced."""
    return earlier.policy.is_audited and not later.policy.is_audited


def _governs_all(governed: Governed, wide: Policy, narrow: Policy) -> bool:
    """By their selectors, or else by the pods that there are."""
    by_selector = overlap.selector_covers(wide.subject.namespaces, narrow.subject.namespaces)
    if by_selector and overlap.selector_covers(wide.subject.pods, narrow.subject.pods):
        return True
    narrow_pods = governed[narrow.key]
    return bool(narrow_pods) and narrow_pods <= governed[wide.key]


def find_deny_first(case: Case) -> Iterator[LintFinding]:
    """An Accept or Pass that wins by its priority over a Deny: who reads "any Deny first" expects otherwise."""
    admin = [rule for rule in case.rules if rule.policy.tier is Tier.ADMIN]
    for index, rule in enumerate(admin):
        if rule.rule.action is Action.DENY:
            continue
        for later in admin[index + 1 :]:
            is_deny = later.rule.action is Action.DENY and later.direction is rule.direction
            if _is_unfelt(rule, later) or not is_deny:
                continue
            if _share_pods(case, rule.policy, later.policy) and _meet(case, rule, later):
                message = f"wins over the Deny of {later.title}: priority comes first, not Deny"
                yield case.find_rule("deny-first", rule, message)


def _meet(case: Case, one: Placement, other: Placement) -> bool:
    return overlap.rules_overlap(one.rule, other.rule, case.world)


def _share_pods(case: Case, one: Policy, other: Policy) -> bool:
    return not case.has_pods or bool(case.governed[one.key] & case.governed[other.key])


def find_equal_priorities(case: Case) -> Iterator[LintFinding]:
    """Two upstream policies at one priority: their names decide the order, which the API leaves open."""
    seen: dict[tuple[Tier, int], Policy] = {}
    kinds = (PolicyKind.CLUSTER_NETWORK_POLICY, PolicyKind.ADMIN_NETWORK_POLICY)
    for policy in sorted(case.cluster.policies, key=lambda each: each.name):
        if policy.kind not in kinds:
            continue
        first = seen.setdefault((policy.tier, policy.priority), policy)
        if first is not policy and _share_pods(case, first, policy):
            message = f"{policy.priority} is the priority of {format_source(first.source(''))} too: names decide"
            yield case.find("equal-priority", policy, "spec.priority", message)


# ---------------------------------------------------------------------------------------------------------------------
# Selectors and prefixes


def find_audited(case: Case) -> Iterator[LintFinding]:
    """A policy that enforces nothing yet."""
    for policy in case.cluster.policies:
        if policy.is_audited:
            message = "under audit: what it would stop is told, and nothing is opened or shut by it"
            yield case.find("under-audit", policy, f"metadata.annotations.{MODE_ANNOTATION}", message)


def find_empty_selectors(case: Case) -> Iterator[LintFinding]:
    """A subject or a peer that is no pod of these manifests."""
    if not case.has_pods:
        return
    for policy in case.cluster.policies:
        if not case.governed[policy.key]:
            yield case.find("selects-nothing", policy, "spec", "governs no pod of these manifests")
    for rule in case.rules:
        for peer in rule.rule.peers:
            if isinstance(peer, PodPeer) and not overlap.pods_of([peer], case.world):
                message = f"{format_peer(peer)}: no pod of these manifests"
                yield case.find_rule("selects-nothing", rule, message)


def find_service_ranges(case: Case) -> Iterator[LintFinding]:
    """Service addresses allowed by prefix: every Service there may be, whoever is behind it."""
    for rule in case.rules:
        if rule.direction is Direction.INGRESS or rule.rule.action is not Action.ACCEPT:
            continue
        for peer in rule.rule.peers:
            if isinstance(peer, CidrPeer) and _means_services(case, peer):
                message = f"{peer.cidr} allows Services by address; a pod peer follows the pods behind them"
                yield case.find_rule("service-range", rule, message)


def _means_services(case: Case, peer: CidrPeer) -> bool:
    ranges = case.world.settings.config.service_cidrs
    if any(overlap.is_inside(peer.cidr, each) for each in ranges):
        return True
    network = parse_network(peer.cidr)
    addresses = [
        parse_address(address) for service in case.world.services.values() for address in service.cluster_addresses
    ]
    is_narrow = network.prefixlen >= SERVICE_PREFIX_MIN
    return is_narrow and any(each.version == network.version and each in network for each in addresses)


def find_metadata_gaps(case: Case) -> Iterator[LintFinding]:
    """A Deny of the metadata service that leaves one family open, or takes Pod Identity's credentials with it."""
    for policy in case.cluster.policies:
        rules = [each for each in case.rules if each.policy is policy and each.direction is Direction.EGRESS]
        denials = [each for each in rules if each.rule.action is Action.DENY]
        aimed = [(each, peer) for each in denials for peer in each.rule.peers if _is_about_metadata(peer)]
        denied = [peer.cidr for each in denials for peer in each.rule.peers if isinstance(peer, CidrPeer)]
        for rule, peer in aimed:
            assert isinstance(peer, CidrPeer)
            yield from _find_gaps(case, rule, peer.cidr, denied)


def _find_gaps(case: Case, rule: Placement, cidr: str, denied: list[str]) -> Iterator[LintFinding]:
    for address, other in (METADATA, METADATA[::-1]):
        if _holds(cidr, address) and not any(_holds(each, other) for each in denied):
            yield case.find_rule("metadata-one-family", rule, f"{cidr} is denied, {other} is not")
    for address in POD_IDENTITY:
        if _holds(cidr, address):
            message = f"{cidr} takes {address} with it: pods lose their credentials from EKS Pod Identity"
            yield case.find_rule("pod-identity", rule, message)


def _is_about_metadata(peer: object) -> bool:
    if not isinstance(peer, CidrPeer):
        return False
    is_near = any(overlap.is_inside(peer.cidr, each) for each in METADATA_RANGES)
    return is_near and any(_holds(peer.cidr, address) for address in (*METADATA, *POD_IDENTITY))


def _holds(cidr: str, address: str) -> bool:
    network, parsed = parse_network(cidr), parse_address(address)
    return network.version == parsed.version and parsed in network


LINTS: dict[str, Callable[[Case], Iterator[LintFinding]]] = {
    "dns-unreachable": find_blind_pods,
    "own-resolver": find_own_resolvers,
    "broad-wildcard": find_broad_wildcards,
    "cluster-name": find_cluster_names,
    "name-without-port": find_names_without_ports,
    "shadowed": find_shadowed,
    "deny-first": find_deny_first,
    "equal-priority": find_equal_priorities,
    "under-audit": find_audited,
    "selects-nothing": find_empty_selectors,
    "service-range": find_service_ranges,
    "metadata-one-family": find_metadata_gaps,
    "pod-identity": find_metadata_gaps,
}
"""Name in a finding -> who finds it."""
