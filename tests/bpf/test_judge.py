"""The kernel's verdicts on new flows: each rule of the judge once, then random tables against what they mean."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from schemas.terms import Default, Direction, Reason, Tier, Verdict
from services.nodeagent.judge import NO_BIT, FrontendShape, Packet, judge
from services.nodeagent.tables import (
    CLASS_CIDR,
    CLASS_DOMAIN,
    CidrEntry,
    FrontendEntry,
    MixedEntry,
    RulesetEntry,
    Tables,
)
from tests.bpf import packets
from tests.bpf.prog_run import IFINDEX, Kernel, Result, boot_seconds
from tests.bpf.worlds import (
    ADMIN,
    BASELINE,
    EGRESS,
    INGRESS,
    NETWORK_POLICY,
    PEER4,
    PEER6,
    POD4,
    POD6,
    RESOLVER,
    TRUSTED,
    add_cidr,
    add_identity,
    add_pattern,
    make_tables,
)

pytestmark = pytest.mark.kernel


def syn_to(kernel: Kernel, to: str = PEER4, port: int = 443) -> Result:
    """A new flow from the pod; state of earlier ones is forgotten."""
    kernel.forget()
    return kernel.from_pod(packets.ip(POD6 if ":" in to else POD4, to, packets.TCP, packets.tcp(50000, port)))


def syn_from(kernel: Kernel, source: str = PEER4, port: int = 8080, *, ingress: int = 77) -> Result:
    kernel.forget()
    own = POD6 if ":" in source else POD4
    return kernel.to_pod(packets.ip(source, own, packets.TCP, packets.tcp(50000, port)), ingress=ingress)


def expect(result: Result, verdict: Verdict, reason: Reason, tier: Tier, bit: int = NO_BIT) -> None:
    event = result.event
    assert event is not None
    assert (Verdict(event.verdict), Reason(event.reason), Tier(event.tier), event.bit) == (verdict, reason, tier, bit)
    assert result.passed == (verdict is not Verdict.DENY)


# ---------------------------------------------------------------------------------------------------------------------
# Zero denies


def test_an_interface_without_endpoint_is_shut(kernel: Kernel) -> None:
    """No endpoint row: everything is denied and counted, in both directions."""
    assert not kernel.from_pod(packets.ip(POD4, PEER4, packets.TCP, packets.tcp(1, 2))).passed
    assert not kernel.to_pod(packets.ip(PEER4, POD4, packets.TCP, packets.tcp(1, 2))).passed
    assert kernel.count_reason(Direction.EGRESS, Reason.NO_ENDPOINT) == 1
    assert kernel.count_reason(Direction.INGRESS, Reason.NO_ENDPOINT) == 1


def test_an_endpoint_without_ruleset_is_shut(kernel: Kernel) -> None:
    """A handle that names no ruleset denies."""
    tables = make_tables()
    del tables.rulesets[EGRESS]
    kernel.fill(tables)
    expect(syn_to(kernel), Verdict.DENY, Reason.NO_RULESET, Tier.NONE)


def test_an_address_claimed_twice_is_shut(kernel: Kernel) -> None:
    """Two interfaces claim one address: both are denied, whatever policy says."""
    tables = make_tables(egress={"default": Default.ALLOW})
    tables.endpoints[1] = replace(tables.endpoints[1], claimed_twice=True)
    kernel.fill(tables)
    expect(syn_to(kernel), Verdict.DENY, Reason.CLAIMED_TWICE, Tier.NONE)


def test_an_endpoint_whose_slot_is_taken_is_found(kernel: Kernel) -> None:
    """Two interfaces that share a slot: the second is found in the far table."""
    tables = make_tables(egress={"default": Default.ALLOW})
    kernel.fill(tables)
    from services.nodeagent.mapcodec import encode_endpoint

    near = encode_endpoint(replace(tables.endpoints[1], ifindex=65, id=9))
    kernel.maps["endpoints"].put((1).to_bytes(4, "little"), near)
    assert not syn_to(kernel).passed
    kernel.maps["endpoints_far"].put((1).to_bytes(4, "little"), encode_endpoint(tables.endpoints[1]))
    assert syn_to(kernel).passed
    kernel.maps["endpoints_far"].delete((1).to_bytes(4, "little"))
    kernel.maps["endpoints"].put((1).to_bytes(4, "little"), encode_endpoint(tables.endpoints[1]))


# ---------------------------------------------------------------------------------------------------------------------
# Tiers


@pytest.mark.parametrize(
    ("default", "verdict"),
    [(Default.DENY, Verdict.DENY), (Default.ALLOW, Verdict.ALLOW), (Default.AUDIT, Verdict.AUDIT)],
)
def test_the_default_decides_last(kernel: Kernel, default: Default, verdict: Verdict) -> None:
    """Where no rule decides the default does; audit lets through and says so."""
    kernel.fill(make_tables(egress={"default": default}))
    expect(syn_to(kernel), verdict, Reason.DEFAULT, Tier.DEFAULT)


def test_isolation_denies_before_baseline_and_default(kernel: Kernel) -> None:
    """An isolated pod without a matching allow is denied, though Baseline and default would accept."""
    tables = make_tables(egress={"isolated": True, "default": Default.ALLOW, "any": 1 << BASELINE})
    kernel.fill(tables)
    expect(syn_to(kernel), Verdict.DENY, Reason.ISOLATED, Tier.NETWORK_POLICY)


@pytest.mark.parametrize(
    ("any_mask", "deny", "passes", "isolated", "verdict", "tier", "bit"),
    [
        (1 << 5 | 1 << 9, 1 << 9, 0, False, Verdict.ALLOW, Tier.ADMIN, 5),
        (1 << 5 | 1 << 9, 1 << 5, 0, False, Verdict.DENY, Tier.ADMIN, 5),
        (1 << 70 | 1 << 191, 1 << 70, 0, False, Verdict.DENY, Tier.ADMIN, 70),
        (1 << 5 | 1 << 9 | 1 << 200, 1 << 9, 1 << 5, False, Verdict.ALLOW, Tier.NETWORK_POLICY, 200),
        (1 << 5 | 1 << 447, 0, 1 << 5, True, Verdict.ALLOW, Tier.NETWORK_POLICY, 447),
        (1 << 448 | 1 << 449, 1 << 449, 0, False, Verdict.ALLOW, Tier.BASELINE, 448),
        (1 << 511, 1 << 511, 0, False, Verdict.DENY, Tier.BASELINE, 511),
        (1 << 5 | 1 << 511, 1 << 511, 1 << 5, False, Verdict.DENY, Tier.BASELINE, 511),
    ],
)
def test_the_first_rule_of_the_first_tier_that_decides(
    kernel: Kernel, any_mask: int, deny: int, passes: int, isolated: bool, verdict: Verdict, tier: Tier, bit: int
) -> None:
    """Admin's first match is final unless it passes; then any NetworkPolicy; then Baseline's first match."""
    kernel.fill(make_tables(egress={"any": any_mask, "deny": deny, "passes": passes, "isolated": isolated}))
    expect(syn_to(kernel), verdict, Reason.RULE, tier, bit)


def test_rules_are_counted_where_they_stand(kernel: Kernel) -> None:
    """A rule's counter is its place among the ruleset's rules, tier by tier."""
    kernel.fill(
        make_tables(
            egress={"any": 1 << 193, "counters": 10, "admin_rules": 3, "network_policy_rules": 4, "baseline_rules": 1}
        )
    )
    syn_to(kernel)
    counted = {int.from_bytes(key, "little"): value[0] for key, value in kernel.maps["rule_counters"].items()}
    assert counted == {10 + 3 + 1: 1}


# ---------------------------------------------------------------------------------------------------------------------
# Peers and ports


def test_identity_and_cidr_peers_are_one_union(kernel: Kernel) -> None:
    """A pod's address matches pod peers by its identity and CIDR peers by its address."""
    tables = make_tables(egress={"isolated": True})
    add_identity(tables, "10.1.0.1", 300, EGRESS, 1 << 200)
    add_cidr(tables, "10.1.0.0/16", 5, EGRESS, 1 << 199)
    kernel.fill(tables)
    expect(syn_to(kernel, "10.1.0.1"), Verdict.ALLOW, Reason.RULE, Tier.NETWORK_POLICY, 199)
    expect(syn_to(kernel, "10.1.0.2"), Verdict.ALLOW, Reason.RULE, Tier.NETWORK_POLICY, 199)
    expect(syn_to(kernel, "10.2.0.2"), Verdict.DENY, Reason.ISOLATED, Tier.NETWORK_POLICY)


