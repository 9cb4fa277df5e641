"""Two roads to one answer, to their ends: the oracle reads policies, the kernel reads maps.

Kubernetes objects -> controller's rows -> agent's tables -> bytes -> programs -> a packet's verdict, compared with what
``evaluate`` says of the same objects and the same packet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from msgspec import structs

from schemas import wire
from schemas.policy import Config, EndpointRow, Revision, RuleSource
from schemas.terms import FIRST_BIT, Direction, Reason, RevisionNumber, Tier, Verdict
from services.controller.policy import names
from services.controller.policy.evaluate import Oracle
from services.controller.policy.model import Answer, Packet, Pod
from services.controller.world import State
from services.nodeagent.binding import Binding, Link
from services.nodeagent.events import VerdictRecord
from services.nodeagent.judge import NO_BIT
from services.nodeagent.numbers import make_spaces
from services.nodeagent.patterns import find_node
from services.nodeagent.policystate import PolicyState, Table, find_kind
from services.nodeagent.tables import Tables
from services.nodeagent.wanted import Limits, Wanted
from tests.bpf import packets
from tests.bpf.prog_run import IFINDEX, Kernel, Result, boot_seconds
from tests.strategies import AT, Scene, seeded_scene

pytestmark = pytest.mark.kernel
SEEDS = (*range(30), 57, 101, 108, 158, 246, 272)
"""The first ones, and some in which a name's time is over, or DNS is implied."""
MARGIN_SECONDS = 2
DNS_PORT = 53
EVERY_EVENT = 0xFFFFFFFF
"""Events a second: each packet is asked for its story, however fast the machine asks."""


def make_state(objects: Iterable[dict[str, object]]) -> State:
    state = State()
    for one in objects:
        state.upsert(one)
    return state


def read_rows(rows: Mapping[str, bytes]) -> PolicyState:
    """The agent's state as of these rows, all nodes' endpoints included."""
    tables: dict[str, dict[object, object]] = {}
    config = Config()
    for subject, body in rows.items():
        kind = find_kind(subject)
        row = wire.decode(subject, body)
        if isinstance(row, Config):
            config = row
        elif kind is not None:
            tables.setdefault(kind.name, {})[kind.key(subject.removeprefix(kind.prefix))] = row
    made = {name: Table[object, object]().with_changes(content) for name, content in tables.items()}
    revision = Revision(epoch="e", number=RevisionNumber(1), floor=RevisionNumber(0), digest="")
    return PolicyState(revision=revision, config=config, **made)  # type: ignore[arg-type]  # by table name


def build_tables(state: PolicyState, endpoint: EndpointRow, own_resolvers: frozenset[str] = frozenset()) -> Wanted:
    """What the agent of the endpoint's node wants, with the endpoint behind the interface under test."""
    wanted = Wanted(endpoint.node, make_spaces(), Limits(events_per_second=EVERY_EVENT))
    local = {key: row for key, row in state.endpoints.items() if row.node == endpoint.node}
    own = PolicyState(
        **{name: getattr(state, name) for name in state.__dataclass_fields__ if name != "endpoints"},
        endpoints=Table[object, object]().with_changes(local),  # type: ignore[arg-type]
    )
    binding = Binding(Link(IFINDEX, "veth-under-test", endpoint.addresses), endpoint.uid)
    wanted.prepare(own, None, {IFINDEX: binding}, own_resolvers=own_resolvers)
    wanted.finish(own)
    return wanted


def find_by_itself(rows: PolicyState) -> tuple[PolicyState, frozenset[str]]:
    """The rows without the resolvers that a node could find by itself, and those: to the oracle it is all one."""
    kept = tuple(one for one in rows.config.resolvers if one.port != DNS_PORT)
    found = frozenset(one.address for one in rows.config.resolvers if one.port == DNS_PORT)
    return replace(rows, config=structs.replace(rows.config, resolvers=kept)), found


def is_guarded(tables: Tables, address: str) -> bool:
    """The rebinding guard as tables: the longest prefix decides, exact addresses are in ipcache."""
    parsed = ip_address(address)
    covering = [
        (ip_network(prefix).prefixlen, refused)
        for prefix, refused in tables.guard.items()
        if ip_network(prefix).version == parsed.version and parsed in ip_network(prefix)
    ]
    return address in tables.ipcache or (bool(covering) and max(covering)[1])


