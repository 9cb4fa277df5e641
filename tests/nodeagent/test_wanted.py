"""The wanted tables say what the rows say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from schemas.policy import (
    AddressRow,
    AnyPeer,
    Backend,
    Config,
    FrontendRow,
    IdentityRow,
    NamespaceRow,
    Peer,
    PodPeer,
    PortRange,
    Resolver,
    Ruleset,
    RulesetRule,
    RuleSource,
)
from schemas.terms import Action, AddressKind, Default, Direction, FrontendKind, IdentityId, Reason
from services.nodeagent.fronts import FrontKey
from services.nodeagent.judge import Conclusion, Packet, judge
from services.nodeagent.mapcodec import encode_tables
from services.nodeagent.numbers import make_spaces
from services.nodeagent.patterns import find_node
from services.nodeagent.plan import Kind, plan_changes
from services.nodeagent.policystate import PolicyState, Table
from services.nodeagent.tables import RESOLVER_NODE_LOCAL, RESOLVER_OUTSIDE, RESOLVER_TRUSTED
from services.nodeagent.wanted import Wanted
from tests.nodeagent.definition import evaluate
from tests.nodeagent.worlds import (
    ADDRESSES,
    BINDINGS,
    EXTRA_ADDRESSES,
    NAMES,
    NODE,
    NODE_ADDRESS,
    RESOLVER,
    SERVICE,
    facts,
    make_state,
    rulesets,
    with_rulesets,
)

REMOTES = (*ADDRESSES, NODE_ADDRESS, SERVICE, RESOLVER.address, *EXTRA_ADDRESSES)
PROBES = ((6, 80), (6, 443), (6, 53), (17, 53), (17, 9), (132, 80), (1, 0), (58, 0), (47, 0))


def make_wanted(state: PolicyState, own_resolvers: frozenset[str] = frozenset()) -> Wanted:
    wanted = Wanted(NODE, make_spaces())
    wanted.prepare(state, None, BINDINGS, EXTRA_ADDRESSES, own_resolvers=own_resolvers)
    wanted.finish(state)
    return wanted


def judge_by_tables(wanted: Wanted, packet: Packet, names: frozenset[str]) -> Conclusion:
    """The kernel's part: names become the rows of their longest matches."""
    tables = wanted.tables
    nodes = {find_node(name, tables.domains.keys()) for name in names} - {""}
    rows = frozenset(tables.domains[node] for node in nodes)
    endpoint = tables.endpoints[7]
    handle = endpoint.egress if packet.direction is Direction.EGRESS else endpoint.ingress
    return judge(
        tables,
        handle,
        Packet(packet.direction, packet.remote, packet.protocol, packet.port, rows, packet.own_node),
    )


def assert_equal_everywhere(wanted: Wanted, state: PolicyState, egress: Ruleset, ingress: Ruleset, names) -> None:
    for remote in REMOTES:
        for protocol, port in PROBES:
            for ruleset, own_node in ((egress, False), (ingress, False), (ingress, True)):
                packet = Packet(ruleset.direction, remote, protocol, port, own_node=own_node)
                expected = evaluate(state, ruleset, remote, protocol, port, names, own_node)
                assert judge_by_tables(wanted, packet, names) == expected, (packet, names)


@settings(max_examples=150, deadline=None)
@given(
    state=facts(),
    egress=rulesets(),
    ingress=rulesets(direction=Direction.INGRESS),
    names=st.frozensets(st.sampled_from(NAMES), max_size=2),
    is_own=st.booleans(),
)
def test_tables_equal_the_definition(state, egress, ingress, names, is_own) -> None:
    """For any facts, rulesets and packet, the tables' verdict, reason, tier and rule are those of the rows; a resolver
    that the node has by itself is judged as one of the settings."""
    state = with_rulesets(state, egress, ingress)
    wanted = make_wanted(*own_resolvers_of(state) if is_own else (state,))
    assert_equal_everywhere(wanted, state, egress, ingress, names)


def own_resolvers_of(state: PolicyState) -> tuple[PolicyState, frozenset[str]]:
    """The state without resolvers, and those: as if the node had found them by itself."""
    found = frozenset(one.address for one in state.config.resolvers)
    return replace(state, config=structs.replace(state.config, resolvers=())), found