@pytest.mark.parametrize("prefix", ["2001:db8::/32", "2001:db8::80/128", "::/0"])
def test_ipv6_prefixes(kernel: Kernel, prefix: str) -> None:
    """CIDR peers of either family are the longest prefix."""
    tables = make_tables(egress={"isolated": True})
    add_cidr(tables, prefix, 5, EGRESS, 1 << 199)
    kernel.fill(tables)
    assert syn_to(kernel, PEER6).passed
    assert not syn_to(kernel, PEER4).passed


@pytest.mark.parametrize("protocol", [packets.TCP, packets.UDP, packets.SCTP])
def test_ports_are_per_protocol(kernel: Kernel, protocol: int) -> None:
    """A port class belongs to one protocol and one port."""
    tables = make_tables(egress={"any": 1 << 200, "isolated": True})
    tables.ports.clear()
    slot = {packets.TCP: 0, packets.UDP: 1, packets.SCTP: 2}[protocol]
    tables.port_classes[slot * 65536 + 443] = 9
    tables.ports[(EGRESS, 9)] = 1 << 200
    kernel.fill(tables)
    bodies = {packets.TCP: packets.tcp, packets.UDP: packets.udp, packets.SCTP: packets.sctp}
    for other, body in bodies.items():
        for port in (442, 443):
            passed = kernel.from_pod(packets.ip(POD4, PEER4, other, body(50000, port))).passed
            assert passed == (other == protocol and port == 443)


