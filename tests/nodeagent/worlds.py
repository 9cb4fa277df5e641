"""Random small clusters for the agent's tests: facts, rulesets, endpoints, packets; and the state that they make.

Everything is drawn from small pools, so that rules and packets meet often.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from schemas import wire
from schemas.policy import (
    AddressRow,
    AnyPeer,
    Backend,
    CidrPeer,
    Config,
    DomainPeer,
    EndpointRow,
    FrontendRow,
    IdentityRow,
    NamespaceRow,
    NodePeer,
    Peer,
    PodPeer,
    PortRange,
    Requirement,
    Resolver,
    Revision,
    Ruleset,
    RulesetRule,
    RuleSource,
    Selector,
)
from schemas.selectors import NAMESPACE_NAME_LABEL
from schemas.terms import (
    ANY_PROTOCOL,
    Action,
    AddressKind,
    Default,
    Direction,
    IdentityId,
    NodeName,
    RevisionNumber,
    RulesetHash,
)
from services.nodeagent.binding import Binding, Link
from services.nodeagent.policystate import PolicyState

NODE = NodeName("node-a.example")
KEYS = ("app", "tier")
VALUES = ("a", "b")
NAMESPACES = ("red", "blue")
CIDRS = (
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "192.0.2.0/24",
    "2001:db8::/32",
    "::/0",
)
ADDRESSES = ("10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.9.9", "192.0.2.7", "8.8.8.8", "2001:db8::7", "2a00::1")
PATTERNS = ("example.com", "*.example.com", "*.com", "a.example.com", "*.a.example.com")
NAMES = ("example.com", "a.example.com", "b.a.example.com", "other.com", "example.org")
NODE_ADDRESS = "10.0.0.5"
SERVICE = "10.96.0.1"
RESOLVER = Resolver(address="10.96.0.10")

_labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2)


@st.composite
def selectors(draw: st.DrawFn, keys: tuple[str, ...] = KEYS) -> Selector:
    count = draw(st.integers(0, 2))
    found = []
    for _ in range(count):
        operator = draw(st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist")))
        values = tuple(sorted(draw(st.sets(st.sampled_from(VALUES), min_size=1)))) if operator.endswith("In") else ()
        found.append(Requirement(key=draw(st.sampled_from(keys)), operator=operator, values=values))
    return Selector(requirements=tuple(found))


@st.composite
def cidr_peers(draw: st.DrawFn) -> CidrPeer:
    cidr = draw(st.sampled_from(CIDRS))
    excepts = draw(st.sets(st.sampled_from(CIDRS), max_size=2))
    return CidrPeer(cidr=cidr, excepts=tuple(sorted(excepts - {cidr})))


peers: st.SearchStrategy[Peer] = st.one_of(
    st.just(AnyPeer()),
    st.builds(PodPeer, namespaces=selectors(keys=("team",)), pods=selectors()),
    st.builds(NodePeer, nodes=selectors()),
    cidr_peers(),
    st.builds(DomainPeer, pattern=st.sampled_from(PATTERNS)),
)


@st.composite
def port_ranges(draw: st.DrawFn) -> PortRange:
    protocol = draw(st.sampled_from((6, 17, 132, 1, 58, ANY_PROTOCOL)))
    if protocol not in (6, 17, 132):
        return PortRange(protocol=protocol)
    first = draw(st.sampled_from((0, 53, 80, 443)))
    return PortRange(protocol=protocol, first=first, last=draw(st.sampled_from((first, max(first, 100), 600))))


@st.composite
def rules(draw: st.DrawFn, actions: tuple[Action, ...]) -> RulesetRule:
    return RulesetRule(
        action=draw(st.sampled_from(actions)),
        peers=tuple(draw(st.lists(peers, max_size=3))),
        ports=tuple(draw(st.lists(port_ranges(), max_size=2))),
        sources=(RuleSource(kind="NetworkPolicy", namespace="red", name="p", rule="egress[0]"),),
    )


@st.composite
def rulesets(draw: st.DrawFn, direction: Direction = Direction.EGRESS) -> Ruleset:
    all_actions = (Action.ACCEPT, Action.DENY, Action.PASS)
    return Ruleset(
        direction=direction,
        default=draw(st.sampled_from(Default)),
        admin=tuple(draw(st.lists(rules(all_actions), max_size=3))),
        network_policy=tuple(draw(st.lists(rules((Action.ACCEPT,)), max_size=3))),
        baseline=tuple(draw(st.lists(rules(all_actions), max_size=2))),
        isolated=draw(st.booleans()),
        dns_implicit=draw(st.booleans()),
    )


@st.composite
def facts(draw: st.DrawFn) -> PolicyState:
    """Namespaces, identities, addresses, Services and configuration; no rulesets and no endpoints."""
    namespaces = {
        name: NamespaceRow(
            name=name,
            labels={NAMESPACE_NAME_LABEL: name, **draw(st.dictionaries(st.just("team"), st.sampled_from(VALUES)))},
        )
        for name in draw(st.sets(st.sampled_from(NAMESPACES)))
    }
    identities = {
        IdentityId(256 + number): IdentityRow(
            id=IdentityId(256 + number),
            kind=kind,
            namespace=draw(st.sampled_from(NAMESPACES)) if kind is AddressKind.POD else "",
            labels=draw(_labels),
        )
        for number, kind in enumerate(draw(st.lists(st.sampled_from(AddressKind), min_size=1, max_size=5)))
    }
    addresses = {
        address: AddressRow(
            address=address, identity=draw(st.sampled_from(sorted(identities))), uid=f"uid-{address}", owner="red/x"
        )
        for address in draw(st.sets(st.sampled_from(ADDRESSES)))
    }
    addresses[NODE_ADDRESS] = AddressRow(
        address=NODE_ADDRESS, kind=AddressKind.NODE, identity=min(identities), uid="node", node=NODE
    )
    config = Config(
        resolvers=draw(st.sampled_from(((), (RESOLVER,)))),
        pod_cidrs=draw(st.sampled_from(((), ("10.1.0.0/16",)))),
        service_cidrs=("10.96.0.0/16",),
    )
    backends = st.builds(
        Backend, identity=st.sampled_from(sorted(identities)), port=st.sampled_from((53, 80, 8080)), address=st.just("")
    )
    frontends = {}
    for address, port in ((SERVICE, 80), (SERVICE, 443), (RESOLVER.address, 53)):
        if draw(st.booleans()):
            chosen = draw(st.sets(backends, max_size=3))
            row = FrontendRow(
                address=address,
                protocol=6,
                port=port,
                backends=tuple(sorted(chosen, key=lambda one: (one.identity, one.port))),
            )
            frontends[(address, 6, port)] = row
    return make_state(
        config=config, namespaces=namespaces, identities=identities, addresses=addresses, frontends=frontends
    )


def make_state(base: PolicyState | None = None, *, number: int = 1, **tables: object) -> PolicyState:
    """A state with these tables (plain dicts) replaced."""
    base = base or PolicyState()
    replaced: dict[str, object] = {}
    for name, content in tables.items():
        if isinstance(content, dict):
            old = getattr(base, name)
            changes = {**dict.fromkeys(old), **content}
            replaced[name] = old.with_changes(changes)
        else:
            replaced[name] = content
    revision = Revision(epoch="e", number=RevisionNumber(number), floor=RevisionNumber(0), digest="")
    return replace(base, revision=revision, **replaced)  # type: ignore[arg-type]


def with_rulesets(state: PolicyState, egress: Ruleset, ingress: Ruleset, *, number: int = 1) -> PolicyState:
    """One local pod, governed by these two."""
    names = [RulesetHash(wire.hash_content(one)) for one in (egress, ingress)]
    row = EndpointRow(
        node=NODE,
        namespace="red",
        pod="local",
        uid="uid-local",
        identity=min(state.identities),
        egress=names[0],
        ingress=names[1],
    )
    return make_state(
        state,
        number=number,
        rulesets=dict(zip(names, (egress, ingress), strict=True)),
        endpoints={("red", "local"): row},
    )


BINDINGS = {7: Binding(Link(7, "veth-local", ("10.1.2.200",), ("169.254.1.1",)), "uid-local")}
EXTRA_ADDRESSES = frozenset({"169.254.1.1"})
