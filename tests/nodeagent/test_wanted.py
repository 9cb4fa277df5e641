"""The wanted tables say what the rows say."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.policy import (
    AddressRow,
    AnyPeer,
    Backend,
    FrontendRow,
    IdentityRow,
    NamespaceRow,
    Peer,
    PodPeer,
    PortRange,
    Ruleset,
    RulesetRule,
    RuleSource,
)
from schemas.terms import Action, AddressKind, Default, Direction, FrontendKind, IdentityId
from services.nodeagent.fronts import FrontKey
from services.nodeagent.judge import Conclusion, Packet, judge
from services.nodeagent.numbers import make_spaces
from services.nodeagent.patterns import find_node
from services.nodeagent.policystate import PolicyState, Table
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


def make_wanted(state: PolicyState) -> Wanted:
    wanted = Wanted(NODE, make_spaces())
    wanted.prepare(state, None, BINDINGS, EXTRA_ADDRESSES)
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
)
def test_tables_equal_the_definition(state, egress, ingress, names) -> None:
    """For any facts, rulesets and packet, the tables' verdict, reason, tier and rule are those of the rows."""
    state = with_rulesets(state, egress, ingress)
    assert_equal_everywhere(make_wanted(state), state, egress, ingress, names)


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