@pytest.mark.parametrize("protocol", [1, 2, 47, 50, 255, 0])
def test_protocols_without_ports_have_a_class_each(kernel: Kernel, protocol: int) -> None:
    """ICMP, IGMP, GRE, ESP and the unknown are judged by their number."""
    tables = make_tables(egress={"any": 1 << 200, "isolated": True})
    tables.ports.clear()
    tables.port_classes[3 * 65536 + protocol] = 9
    tables.ports[(EGRESS, 9)] = 1 << 200
    kernel.fill(tables)
    assert kernel.from_pod(packets.ip(POD4, PEER4, protocol, packets.echo(8, 7))).passed
    assert not kernel.from_pod(packets.ip(POD4, PEER4, protocol ^ 4, packets.echo(8, 7) + bytes(20))).passed


def test_an_unknown_pod_is_never_the_world(kernel: Kernel) -> None:
    """An address in a pod range without an identity is denied, though a rule for all addresses would accept."""
    tables = make_tables(egress={"any": 1 << 200})
    tables.cidrs["10.244.0.0/16"] = CidrEntry(0, unknown_pod=True)
    tables.ipcache["10.244.0.9"] = 400
    kernel.fill(tables)
    expect(syn_to(kernel, "10.244.0.1"), Verdict.DENY, Reason.UNKNOWN_POD, Tier.NONE)
    assert syn_to(kernel, "10.244.0.9").passed and syn_to(kernel, "10.245.0.1").passed


# ---------------------------------------------------------------------------------------------------------------------
# Own node, DNS


def test_own_node_by_where_a_packet_was_made(kernel: Kernel) -> None:
    """Ingress: only what this node generated passes isolation; a forwarded packet with a node's source is judged."""
    tables = make_tables(ingress={"isolated": True})
    tables.own_addresses[PEER4] = 1
    kernel.fill(tables)
    expect(syn_from(kernel, ingress=0), Verdict.ALLOW, Reason.OWN_NODE, Tier.NONE)
    expect(syn_from(kernel, ingress=77), Verdict.DENY, Reason.ISOLATED, Tier.NETWORK_POLICY)


def test_own_node_by_address_on_egress(kernel: Kernel) -> None:
    """Egress to the own node's addresses passes isolation and default."""
    tables = make_tables(egress={"isolated": True})
    tables.own_addresses[PEER4] = 1
    kernel.fill(tables)
    expect(syn_to(kernel), Verdict.ALLOW, Reason.OWN_NODE, Tier.NONE)
    assert not syn_to(kernel, "192.0.2.81").passed


