"""Each map that the agent fills, made tiny and overfilled: refused, named, counted, and the last good state stays."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from schemas import wire
from schemas.policy import (
    AddressRow,
    AnyPeer,
    Backend,
    CidrPeer,
    Config,
    DomainPeer,
    FrontendRow,
    IdentityRow,
    Peer,
    PodPeer,
    PortRange,
    Resolver,
    Ruleset,
    RulesetRule,
    RuleSource,
)
from schemas.terms import Action, AddressKind, Default, Direction, IdentityId, RulesetHash
from services.common.bpf import BpfMap
from services.nodeagent import loader
from services.nodeagent.binding import Link
from services.nodeagent.datapath import Datapath
from services.nodeagent.enforcer import Enforcer, Place
from services.nodeagent.links import PodLink, Snapshot
from services.nodeagent.numbers import Capacities
from services.nodeagent.plan import ORDER
from services.nodeagent.policystate import PolicyState
from tests.nodeagent.worlds import BINDINGS, EXTRA_ADDRESSES, NODE, make_state, with_rulesets

pytestmark = pytest.mark.kernel

TINY = {
    **{"ADDRESSES": 8, "PREFIXES": 64, "IDENTITIES": 8, "PEERS": 80, "PORTS": 8, "FRONTENDS": 8, "MIXED": 4},
    **{"DOMAINS": 8, "RESOLVERS": 4, "RULE_COUNTERS": 64, "RULESETS": 8},
    **{"FLOWS": 1024, "RESOLUTIONS": 64, "VERDICT_PAGES": 8, "RESOLUTION_PAGES": 8, "ENDPOINT_SLOTS": 4},
}
MANY = 70
"""More than any of these maps holds."""


@pytest.fixture(scope="module")
def pins() -> Iterator[dict[str, Path]]:
    root = Path(f"/sys/fs/bpf/yett-full-{id(TINY):x}")
    try:
        yield dict(loader.load(root, TINY).maps)
    finally:
        shutil.rmtree(root, ignore_errors=True)


HTTPS = (PortRange(protocol=6, first=443, last=443),)


def make_ruleset(*peers: Peer, ports: tuple[PortRange, ...] = HTTPS) -> Ruleset:
    """One rule with all these peers."""
    return ruleset_of([(peers, ports)])


def ruleset_of(rules: Iterable[tuple[tuple[Peer, ...], tuple[PortRange, ...]]]) -> Ruleset:
    made = tuple(
        RulesetRule(
            action=Action.ACCEPT,
            peers=peers,
            ports=ports,
            sources=(RuleSource(kind="NetworkPolicy", namespace="red", name="p", rule=f"egress[{number}]"),),
        )
        for number, (peers, ports) in enumerate(rules)
    )
    return Ruleset(direction=Direction.EGRESS, default=Default.DENY, network_policy=made, isolated=True)


def one_port(number: int) -> tuple[PortRange, ...]:
    return (PortRange(protocol=6, first=number, last=number),)


def small(number: int = 1, ruleset: Ruleset | None = None, **tables: object) -> PolicyState:
    """A state that fits, with these tables replaced."""
    identities = {IdentityId(256): IdentityRow(id=IdentityId(256), namespace="red", labels={"app": "v0"})}
    ingress = Ruleset(direction=Direction.INGRESS, default=Default.DENY)
    facts = make_state(**{"config": Config(), "identities": identities, **tables})
    state = with_rulesets(facts, ruleset or make_ruleset(CidrPeer(cidr="192.0.2.0/24")), ingress, number=number)
    (row,) = state.endpoints.values()
    endpoint = replace(row, addresses=(BINDINGS[7].link.addresses[0],))
    return make_state(state, number=number, endpoints={("red", "local"): endpoint})


def identities(count: int) -> dict[IdentityId, IdentityRow]:
    return {
        IdentityId(256 + n): IdentityRow(id=IdentityId(256 + n), namespace="red", labels={"app": f"v{n}"})
        for n in range(count)
    }


def addresses(count: int, kind: AddressKind = AddressKind.POD) -> dict[str, AddressRow]:
    return {
        f"10.3.0.{n}": AddressRow(
            address=f"10.3.0.{n}", kind=kind, identity=IdentityId(256), uid=f"u{n}", node=NODE, owner="red/x"
        )
        for n in range(1, count + 1)
    }


def frontends(count: int, *backends: Backend) -> dict[tuple[str, int, int], FrontendRow]:
    return {
        ("10.96.0.1", 6, n): FrontendRow(address="10.96.0.1", protocol=6, port=n, backends=backends)
        for n in range(1, count + 1)
    }


def many_rulesets(count: int) -> PolicyState:
    """Pods of this node, each with a ruleset of its own."""
    state = small(2)
    (row,) = state.endpoints.values()
    made = [make_ruleset(CidrPeer(cidr=f"192.0.2.{n}/32")) for n in range(count)]
    names = [RulesetHash(wire.hash_content(one)) for one in made]
    rows = {("red", f"p{n}"): replace(row, pod=f"p{n}", uid=f"u{n}", egress=name) for n, name in enumerate(names)}
    rulesets = {**state.rulesets, **dict(zip(names, made, strict=True))}
    return make_state(state, number=2, endpoints={**state.endpoints, **rows}, rulesets=rulesets)


TWO = (Backend(identity=IdentityId(256), port=80), Backend(identity=IdentityId(257), port=80))
ANY = (AnyPeer(),)

OVERFLOWS: dict[str, PolicyState] = {
    "ipcache": small(2, addresses=addresses(MANY)),
    "cidrs4": small(2, make_ruleset(*(CidrPeer(cidr=f"10.0.{n}.0/24") for n in range(MANY)))),
    "cidrs6": small(2, make_ruleset(*(CidrPeer(cidr=f"2001:db8:{n}::/48") for n in range(MANY)))),
    "classes": small(2, make_ruleset(PodPeer()), identities=identities(MANY)),
    "peers": small(2, make_ruleset(*(DomainPeer(pattern=f"n{n}.test") for n in range(100)))),
    "domains": small(2, make_ruleset(*(DomainPeer(pattern=f"n{n}.test") for n in range(20)))),
    "ports": small(2, ruleset_of((ANY, one_port(n)) for n in range(1, 20))),
    "rule_counters": small(2, ruleset_of(((CidrPeer(cidr=f"10.0.{n}.0/24"),), HTTPS) for n in range(MANY))),
    "frontends": small(2, frontends=frontends(MANY)),
    "mixed": small(2, frontends=frontends(7, *TWO), identities=identities(2)),
    "resolvers": small(2, config=Config(resolvers=tuple(Resolver(address=f"10.96.1.{n}") for n in range(MANY)))),
    "guard": small(2, config=Config(never_learn_cidrs=tuple(f"10.0.{n}.0/24" for n in range(MANY)))),
    "rulesets": many_rulesets(12),
}
"""What is full -> a state that has too much of it, and of nothing else."""


@pytest.mark.parametrize("full", list(OVERFLOWS))
def test_a_full_map_is_refused_named_and_counted(pins: dict[str, Path], tmp_path: Path, full: str) -> None:
    """The maps hold what they held, entry by entry; a problem names the map; what fits is enforced again after it."""
    datapath = open_empty(pins)
    enforcer = Enforcer(Place(NODE, "layout", tmp_path), datapath, Capacities(endpoint_ids=4, handles=8, counters=64))
    snapshot = Snapshot(tuple(PodLink(one.link) for one in BINDINGS.values()), EXTRA_ADDRESSES)

    def enforce(state: PolicyState) -> bool:
        return asyncio.run(enforcer.enforce(state, None, snapshot, no_names))

    try:
        assert enforce(small())
        before = read_all(pins)
        assert not enforce(OVERFLOWS[full])
        assert enforcer.failure is not None and enforcer.failure.object == f"map {full}"
        assert enforcer.counters["failed_changes"] == 1 and enforcer.state.number == 1
        assert {name: count for name, count in datapath.counters.items() if name.startswith("refused_")} == {
            f"refused_{full}": 1
        }
        assert read_all(pins) == before
        assert enforce(small(3, make_ruleset(CidrPeer(cidr="198.51.100.0/24"))))
        assert enforcer.failure is None and datapath.present_revision() == 3
    finally:
        datapath.close()


def test_more_pods_than_the_array_of_endpoints_has_numbers(pins: dict[str, Path], tmp_path: Path) -> None:
    """Counted as a write that the array refused, and the pods before go on."""
    datapath = open_empty(pins)
    enforcer = Enforcer(Place(NODE, "layout", tmp_path), datapath, Capacities(endpoint_ids=3, handles=8, counters=64))
    state = small()
    (row,) = state.endpoints.values()
    links = [make_link(n) for n in range(1, 4)]
    rows = {
        ("red", f"p{n}"): replace(row, pod=f"p{n}", uid=f"u{n}", addresses=link.addresses)
        for n, link in enumerate(links)
    }
    many = make_state(state, number=2, endpoints=rows)

    def enforce(which: PolicyState, count: int) -> bool:
        snapshot = Snapshot(tuple(PodLink(one) for one in links[:count]), EXTRA_ADDRESSES)
        return asyncio.run(enforcer.enforce(which, None, snapshot, no_names))

    try:
        assert enforce(many, 2)
        before = read_all(pins)
        assert not enforce(many, 3)
        assert enforcer.failure is not None and enforcer.failure.object == "map endpoints"
        assert datapath.counters["refused_endpoints"] == 1 and read_all(pins) == before
    finally:
        datapath.close()


def make_link(number: int) -> Link:
    return Link(number, f"veth{number}", (f"10.1.2.{number}",), ("169.254.1.1",), life=f"life-{number}")


async def no_names(_tables: object, _state: object) -> None:
    """No names to wait for."""


def open_empty(pins: dict[str, Path]) -> Datapath:
    for name in ORDER:
        with BpfMap(pins[name]) as one:
            one.delete_many(one.keys())
    datapath = Datapath(pins)
    datapath.open()
    return datapath


def read_all(pins: dict[str, Path]) -> dict[str, dict[bytes, bytes]]:
    """Every map that decides a verdict, as the kernel has it."""
    found = {}
    for name in ORDER:
        with BpfMap(pins[name]) as one:
            found[name] = dict(one.items())
    return found