def test_a_services_verdict_follows_a_cache_that_comes_and_goes() -> None:
    """No row changes with it, and that of a Service with unlike backends was worked out beforehand."""
    identities = {
        IdentityId(number): IdentityRow(id=IdentityId(number), kind=AddressKind.POD, namespace="red")
        for number in (256, 257)
    }
    backends = tuple(Backend(identity=one, port=53) for one in identities)
    front = FrontendRow(address=RESOLVER.address, protocol=6, port=53, backends=backends)
    state = make_state(
        namespaces={"red": NamespaceRow(name="red")},
        identities=identities,
        frontends={(RESOLVER.address, 6, 53): front},
    )
    egress = Ruleset(direction=Direction.EGRESS, default=Default.ALLOW, isolated=True, dns_implicit=True)
    state = with_rulesets(state, egress, Ruleset(direction=Direction.INGRESS, default=Default.ALLOW))
    wanted = make_wanted(state)
    reasons = []
    for own in (frozenset[str](), frozenset({RESOLVER.address}), frozenset[str]()):
        wanted.prepare(state, {}, BINDINGS, EXTRA_ADDRESSES, own_resolvers=own)
        wanted.finish(state)
        asked = Packet(Direction.EGRESS, RESOLVER.address, 6, 53)
        reasons.append(judge_by_tables(wanted, asked, frozenset()).reason)
    assert reasons == [Reason.ISOLATED, Reason.DNS_IMPLICIT, Reason.ISOLATED]


CACHE, CACHE6, KUBE_DNS = "169.254.20.10", "fd00:20::10", "10.96.0.10"
LOCAL = RESOLVER_TRUSTED | RESOLVER_NODE_LOCAL


def trust(
    wanted: Wanted, config: Config, *own: str, claims: tuple[FrontendRow, ...] = ()
) -> dict[tuple[str, int], int]:
    """What is trusted under these settings where the node's cache has these addresses."""
    keyed = {(one.address, one.protocol, one.port): one for one in claims}
    state = PolicyState(config=config, frontends=Table[FrontKey, FrontendRow]().with_changes(keyed))
    wanted.prepare(state, None, {}, own_resolvers=frozenset(own))
    return dict(wanted.tables.resolvers)


def test_the_nodes_own_cache_is_trusted_while_it_is_there_and_from_this_node_alone() -> None:
    """Besides the resolvers of the settings, by each of its addresses, at port 53."""
    wanted, config = Wanted(NODE, make_spaces()), Config(resolvers=(Resolver(address=KUBE_DNS),))
    of_settings = {(KUBE_DNS, 53): RESOLVER_TRUSTED}
    assert trust(wanted, config, CACHE, CACHE6) == of_settings | {(CACHE, 53): LOCAL, (CACHE6, 53): LOCAL}
    assert trust(wanted, config, CACHE6) == of_settings | {(CACHE6, 53): LOCAL}
    assert trust(wanted, config) == of_settings


def test_what_the_settings_say_of_the_caches_address_stands() -> None:
    """The cluster DNS Service's own, which the cache has too, is answered from elsewhere when the cache is away."""
    named = (Resolver(address=KUBE_DNS), Resolver(address=CACHE, outside=True))
    found = trust(Wanted(NODE, make_spaces()), Config(resolvers=named), KUBE_DNS, CACHE)
    assert found == {(KUBE_DNS, 53): RESOLVER_TRUSTED, (CACHE, 53): LOCAL | RESOLVER_OUTSIDE}


def test_a_cache_that_a_service_claims_is_not_trusted() -> None:
    """An external address is its Service's owner's to choose; the status says whose it is."""
    wanted = Wanted(NODE, make_spaces())
    claim = FrontendRow(address=CACHE, protocol=6, port=53, kind=FrontendKind.EXTERNAL_IP, service="t/thief")
    assert trust(wanted, Config(), CACHE, claims=(claim,)) == {}
    assert [one.message for one in wanted.problems.values()] == [f"{CACHE} is claimed by Service t/thief: not trusted"]
    assert trust(wanted, Config(), CACHE) == {(CACHE, 53): LOCAL} and not wanted.problems


