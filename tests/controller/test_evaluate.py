"""The semantics, said once by hand: every expectation here is typed from the documentation, none from the code."""

from __future__ import annotations

from typing import Any

from schemas.terms import Direction, Protocol, Reason, Tier, Verdict
from services.controller.policy.evaluate import Oracle
from services.controller.policy.model import Answer, Finding, Packet
from services.controller.world import State
from tests import builders as k8s

Obj = dict[str, Any]
WEB, API, DB, WORLD = "10.0.0.1", "10.0.0.2", "10.0.1.1", "198.51.100.7"
CLUSTER = (
    k8s.namespace("app", team="x"),
    k8s.namespace("db"),
    k8s.node("node-a", "192.168.0.1"),
    k8s.node("node-b", "192.168.0.2"),
    k8s.pod("app/web", WEB, app="web", ports=[{"name": "http", "containerPort": 8080}]),
    k8s.pod("app/api", API, app="api", ports=[{"name": "http", "containerPort": 9090}]),
    k8s.pod("db/main", DB, app="db", node="node-b"),
    k8s.service("kube-system/kube-dns", "10.96.0.10", {"port": 53, "protocol": "UDP"}),
)


class World:
    """A cluster with policies, and questions to it. Times in seconds; answers at 0."""

    def __init__(self, *objects: Obj, answers: tuple[Answer, ...] = ()) -> None:
        self.state = State()
        for obj in (*CLUSTER, *objects):
            errors = [problem for problem in self.state.upsert(obj) if problem.severity == "error"]
            assert not errors, errors
        self.oracle = Oracle(self.state.policies, self.state.world, answers)

    def ask(self, packet: Packet, direction: Direction, at: float = 0.0) -> Finding:
        pod = self.oracle.owner_of(packet.source if direction is Direction.EGRESS else packet.destination)
        assert pod is not None and hasattr(pod, "key")
        return self.oracle.evaluate(packet, direction=direction, pod=pod, at=at)

    def out(
        self, to: str, port: int = 80, *, source: str = WEB, protocol: int = Protocol.TCP, at: float = 0.0
    ) -> Finding:
        return self.ask(Packet(source, to, protocol, port), Direction.EGRESS, at)

    def into(self, source: str, port: int = 80, *, to: str = WEB, own: bool = False) -> Finding:
        return self.ask(Packet(source, to, Protocol.TCP, port, from_own_node=own), Direction.INGRESS)


def is_allowed(finding: Finding) -> bool:
    return finding.verdict is Verdict.ALLOW


def egress(*rules: Obj, name: str = "p", **spec: Any) -> Obj:
    return k8s.network_policy(name, {"policyTypes": ["Egress"], "egress": list(rules), **spec})


def aws(name: str, action: str, to: Obj, *, priority: int = 10, **spec: Any) -> Obj:
    return k8s.aws_cluster_policy(name, {"priority": priority, "egress": [{"action": action, "to": [to]}], **spec})


def named(name: str, *, port: int = 443) -> Obj:
    spec = {"policyTypes": ["Egress"]}
    ports = [{"protocol": "TCP", "port": port}]
    return k8s.application_policy("fqdn", {**spec, "egress": [{"to": [{"domainNames": [name]}], "ports": ports}]})


ALL = {"networks": ["0.0.0.0/0"]}


def test_unset_default_is_allow() -> None:
    """Without any policy and setting everything passes, by the default."""
    assert World().out(WORLD) == Finding(Verdict.ALLOW, Tier.DEFAULT, Reason.DEFAULT)