@pytest.mark.parametrize(("bit", "isolated", "passed"), [(3, True, False), (460, False, False), (460, True, True)])
def test_an_explicit_deny_reaches_the_own_node(kernel: Kernel, bit: int, isolated: bool, passed: bool) -> None:
    """A Deny in Admin, or in Baseline where it is walked, blocks the own node; isolation has no Baseline."""
    tables = make_tables(egress={"any": 1 << bit, "deny": 1 << bit, "isolated": isolated})
    tables.own_addresses[PEER4] = 1
    kernel.fill(tables)
    assert syn_to(kernel).passed == passed


def test_hairpin_passes(kernel: Kernel) -> None:
    """What left this interface and comes back to it went through the pod's own Service."""
    kernel.fill(make_tables(ingress={"isolated": True}))
    expect(syn_from(kernel, ingress=IFINDEX), Verdict.ALLOW, Reason.HAIRPIN, Tier.NONE)


def test_implicit_dns(kernel: Kernel) -> None:
    """A pod with domain rules may ask the trusted resolvers, not others, and not if Admin denies."""
    tables = make_tables(egress={"isolated": True, "dns_implicit": True})
    tables.resolvers[(RESOLVER, 53)] = TRUSTED
    kernel.fill(tables)
    expect(syn_to(kernel, RESOLVER, 53), Verdict.ALLOW, Reason.DNS_IMPLICIT, Tier.NETWORK_POLICY)
    assert not syn_to(kernel, RESOLVER, 54).passed and not syn_to(kernel, "10.96.0.11", 53).passed
    tables.rulesets[EGRESS] = replace(tables.rulesets[EGRESS], any=1, deny=1)
    kernel.fill(tables)
    expect(syn_to(kernel, RESOLVER, 53), Verdict.DENY, Reason.RULE, Tier.ADMIN, 0)


def test_a_baseline_deny_does_not_undo_implicit_dns(kernel: Kernel) -> None:
    """Implicit DNS stands in the NetworkPolicy tier."""
    tables = make_tables(egress={"dns_implicit": True, "any": 1 << BASELINE, "deny": 1 << BASELINE})
    tables.resolvers[(RESOLVER, 53)] = TRUSTED
    kernel.fill(tables)
    assert syn_to(kernel, RESOLVER, 53).passed and not syn_to(kernel).passed


def test_more_than_four_resolver_ports(kernel: Kernel) -> None:
    """Resolvers on any number of ports are found."""
    tables = make_tables(egress={"isolated": True, "dns_implicit": True})
    for port in range(5300, 5310):
        tables.resolvers[(RESOLVER, port)] = TRUSTED
    kernel.fill(tables)
    assert all(syn_to(kernel, RESOLVER, port).passed for port in range(5300, 5310))


@pytest.mark.parametrize("count", [1, 4, 5, 12])
def test_any_number_of_resolvers(kernel: Kernel, count: int) -> None:
    """Of one resolver and of more than the settings hold each is found by address and port, and nothing else is."""
    tables = make_tables(egress={"isolated": True, "dns_implicit": True})
    addresses = [f"{family}{number}" for number in range(1, count + 1) for family in ("10.96.0.", "fd00:96::")][:count]
    for address in addresses:
        tables.resolvers[(address, 53)] = TRUSTED
    kernel.fill(tables)
    assert all(syn_to(kernel, address, 53).passed for address in addresses)
    strangers = [("10.96.0.1", 54), ("10.96.0.77", 53), ("fd00:96::77", 53), ("10.96.0.0", 53)]
    assert not any(syn_to(kernel, *one).passed for one in strangers)


# ---------------------------------------------------------------------------------------------------------------------
# Services


def service(kind: FrontendShape, target: int = 0, port: int = 0, backend: str = "") -> Tables:
    tables = make_tables(egress={"isolated": True})
    tables.frontends[("10.96.1.1", 6, 80)] = FrontendEntry(int(kind), target, port, backend)
    return tables


def test_pods_are_matched_with_the_backends_and_their_port(kernel: Kernel) -> None:
    """A Service is judged as what stands behind it, at the backends' port."""
    tables = service(FrontendShape.UNIFORM, 300, 8080)
    tables.ports.clear()
    tables.port_classes[8080] = 9
    tables.ports[(EGRESS, 9)] = 1 << 200
    tables.classes[300] = 300
    tables.peers[(EGRESS, 300)] = 1 << 200
    kernel.fill(tables)
    assert syn_to(kernel, "10.96.1.1", 80).passed
    tables.port_classes = {80: 9}
    kernel.fill(tables)
    assert not syn_to(kernel, "10.96.1.1", 80).passed