@settings(max_examples=10, deadline=None)
@given(state=facts(), egress=rulesets(), ingress=rulesets(direction=Direction.INGRESS))
def test_where_nothing_is_shared_the_cache_serves_the_asker_alone(state, egress, ingress) -> None:
    """And the endpoint is told to look for names of its own, though the settings name no resolver."""
    state = with_rulesets(replace(state, config=Config(share="off")), egress, ingress)
    wanted = make_wanted(state, frozenset({CACHE}))
    assert wanted.tables.resolvers == {(CACHE, 53): LOCAL | RESOLVER_OUTSIDE}
    assert wanted.tables.endpoints[7].scoped_names
    assert not make_wanted(state).tables.endpoints[7].scoped_names


def test_live_flows_are_judged_again_when_the_cache_comes_or_goes() -> None:
    """The epoch is bumped, though no row of the bus changed."""
    wanted = Wanted(NODE, make_spaces())
    states = []
    for own in ((), (CACHE,), ()):
        trust(wanted, Config(), *own)
        states.append(encode_tables(wanted.tables, endpoint_slots=8, regions={}))
    kinds = [[one.kind for one in plan_changes(new, old)] for old, new in pairwise(states)]
    assert all(found[-1] is Kind.BUMP for found in kinds), kinds


def test_of_two_backends_that_are_allowed_the_rule_judged_first_is_told() -> None:
    """Which of a Service's backends stands first in its row changes nothing in the story of a verdict."""
    unknown, pod = IdentityId(256), IdentityId(257)
    source = RuleSource(kind="NetworkPolicy", namespace="red", name="p", rule="egress[0]")
    ports = (PortRange(protocol=6, first=0, last=100),)

    def allow(peer: Peer) -> RulesetRule:
        return RulesetRule(action=Action.ACCEPT, peers=(peer,), ports=ports, sources=(source,))

    egress = Ruleset(
        direction=Direction.EGRESS, default=Default.DENY, network_policy=(allow(PodPeer()), allow(AnyPeer()))
    )
    ingress = Ruleset(direction=Direction.INGRESS, default=Default.DENY)
    told = set()
    for order in ((unknown, pod), (pod, unknown)):
        front = FrontendRow(
            address=SERVICE, protocol=6, port=80, backends=tuple(Backend(identity=one, port=80) for one in order)
        )
        state = make_state(
            namespaces={"red": NamespaceRow(name="red", labels={})},
            identities={pod: IdentityRow(id=pod, kind=AddressKind.POD, namespace="red", labels={})},
            frontends={(SERVICE, 6, 80): front},
        )
        state = with_rulesets(state, egress, ingress)
        wanted = make_wanted(state)
        expected = evaluate(state, egress, SERVICE, 6, 80)
        assert judge_by_tables(wanted, Packet(Direction.EGRESS, SERVICE, 6, 80), frozenset()) == expected
        told.add(expected.bit)
    assert told == {192}


def test_a_node_port_is_judged_on_the_pods_gateways_too() -> None:
    """A port of the node answers on every address of it: none is a way around what stands behind the port."""
    own, gateway = "192.0.2.1", "169.254.1.1"
    node = AddressRow(address=own, kind=AddressKind.NODE, identity=IdentityId(5), uid="n", owner=NODE, node=NODE)
    rows = [
        FrontendRow(address=own, protocol=6, port=30080, kind=FrontendKind.NODE_PORT),
        FrontendRow(address="192.0.2.2", protocol=6, port=30081, kind=FrontendKind.NODE_PORT),
    ]
    state = PolicyState(
        addresses=Table[str, AddressRow]().with_changes({own: node}),
        frontends=Table[FrontKey, FrontendRow]().with_changes({(one.address, 6, one.port): one for one in rows}),
    )

    def on_gateway() -> set[int]:
        return {port for address, _, port in wanted.tables.frontends if address == gateway}

    wanted = Wanted(NODE, make_spaces())
    wanted.prepare(state, None, {}, frozenset({gateway, "fe80::1"}))
    assert on_gateway() == {30080}
    wanted.prepare(state, None, {}, frozenset({gateway}))
    assert on_gateway() == {30080}
    gone = (own, 6, 30080)
    state = replace(state, frontends=state.frontends.with_changes({gone: None}))
    wanted.prepare(state, {"frontends": frozenset({gone})}, {}, frozenset({gateway}))
    assert on_gateway() == set()