def test_network_policies_are_a_union_that_isolates() -> None:
    """A pod that a NetworkPolicy selects may do what any of them allows and nothing else, in that direction."""
    to_db = egress({"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "db"}}}]}, name="db")
    world = World(to_db, egress({"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]}, name="out"))
    assert is_allowed(world.out(DB)) and is_allowed(world.out(WORLD))
    denied = world.out(API)
    assert (denied.verdict, denied.tier, denied.reason) == (Verdict.DENY, Tier.NETWORK_POLICY, Reason.ISOLATED)
    assert denied.policy is not None and denied.policy.name == "db"
    assert is_allowed(world.into(API))


def test_admin_deny_cannot_be_overridden() -> None:
    """An Admin Deny holds against a NetworkPolicy that allows everything (the seed's metadata policy)."""
    world = World(egress({}), aws("block", "Deny", {"networks": ["169.254.169.254/32"]}))
    found = world.out("169.254.169.254")
    assert (found.verdict, found.tier) == (Verdict.DENY, Tier.ADMIN)
    assert found.policy is not None and found.policy.rule == "egress[0]"
    assert is_allowed(world.out(WORLD))


def test_priority_comes_before_deny() -> None:
    """An Admin Accept of a lower number stands against a Deny of a higher one."""
    world = World(aws("deny", "Deny", ALL, priority=20), aws("accept", "Accept", ALL, priority=10))
    assert is_allowed(world.out(WORLD))
    world = World(aws("deny", "Deny", ALL, priority=10), aws("accept", "Accept", ALL, priority=20))
    assert not is_allowed(world.out(WORLD))


def test_at_one_priority_aws_denies_then_upstream_then_aws_accepts_then_passes() -> None:
    """The tie rule, pair by pair."""

    def upstream(action: str, name: str = "m") -> Obj:
        return k8s.cluster_policy(name, {"egress": [{"action": action, "to": [ALL]}]})

    assert not is_allowed(World(aws("z", "Deny", ALL), upstream("Accept", "a")).out(WORLD))
    assert not is_allowed(World(aws("a", "Accept", ALL), upstream("Deny", "z")).out(WORLD))
    assert not is_allowed(World(upstream("Deny", "a"), upstream("Accept", "b")).out(WORLD))
    assert is_allowed(World(upstream("Deny", "b"), upstream("Accept", "a")).out(WORLD))
    assert is_allowed(World(aws("z", "Accept", ALL), aws("a", "Pass", ALL), egress()).out(WORLD))


def test_rule_order_inside_an_aws_policy_is_ignored_and_upstream_it_decides() -> None:
    """In an AWS-group policy a Deny wins wherever it stands; upstream the first rule that matches does."""
    rules = [{"action": "Accept", "to": [ALL]}, {"action": "Deny", "to": [ALL]}]
    assert not is_allowed(World(k8s.aws_cluster_policy("p", {"egress": rules})).out(WORLD))
    assert is_allowed(World(k8s.cluster_policy("p", {"egress": rules})).out(WORLD))


def test_pass_delegates_to_the_namespace() -> None:
    """What an Admin rule passes is the NetworkPolicy tier's; the remaining Admin rules are skipped."""
    passing = aws("pass", "Pass", {"namespaces": {}}, priority=5)
    world = World(passing, aws("deny", "Deny", ALL), egress({"to": [{"podSelector": {}}]}))
    assert is_allowed(world.out(API))
    assert world.out(DB).reason is Reason.ISOLATED
    assert world.out(WORLD).tier is Tier.ADMIN


def test_baseline_is_overridden_direction_by_direction() -> None:
    """A Baseline Deny stands aside where a NetworkPolicy isolates the pod in that direction, and only there."""
    baseline = k8s.aws_cluster_policy(
        "base",
        {
            "tier": "Baseline",
            "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
            "egress": [{"action": "Deny", "to": [ALL]}],
        },
    )
    world = World(baseline, egress({}))
    assert is_allowed(world.out(WORLD))
    assert world.into(API).tier is Tier.BASELINE
    bare = World(baseline)
    assert bare.out(WORLD).tier is Tier.BASELINE


def test_a_baseline_pass_leaves_it_to_the_default() -> None:
    """Pass in the Baseline tier skips its later rules."""
    rules = [{"action": "Pass", "to": [{"namespaces": {}}]}, {"action": "Deny", "to": [ALL]}]
    world = World(k8s.cluster_policy("base", {"tier": "Baseline", "egress": rules}))
    assert world.out(API).reason is Reason.DEFAULT and world.out(WORLD).tier is Tier.BASELINE


def test_except_takes_away_from_its_own_peer_only() -> None:
    """Another policy's wider allow is not narrowed by somebody's except."""
    cut = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["198.51.100.0/24"]}}]}
    assert not is_allowed(World(egress(cut)).out(WORLD))
    assert is_allowed(World(egress(cut), egress({"to": [{"ipBlock": {"cidr": "198.51.0.0/16"}}]}, name="q")).out(WORLD))


def test_all_ports_and_one_port_of_one_cidr_are_both_kept() -> None:
    """Two rules of one policy on one CIDR, "all ports" and "TCP/80": both hold."""
    block = [{"ipBlock": {"cidr": "198.51.100.0/24"}}]
    world = World(egress({"to": block}, {"to": block, "ports": [{"port": 80}]}))
    assert is_allowed(world.out(WORLD, 22)) and is_allowed(world.out(WORLD, 80, protocol=Protocol.UDP))


def test_pods_are_told_apart_one_by_one() -> None:
    """Two pods of one name stem have the policies of their own labels."""
    stem = [k8s.pod(f"app/job-{n}", f"10.0.0.5{n}", job=str(n)) for n in (1, 2)]
    world = World(*stem, egress(podSelector={"matchLabels": {"job": "1"}}))
    assert not is_allowed(world.out(WORLD, source="10.0.0.51")) and is_allowed(world.out(WORLD, source="10.0.0.52"))


def test_no_cap_on_ports_per_cidr() -> None:
    """Sixty ports on one CIDR are sixty ports."""
    ports = [{"port": 1000 + n} for n in range(60)]
    world = World(egress({"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}], "ports": ports}))
    assert all(is_allowed(world.out(WORLD, 1000 + n)) for n in range(60)) and not is_allowed(world.out(WORLD, 1060))


def test_both_families_at_once() -> None:
    """IPv4 and IPv6 rules of one policy both hold for a pod that has both."""
    both = k8s.pod("app/both", "10.0.0.9", "fd00::9")
    world = World(both, egress({"to": [{"ipBlock": {"cidr": "2001:db8::/32"}}, {"ipBlock": {"cidr": "10.0.1.0/24"}}]}))
    assert is_allowed(world.out("2001:db8::1", source="fd00::9")) and is_allowed(world.out(DB, source="10.0.0.9"))
    assert not is_allowed(world.out("2001:db9::1", source="fd00::9"))


def test_a_rule_without_ports_matches_icmp_and_one_with_ports_does_not() -> None:
    """No ports is every protocol."""
    assert is_allowed(World(egress({"to": [{"podSelector": {}}]})).out(API, 0, protocol=Protocol.ICMP))
    assert not is_allowed(World(egress({"ports": [{"port": 80}]})).out(API, 0, protocol=Protocol.ICMP))


def test_named_ports_are_the_pods_own_numbers() -> None:
    """On egress a name is the peer's number, on ingress the subject's; outside pods nothing has a name."""
    world = World(egress({"ports": [{"port": "http"}]}))
    assert is_allowed(world.out(API, 9090)) and not is_allowed(world.out(API, 8080))
    assert not is_allowed(world.out(WORLD, 9090))
    world = World(k8s.network_policy("p", {"ingress": [{"ports": [{"port": "http"}]}]}))
    assert is_allowed(world.into(WORLD, 8080)) and not is_allowed(world.into(WORLD, 9090))
    assert is_allowed(world.into(WORLD, 9090, to=API))


def test_own_node_passes_isolation_but_not_an_explicit_deny() -> None:
    """Probes reach an isolated pod; an Admin Deny on the node's address still holds; another node is no own node."""
    world = World(egress(), k8s.network_policy("in", {}))
    assert world.out("192.168.0.1").reason is Reason.OWN_NODE
    assert world.out("192.168.0.2").reason is Reason.ISOLATED
    assert world.into("192.168.0.1", own=True).reason is Reason.OWN_NODE
    assert world.into("192.168.0.1").reason is Reason.ISOLATED
    denied = World(aws("deny", "Deny", {"networks": ["192.168.0.1/32"]})).out("192.168.0.1")
    assert (denied.verdict, denied.tier) == (Verdict.DENY, Tier.ADMIN)


def test_an_address_in_a_pod_range_that_is_nobodys_is_denied() -> None:
    """Where the cluster has pod ranges of its own, an unknown pod is never judged as the world."""
    world = World(egress({}), k8s.settings(pod_cidrs="10.0.0.0/16"))
    assert world.out("10.0.7.7").reason is Reason.UNKNOWN_POD
    assert world.into("10.0.7.7").reason is Reason.UNKNOWN_POD
    assert is_allowed(world.out(DB)) and is_allowed(world.out("10.7.7.7"))


def test_a_cidr_matches_pod_addresses_as_well() -> None:
    """ipBlock and networks judge the address, whoever has it."""
    assert is_allowed(World(egress({"to": [{"ipBlock": {"cidr": "10.0.1.0/24"}}]})).out(DB))


def test_host_network_pods_are_not_peers() -> None:
    """A hostNetwork pod's address is not allowed by a rule that selects its labels."""
    agent = k8s.pod("app/agent", "192.168.0.2", app="agent")
    agent["spec"]["hostNetwork"] = True
    assert not is_allowed(World(agent, egress({"to": [{"podSelector": {}}]})).out("192.168.0.2"))


# -- names ------------------------------------------------------------------------------------------------------------


def told(name: str, *addresses: str, ttl: float = 60.0, at: float = 0.0) -> tuple[Answer, ...]:
    return (Answer(name=name, addresses=addresses, ttl_seconds=ttl, at=at),)


def test_a_name_admits_its_addresses_on_its_ports() -> None:
    """The rule's port and no other; the verdict names the domain."""
    world = World(named("db.example.com"), answers=told("DB.Example.com.", WORLD))
    found = world.out(WORLD, 443)
    assert (found.verdict, found.reason, found.name) == (Verdict.ALLOW, Reason.RULE, "db.example.com")
    assert not is_allowed(world.out(WORLD, 80)) and not is_allowed(world.out("198.51.100.8", 443))


def test_only_a_pod_with_the_rule_may_use_the_name() -> None:
    """The seed's leak: a neighbour without the rule stays Blocked though the same answer is known."""
    policy = named("example.com", port=80)
    policy["spec"]["podSelector"] = {"matchLabels": {"app": "web"}}
    world = World(policy, k8s.settings(default="deny"), answers=told("example.com", WORLD))
    assert is_allowed(world.out(WORLD)) and world.out(WORLD, source=API).reason is Reason.DEFAULT


def test_a_wildcard_is_one_or_more_labels_and_not_the_apex() -> None:
    """``*.x`` matches a.x and b.a.x, not x (NPEP-133)."""
    for name, expected in (("a.x.com", True), ("b.a.x.com", True), ("x.com", False), ("ax.com", False)):
        assert is_allowed(World(named("*.x.com"), answers=told(name, WORLD)).out(WORLD, 443)) is expected


def test_expiry_is_ttl_clamped_plus_grace() -> None:
    """A TTL of 5 counts as 30, then 60 of grace; from then on NAME_EXPIRED with the name; a later answer renews."""
    world = World(named("x.com"), answers=told("x.com", WORLD, ttl=5))
    assert is_allowed(world.out(WORLD, 443, at=89.9))
    late = world.out(WORLD, 443, at=90.0)
    assert (late.verdict, late.reason, late.name) == (Verdict.DENY, Reason.NAME_EXPIRED, "x.com")
    renewed = World(named("x.com"), answers=told("x.com", WORLD, ttl=5) + told("x.com", WORLD, at=80.0))
    assert is_allowed(renewed.out(WORLD, 443, at=100.0))


def test_addresses_that_a_name_may_not_have_are_never_learned() -> None:
    """Pods, Services, nodes, loopback, metadata: an answer that says so admits nothing."""
    bad = (DB, "10.96.0.10", "192.168.0.2", "127.0.0.1", "169.254.169.254", "168.63.129.16", "100.100.100.200")
    world = World(named("evil.com"), answers=told("evil.com", *bad))
    assert [world.out(address, 443).verdict for address in bad] == [Verdict.DENY] * len(bad)


def test_a_domain_rule_implies_dns_to_the_trusted_resolver() -> None:
    """Port 53 of the resolver, TCP and UDP, passes for pods with a domain rule; an Admin Deny precedes it."""
    world = World(named("x.com"))
    assert world.out("10.96.0.10", 53, protocol=Protocol.UDP).reason is Reason.DNS_IMPLICIT
    assert world.out("10.96.0.10", 53).reason is Reason.DNS_IMPLICIT
    assert not is_allowed(world.out(WORLD, 53)) and not is_allowed(world.out("10.96.0.10", 54))
    barred = World(named("x.com"), aws("deny", "Deny", {"networks": ["10.96.0.10/32"]}))
    assert barred.out("10.96.0.10", 53).tier is Tier.ADMIN
    off = World(named("x.com"), k8s.settings(dns_implicit="false"))
    assert not is_allowed(off.out("10.96.0.10", 53))


def test_implied_dns_opens_what_answers_behind_the_service() -> None:
    """At the port where it listens, not at the Service's; not where it neither is ready nor serves; by an address that
    nobody shows to the outside; and whatever is listed beside it."""
    ports = [{"port": 5353, "protocol": "UDP"}]
    endpoints = [{"addresses": [address], "conditions": {"ready": address == API}} for address in (API, DB)]
    behind = k8s.endpoint_slice("kube-system/kube-dns", *endpoints, ports=ports)
    for world in (World(named("x.com"), behind), World(named("x.com"), behind, k8s.settings(resolvers=WORLD))):
        assert world.out(API, 5353, protocol=Protocol.UDP).reason is Reason.DNS_IMPLICIT
        assert world.out("10.96.0.10", 53, protocol=Protocol.UDP).reason is Reason.DNS_IMPLICIT
        assert not is_allowed(world.out(API, 53)) and not is_allowed(world.out(DB, 5353))
    thief = k8s.service("app/thief", "10.96.0.8", {"port": 5353, "protocol": "UDP"}, externalIPs=[API])
    assert not is_allowed(World(named("x.com"), behind, thief).out(API, 5353))


def test_implied_dns_is_not_undone_by_a_baseline_deny_and_isolates_nothing() -> None:
    """A cluster-wide domain rule implies DNS too; the pod stays as open as it was."""
    rule = {"action": "Accept", "to": [{"domainNames": ["x.com"]}]}
    admin = k8s.aws_cluster_policy("names", {"egress": [rule]})
    baseline = aws("base", "Deny", ALL, tier="Baseline")
    world = World(admin, baseline)
    assert is_allowed(world.out("10.96.0.10", 53, protocol=Protocol.UDP)) and not is_allowed(world.out(WORLD))
    assert is_allowed(World(admin).out(WORLD))


# -- Services ---------------------------------------------------------------------------------------------------------

VIP = "10.100.0.5"


def backend(*ports: Obj, **spec: Any) -> Obj:
    return k8s.service("app/svc", VIP, *(ports or ({"port": 80, "targetPort": 8080},)), **spec)


def test_a_pod_peer_sees_through_a_service() -> None:
    """A rule on pods allows their Service; a Deny on pods cannot be walked around through one."""
    svc = backend(selector={"app": "db"})
    to_db = {"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "db"}}}]}
    db_svc = k8s.service("db/svc", VIP, {"port": 80, "targetPort": 5432}, selector={"app": "db"})
    assert is_allowed(World(db_svc, egress(to_db)).out(VIP))
    assert not is_allowed(World(svc, egress(to_db)).out(VIP))
    denied = aws("deny", "Deny", {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "db"}}}})
    assert not is_allowed(World(db_svc, denied).out(VIP))


def test_pod_peers_see_the_backends_port_and_prefixes_the_packets() -> None:
    """One formula, two rectangles: (pods, backend port) or (prefix, Service port)."""
    svc = backend(selector={"app": "api"})
    pods = {"podSelector": {}}
    block = {"ipBlock": {"cidr": "10.100.0.0/16"}}
    assert is_allowed(World(svc, egress({"to": [pods], "ports": [{"port": 8080}]})).out(VIP))
    assert not is_allowed(World(svc, egress({"to": [pods], "ports": [{"port": 80}]})).out(VIP))
    assert is_allowed(World(svc, egress({"to": [block], "ports": [{"port": 80}]})).out(VIP))
    assert not is_allowed(World(svc, egress({"to": [block], "ports": [{"port": 8080}]})).out(VIP))


def test_mixed_backends_must_all_be_allowed() -> None:
    """A Service before pods of which one is denied is denied, with the reason; each by its own rule is enough."""
    svc = backend({"port": 80, "targetPort": 80}, selector={"tier": "x"})
    pods = [k8s.pod(f"app/m{n}", f"10.0.0.6{n}", tier="x", role=str(n)) for n in (1, 2)]
    one, two = ({"to": [{"podSelector": {"matchLabels": {"role": str(n)}}}]} for n in (1, 2))
    found = World(svc, *pods, egress(one)).out(VIP)
    assert (found.verdict, found.reason) == (Verdict.DENY, Reason.MIXED_BACKENDS)
    assert is_allowed(World(svc, *pods, egress(one, two)).out(VIP))


def test_a_service_without_backends_is_seen_by_prefixes_only() -> None:
    """No ready backend: a CIDR that covers it allows it, a pod rule does not, and the reason says so."""
    svc = backend(selector={"app": "none"})
    assert World(svc, egress({"to": [{"podSelector": {}}]})).out(VIP).reason is Reason.NO_BACKEND
    assert is_allowed(World(svc, egress({"to": [{"ipBlock": {"cidr": "10.100.0.0/16"}}]})).out(VIP))


def test_too_many_distinct_backends_are_denied() -> None:
    """More than 64 backends that policies tell apart cannot be judged together."""
    svc = backend({"port": 80, "targetPort": 80}, selector={"tier": "x"})
    pods = [k8s.pod(f"app/m{n}", f"10.0.2.{n}", tier="x", role=str(n)) for n in range(1, 66)]
    by_role = egress({"to": [{"podSelector": {"matchExpressions": [{"key": "role", "operator": "Exists"}]}}]})
    assert World(svc, *pods, by_role).out(VIP).reason is Reason.TOO_MANY_BACKENDS
    assert is_allowed(World(svc, *pods[:64], by_role).out(VIP))


def test_a_backend_outside_the_cluster_is_its_address() -> None:
    """A Service that stands for the metadata service does not walk around a Deny on its prefix."""
    svc = backend({"port": 80}, selector=None)
    each = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "s", "namespace": "app", "labels": {"kubernetes.io/service-name": "svc"}},
        "ports": [{"port": 80}],
        "endpoints": [{"addresses": ["169.254.169.254"]}],
    }
    world = World(svc, each, aws("block", "Deny", {"networks": ["169.254.169.254/32"]}))
    assert not is_allowed(world.out(VIP))


def test_a_node_port_is_a_service_not_the_own_node() -> None:
    """The own node's address with a node port is judged as the Service before the own-node pass."""
    svc = backend({"port": 80, "targetPort": 80, "nodePort": 30080}, selector={"app": "api"}, type="NodePort")
    world = World(svc, egress())
    assert not is_allowed(world.out("192.168.0.1", 30080)) and is_allowed(world.out("192.168.0.1", 30081))


def test_a_pod_reaches_itself() -> None:
    """Traffic of a pod with itself, also through its own Service, is nobody's to deny on the way in."""
    assert World(k8s.network_policy("in", {})).into(WEB).reason is Reason.HAIRPIN