def test_prefixes_are_matched_with_the_packet(kernel: Kernel) -> None:
    """A rule on the Service range is judged on the address and port in the packet."""
    tables = service(FrontendShape.UNIFORM, 300, 8080)
    tables.ports.clear()
    tables.port_classes[80] = 9
    tables.ports[(EGRESS, 9)] = 1 << 200
    add_cidr(tables, "10.96.0.0/16", 5, EGRESS, 1 << 200)
    kernel.fill(tables)
    assert syn_to(kernel, "10.96.1.1", 80).passed


def test_a_deny_on_the_backends_is_not_walked_around(kernel: Kernel) -> None:
    """The first bit of the union decides: a Deny by either rectangle counts."""
    tables = service(FrontendShape.UNIFORM, 300, 8080)
    tables.rulesets[EGRESS] = replace(tables.rulesets[EGRESS], deny=1)
    tables.classes[300] = 300
    tables.peers[(EGRESS, 300)] = 1
    add_cidr(tables, "10.96.0.0/16", 5, EGRESS, 1 << 200)
    kernel.fill(tables)
    expect(syn_to(kernel, "10.96.1.1", 80), Verdict.DENY, Reason.RULE, Tier.ADMIN, 0)


def test_a_backend_outside_is_matched_by_its_address(kernel: Kernel) -> None:
    """A Service without selector stands for an address: its prefixes count."""
    tables = service(FrontendShape.UNIFORM, 0, 8080, "203.0.113.9")
    add_cidr(tables, "203.0.113.0/24", 5, EGRESS, 1 << 200)
    kernel.fill(tables)
    assert syn_to(kernel, "10.96.1.1", 80).passed


def test_a_node_port_is_a_frontend_before_it_is_the_own_node(kernel: Kernel) -> None:
    """The own node's pass does not lead around a policy through a NodePort."""
    tables = service(FrontendShape.UNIFORM, 300, 8080)
    tables.own_addresses["10.96.1.1"] = 1
    kernel.fill(tables)
    expect(syn_to(kernel, "10.96.1.1", 80), Verdict.DENY, Reason.ISOLATED, Tier.NETWORK_POLICY)
    assert syn_to(kernel, "10.96.1.1", 81).passed


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (FrontendShape.EMPTY, Reason.NO_BACKEND),
        (FrontendShape.TOO_MANY, Reason.TOO_MANY_BACKENDS),
        (FrontendShape.MIXED, Reason.MIXED_BACKENDS),
    ],
)
def test_services_that_cannot_be_judged_are_shut(kernel: Kernel, kind: FrontendShape, reason: Reason) -> None:
    """No backend, too many, or a set without verdict: denied, each with its reason."""
    kernel.fill(service(kind, 5))
    assert syn_to(kernel, "10.96.1.1", 80).reason is reason


def test_a_mixed_set_has_its_verdict_written_down(kernel: Kernel) -> None:
    """The verdict over all backends was worked out beforehand, per ruleset."""
    tables = service(FrontendShape.MIXED, 5)
    tables.mixed[(EGRESS, 5)] = MixedEntry(Verdict.ALLOW, Reason.RULE, Tier.NETWORK_POLICY, 222)
    kernel.fill(tables)
    expect(syn_to(kernel, "10.96.1.1", 80), Verdict.ALLOW, Reason.RULE, Tier.NETWORK_POLICY, 222)


# ---------------------------------------------------------------------------------------------------------------------
# Names


def test_expired_names_say_so(kernel: Kernel) -> None:
    """A name whose time is over opens nothing, and is the reason."""
    tables = make_tables(egress={"isolated": True})
    add_pattern(tables, "a.test", 7, 1 << 200)
    kernel.fill(tables)
    kernel.forget()
    kernel.add_name(PEER4, 7, boot_seconds() - 5)
    result = kernel.from_pod(packets.ip(POD4, PEER4, packets.TCP, packets.tcp(50000, 443)))
    assert not result.passed and result.reason is Reason.NAME_EXPIRED
    assert result.event is not None and result.event.domain == 7


