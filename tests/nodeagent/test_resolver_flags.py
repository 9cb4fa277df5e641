"""What a node makes of the trusted resolvers: where the answers of each must come from, and whose are not believed."""

from __future__ import annotations

import pytest

from schemas.policy import AddressRow, Config, FrontendRow, IdentityRow, Resolver
from schemas.terms import AddressKind, FrontendKind, IdentityId, NodeName
from services.nodeagent.numbers import make_spaces
from services.nodeagent.policystate import PolicyState
from services.nodeagent.wanted import RESOLVER_NODE_LOCAL, RESOLVER_OUTSIDE, RESOLVER_TRUSTED, Wanted
from tests.nodeagent.worlds import NODE, NODE_ADDRESS, make_state

SERVICE, POD, CLAIMED, GATEWAY, ELSEWHERE = "10.96.0.10", "10.1.2.3", "203.0.113.53", "10.1.0.1", "10.0.0.6"
DISTRUSTED = 0


def make_world(config: Config) -> PolicyState:
    """The node, another one, a pod; a DNS Service, and one that shows addresses to the outside."""
    nodes, pod = IdentityId(256), IdentityId(257)
    identities = {
        nodes: IdentityRow(id=nodes, kind=AddressKind.NODE, namespace="", labels={}),
        pod: IdentityRow(id=pod, kind=AddressKind.POD, namespace="red", labels={}),
    }
    hosts = {NODE_ADDRESS: NODE, ELSEWHERE: NodeName("elsewhere")}
    addresses = {
        address: AddressRow(address=address, kind=AddressKind.NODE, identity=nodes, uid=node, node=node)
        for address, node in hosts.items()
    }
    addresses[POD] = AddressRow(address=POD, identity=pod, uid="pod", owner="red/pod", node=NODE)
    claims = [
        FrontendRow(address=SERVICE, protocol=17, port=53, service="kube-system/kube-dns"),
        FrontendRow(address=CLAIMED, protocol=6, port=53, kind=FrontendKind.EXTERNAL_IP, service="red/thief"),
        FrontendRow(address=POD, protocol=17, port=53, kind=FrontendKind.LOAD_BALANCER, service="red/thief"),
        FrontendRow(address=ELSEWHERE, protocol=17, port=53, kind=FrontendKind.HOST_PORT, service="red/thief"),
    ]
    frontends = {(row.address, row.protocol, row.port): row for row in claims}
    return make_state(config=config, identities=identities, addresses=addresses, frontends=frontends)


@pytest.mark.parametrize(
    ("address", "port", "flags"),
    [
        pytest.param(SERVICE, 53, RESOLVER_TRUSTED, id="a cluster address is its Service's"),
        pytest.param(POD, 5353, RESOLVER_TRUSTED, id="a pod at a port that nobody claims"),
        pytest.param("fd00::9", 5353, RESOLVER_TRUSTED, id="plain"),
        pytest.param(NODE_ADDRESS, 53, RESOLVER_TRUSTED | RESOLVER_NODE_LOCAL, id="the node itself"),
        pytest.param(ELSEWHERE, 5353, RESOLVER_TRUSTED, id="another node"),
        pytest.param(GATEWAY, 53, RESOLVER_TRUSTED | RESOLVER_NODE_LOCAL, id="an address that the node's links tell"),
        pytest.param("169.254.20.10", 53, RESOLVER_TRUSTED | RESOLVER_NODE_LOCAL, id="NodeLocal DNSCache"),
        pytest.param("fe80::53", 53, RESOLVER_TRUSTED | RESOLVER_NODE_LOCAL, id="link-local"),
        pytest.param(CLAIMED, 53, DISTRUSTED, id="claimed as an external address"),
        pytest.param(CLAIMED, 5353, RESOLVER_TRUSTED, id="claimed at another port"),
        pytest.param(POD, 53, DISTRUSTED, id="a pod, claimed as a load balancer's"),
        pytest.param(ELSEWHERE, 53, DISTRUSTED, id="a node, claimed as a pod's hostPort"),
    ],
)
@pytest.mark.parametrize(("share", "outside"), [("cluster", False), ("cluster", True), ("off", False)])
def test_each_resolver_has_its_flags_or_is_a_problem(
    address: str, port: int, flags: int, share: str, outside: bool
) -> None:
    """What the node has answers from this node alone; from outside, or where nothing is shared, for the asker alone;
    what a Service or hostPort shows to the outside is not believed, and said to be so."""
    config = Config(resolvers=(Resolver(address=address, port=port, outside=outside),), share=share)
    wanted = Wanted(NODE, make_spaces())
    wanted.prepare(make_world(config), None, {}, frozenset({GATEWAY}))
    told = [(one.path, one.severity, one.message) for one in wanted.problems.values()]
    if flags == DISTRUSTED:
        assert wanted.tables.resolvers == {}
        assert told == [("resolvers", "warning", f"{address} is claimed by Service red/thief: not trusted")]
    else:
        for_asker = outside or share == "off"
        assert wanted.tables.resolvers == {(address, port): flags | RESOLVER_OUTSIDE * for_asker}
        assert told == []


def test_a_claim_that_ends_is_no_problem_any_more() -> None:
    """The resolver is trusted at the next state, and nothing is left to say."""
    config = Config(resolvers=(Resolver(address=CLAIMED),))
    wanted, state = Wanted(NODE, make_spaces()), make_world(config)
    wanted.prepare(state, None, {})
    assert wanted.problems and not wanted.tables.resolvers
    key = (CLAIMED, 6, 53)
    after = make_state(state, frontends={key: None})
    wanted.prepare(after, {"frontends": frozenset({key})}, {})
    assert not wanted.problems and wanted.tables.resolvers == {(CLAIMED, 53): RESOLVER_TRUSTED}