def write_names(kernel: Kernel, tables: Tables, config: Config, answers: Iterable[Answer]) -> None:
    """What the learner would have written for these answers by now."""
    expiries: dict[tuple[str, int], int] = {}
    for answer in answers:
        node = find_node(answer.name, tables.domains.keys())
        if not node or answer.at > AT:
            continue
        left = int(names.expiry_of(answer, config) - AT)
        for address in answer.addresses:
            if not is_guarded(tables, address):
                key = (address, tables.domains[node])
                expiries[key] = max(expiries.get(key, 1), boot_seconds() + left + MARGIN_SECONDS * (left >= 0))
    for (address, row), expires in expiries.items():
        kernel.add_name(address, row, expires)


def make_frame(packet: Packet) -> bytes:
    bodies = {
        6: packets.tcp(50000, packet.port),
        17: packets.udp(50000, packet.port, b"x"),
        132: packets.sctp(50000, packet.port),
        1: packets.echo(8, 9),
        58: packets.echo(128, 9),
    }
    return packets.ip(packet.source, packet.destination, packet.protocol, bodies.get(packet.protocol, bytes(12)))


def find_rule(wanted: Wanted, event: VerdictRecord) -> RuleSource | None:
    """Whose rule the bit is, as the agent tells it."""
    if event.bit == NO_BIT:
        return None
    ruleset = wanted.find_ruleset(event.ruleset)
    assert ruleset is not None
    tier = Tier(event.tier)
    return ruleset.tier(tier)[event.bit - FIRST_BIT[tier]].sources[0]


def questions(oracle: Oracle, scene: Scene) -> Iterator[tuple[Packet, Direction, Pod]]:
    """Every packet as each of its pods sees it; a pod's packets to itself never reach the interface."""
    for packet in scene.packets:
        for direction, own in ((Direction.EGRESS, packet.source), (Direction.INGRESS, packet.destination)):
            pod = oracle.owner_of(own)
            if isinstance(pod, Pod) and oracle.owner_of(packet.source) is not oracle.owner_of(packet.destination):
                yield packet, direction, pod


def ask(kernel: Kernel, packet: Packet, direction: Direction) -> Result:
    kernel.forget_flows()
    if direction is Direction.EGRESS:
        return kernel.from_pod(make_frame(packet))
    return kernel.to_pod(make_frame(packet), ingress=0 if packet.from_own_node else 77)


def compare(kernel: Kernel, scene: Scene) -> Counter[object]:
    """Ask both about every packet; -> what was concluded, counted."""
    state = make_state(scene.cluster + scene.policies)
    rows = read_rows(state.rows())
    oracle = Oracle(state.policies, state.world, scene.answers)
    known, own_resolvers = find_by_itself(rows)
    wanted: dict[tuple[str, str], Wanted] = {}
    seen: Counter[object] = Counter()
    for packet, direction, pod in sorted(questions(oracle, scene), key=lambda one: one[2].key):
        if pod.key not in wanted:
            by_itself = len(wanted) % 2 == 1
            given = (known, rows.endpoints[pod.key], own_resolvers) if by_itself else (rows, rows.endpoints[pod.key])
            made = wanted[pod.key] = build_tables(*given)
            kernel.fill(made.tables)
            kernel.maps["resolutions"].delete_many(kernel.maps["resolutions"].keys())
            write_names(kernel, made.tables, rows.config, scene.answers)
        expected = oracle.evaluate(packet, direction=direction, pod=pod, at=AT)
        event = ask(kernel, packet, direction).event
        where = (packet, direction, pod.key, expected)
        assert event is not None, where
        found = (Verdict(event.verdict), Reason(event.reason), Tier(event.tier))
        assert found == (expected.verdict, expected.reason, expected.tier), where
        if expected.reason is Reason.RULE:
            assert find_rule(wanted[pod.key], event) == expected.policy, where
            assert bool(event.domain) == bool(expected.name), where
        seen.update((expected.reason, expected.tier, expected.verdict))
    return seen


def test_the_kernel_says_what_policies_say(kernel: Kernel) -> None:
    """For seeded clusters, policies, answers and packets: the same verdict, reason, tier and rule, each kind met."""
    seen: Counter[object] = Counter()
    for seed in SEEDS:
        try:
            seen += compare(kernel, seeded_scene(seed, packets=60))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    reasons = {Reason.RULE, Reason.ISOLATED, Reason.DEFAULT, Reason.DNS_IMPLICIT, Reason.OWN_NODE, Reason.NAME_EXPIRED}
    reasons |= {Reason.NO_BACKEND, Reason.UNKNOWN_POD}
    missed = (reasons | set(Tier) | set(Verdict)) - seen.keys()
    assert not missed, f"the generator never met {missed}"