def test_an_expired_name_admits_what_was_under_way(kernel: Kernel) -> None:
    """Expiry binds first packets: a TCP packet without SYN is judged with expired names too."""
    tables = make_tables(egress={"isolated": True}, ingress={"isolated": True})
    add_pattern(tables, "a.test", 7, 1 << 200)
    kernel.fill(tables)
    kernel.forget()
    kernel.add_name(PEER4, 7, boot_seconds() - 5)
    assert kernel.from_pod(packets.ip(POD4, PEER4, packets.TCP, packets.tcp(50000, 443, packets.ACK))).passed


def test_names_do_not_open_ingress(kernel: Kernel) -> None:
    """Domain rules are egress only: a name of the source opens nothing."""
    tables = make_tables(ingress={"isolated": True})
    add_pattern(tables, "a.test", 7, 1 << 200, handle=INGRESS)
    kernel.fill(tables)
    kernel.forget()
    kernel.add_name(PEER4, 7, boot_seconds() + 60)
    assert not kernel.to_pod(packets.ip(PEER4, POD4, packets.TCP, packets.tcp(50000, 80))).passed


# ---------------------------------------------------------------------------------------------------------------------
# Audit


def test_the_shadow_ruleset_audits_and_opens_nothing(kernel: Kernel) -> None:
    """Enforced accepts and the shadow denies: it passes, as audit, with the rule that would have denied."""
    tables = make_tables(egress={"any": 1 << NETWORK_POLICY})
    tables.rulesets[10] = replace(tables.rulesets[EGRESS], hash="22" * 16, any=1 << ADMIN, deny=1 << ADMIN)
    tables.ports[(10, 0)] = (1 << 512) - 1
    tables.endpoints[1] = replace(tables.endpoints[1], egress_shadow=10)
    kernel.fill(tables)
    result = syn_to(kernel)
    expect(result, Verdict.AUDIT, Reason.RULE, Tier.ADMIN, ADMIN)
    assert result.event is not None and result.event.is_shadow and result.event.ruleset == 10
    tables.rulesets[EGRESS] = replace(tables.rulesets[EGRESS], any=0)
    tables.rulesets[10] = replace(tables.rulesets[10], any=1, deny=0)
    kernel.fill(tables)
    assert not syn_to(kernel).passed


# ---------------------------------------------------------------------------------------------------------------------
# Against the meaning of the tables

ADDRESSES = [
    "10.1.0.1",
    "10.1.0.2",
    "10.2.7.1",
    "192.0.2.1",
    "203.0.113.5",
    "2001:db8::1",
    "2001:db8:1::2",
    "10.96.1.1",
]
PREFIXES = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.0.2/32",
    "203.0.113.0/24",
    "::/0",
    "2001:db8::/32",
    "10.96.0.0/12",
]
PORTS = [53, 80, 443, 8080]
PROTOCOLS = [packets.TCP, packets.UDP, packets.SCTP, 1, 47]


def random_mask(rng: random.Random, bits: int = 512) -> int:
    """Few rules, in words and tiers of all kinds."""
    return sum(
        1 << bit for bit in {rng.choice((0, 1, 63, 64, 191, 192, 200, 447, 448, 511)) for _ in range(rng.randrange(4))}
    )


