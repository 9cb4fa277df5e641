"""The wanted tables say what the rows say."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.policy import Ruleset
from schemas.terms import Direction
from services.nodeagent.judge import Conclusion, Packet, judge
from services.nodeagent.numbers import make_spaces
from services.nodeagent.patterns import find_node
from services.nodeagent.policystate import PolicyState
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