def random_tables(rng: random.Random) -> Tables:
    tables = make_tables()
    tables.ports.clear()
    for handle in (EGRESS, INGRESS):
        tables.rulesets[handle] = RulesetEntry(
            hash=f"{rng.getrandbits(128):032x}",
            any=random_mask(rng) if rng.random() < 0.4 else 0,
            deny=random_mask(rng) & ~(((1 << 256) - 1) << 192),
            passes=random_mask(rng) & ~(((1 << 256) - 1) << 192),
            default=rng.choice(list(Default)),
            isolated=rng.random() < 0.4,
            dns_implicit=rng.random() < 0.3,
            has_cidrs=True,
            has_identities=True,
            has_domains=handle == EGRESS,
            counters=0,
            admin_rules=192,
            network_policy_rules=256,
            baseline_rules=64,
        )
        for klass in range(4):
            tables.ports[(handle, klass)] = (
                random_mask(rng) | random_mask(rng) if rng.random() < 0.7 else (1 << 512) - 1
            )
    for address in ADDRESSES:
        if rng.random() < 0.5:
            tables.ipcache[address] = rng.randrange(256, 260)
    for identity in range(256, 260):
        tables.classes[identity] = identity - 250
        for handle in (EGRESS, INGRESS):
            tables.peers[(handle, identity - 250)] = random_mask(rng) or 1
    for number, prefix in enumerate(PREFIXES, start=1):
        if rng.random() < 0.5:
            tables.cidrs[prefix] = CidrEntry(rng.choice((0, CLASS_CIDR | number)), unknown_pod=rng.random() < 0.2)
            tables.peers[(rng.choice((EGRESS, INGRESS)), CLASS_CIDR | number)] = random_mask(rng) or 1 << 200
    for row in range(1, 5):
        tables.peers[(EGRESS, CLASS_DOMAIN | row)] = random_mask(rng) & ~tables.rulesets[EGRESS].deny or 1 << 201
    for protocol in PROTOCOLS:
        for port in PORTS:
            slot = {packets.TCP: 0, packets.UDP: 65536, packets.SCTP: 131072}.get(protocol)
            index = 3 * 65536 + protocol if slot is None else slot + port
            tables.port_classes[index] = rng.randrange(4)
    for address in ADDRESSES:
        for protocol in (packets.TCP, packets.UDP):
            if rng.random() < 0.3:
                kind = rng.choice(list(FrontendShape))
                backend = rng.choice(["", "203.0.113.5"]) if kind is FrontendShape.UNIFORM else ""
                target = rng.choice([1, 2]) if kind is FrontendShape.MIXED else rng.randrange(256, 260)
                tables.frontends[(address, protocol, rng.choice(PORTS))] = FrontendEntry(
                    int(kind), target if not backend else 0, rng.choice(PORTS), backend
                )
    tables.mixed[(EGRESS, 1)] = MixedEntry(rng.choice([Verdict.ALLOW, Verdict.DENY]), Reason.RULE, Tier.ADMIN, 3)
    tables.own_addresses[rng.choice(ADDRESSES)] = 1
    tables.resolvers[(rng.choice(ADDRESSES), 53)] = TRUSTED
    return tables


def make_frame(rng: random.Random, direction: Direction, address: str, protocol: int, port: int) -> bytes:
    own = POD6 if ":" in address else POD4
    source_port = rng.randrange(1024, 65536)
    bodies = {
        packets.TCP: packets.tcp(source_port, port),
        packets.UDP: packets.udp(source_port, port, b"x" * 3),
        packets.SCTP: packets.sctp(source_port, port),
        1: packets.echo(8, source_port),
        47: bytes(12),
    }
    pair = (own, address) if direction is Direction.EGRESS else (address, own)
    return packets.ip(*pair, protocol, bodies[protocol])


@pytest.mark.parametrize("seed", range(40))
def test_the_kernel_says_what_the_tables_mean(kernel: Kernel, seed: int) -> None:
    """For random tables and packets the kernel's verdict, reason, tier and rule are those of judge.py."""
    rng = random.Random(seed)
    tables = random_tables(rng)
    kernel.fill(tables)
    names = {address: frozenset(rng.sample(range(1, 5), rng.randrange(4))) for address in ADDRESSES}
    for address, rows in names.items():
        for row in rows:
            kernel.add_name(address, row, boot_seconds() + 60)
    for _ in range(150):
        kernel.forget_flows()
        direction = rng.choice(list(Direction))
        address, protocol, port = rng.choice(ADDRESSES), rng.choice(PROTOCOLS), rng.choice(PORTS)
        own_node = direction is Direction.INGRESS and rng.random() < 0.3
        frame = make_frame(rng, direction, address, protocol, port)
        number = port if protocol in (packets.TCP, packets.UDP, packets.SCTP) else 0
        rows = names[address] if direction is Direction.EGRESS else frozenset()
        expected = judge(
            tables, int(direction) + 1, Packet(direction, address, protocol, number, rows=rows, own_node=own_node)
        )
        if direction is Direction.EGRESS:
            result = kernel.from_pod(frame)
        else:
            result = kernel.to_pod(frame, ingress=0 if own_node else 77)
        told = result.event
        assert told is not None, (seed, direction, address, protocol, port, expected)
        found = (Verdict(told.verdict), Reason(told.reason), Tier(told.tier), told.bit)
        wanted = (expected.verdict, expected.reason, expected.tier, expected.bit)
        assert found == wanted, (seed, direction, address, protocol, port)
        assert result.passed == (expected.verdict is not Verdict.DENY)
