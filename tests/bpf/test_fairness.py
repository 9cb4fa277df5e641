"""One pod floods, another is unharmed: flows, queries and names have places of each endpoint's own.

The victim is behind loopback, the flooder behind an interface that the test makes. Every flood is several times what
the maps hold in all.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Container

import pytest

from schemas.terms import Default, Direction, Reason
from services.common import bpf
from services.nodeagent import occupancy
from services.nodeagent.events import decode_verdict
from services.nodeagent.loader import DEFAULT_SIZES
from services.nodeagent.mapcodec import decode_region
from services.nodeagent.plan import Kind
from services.nodeagent.tables import ConfigEntry, EndpointEntry, Tables
from tests.bpf import packets
from tests.bpf.messages import answer, query
from tests.bpf.packets import ACK, RST, SYN, TCP, UDP, tcp, udp
from tests.bpf.prog_run import DROP, IFINDEX, SIZES, Kernel, Result, open_datapath
from tests.bpf.worlds import (
    EGRESS,
    INGRESS,
    PEER4,
    POD4,
    POD_ID,
    RESOLVER,
    add_cidr,
    add_pattern,
    make_tables,
    with_dns,
)

pytestmark = pytest.mark.kernel
FLOOD = 3 * SIZES["FLOWS"]
NOISE = 10_000
"""Denials: several times what the ring holds."""
OTHERS, OTHER_ID = 1 << 20, 40
EXPIRES = slice(8, 12)
"""Of a flow."""
FLOODER4, FLOODER_ID = "10.0.0.6", POD_ID - 1
REGION = SIZES["FLOWS"] // 2
"""Of two endpoints each has half."""
UNANSWERED, ANSWERED = REGION // 4, REGION - REGION // 4
QUERIES = 8 * DEFAULT_SIZES["QUERY_SETS"]
"""An endpoint's part: sets of eight."""
RULE = 1 << 200


class Pods:
    """The victim and the flooder, behind the same rules."""

    def __init__(self, kernel: Kernel, interface: int, tables: Tables) -> None:
        self.kernel, self.interface, self.tables = kernel, interface, tables
        tables.endpoints[interface] = EndpointEntry(interface, FLOODER_ID, EGRESS, INGRESS, address4=FLOODER4)
        self.mine = dict(tables.endpoints)
        kernel.fill(tables)

    def connect(self, number: int, *, flooder: bool = False, flags: int = SYN) -> Result:
        """A connection of its own for each number."""
        source, ifindex = (FLOODER4, self.interface) if flooder else (POD4, IFINDEX)
        sport, dport = 1024 + number % 60_000, 80 + number // 60_000
        return self.kernel.from_pod(packets.ip(source, PEER4, TCP, tcp(sport, dport, flags)), ifindex=ifindex)

    def reply(self, number: int, *, flooder: bool = False, flags: int = SYN | ACK) -> Result:
        target, ifindex = (FLOODER4, self.interface) if flooder else (POD4, IFINDEX)
        sport, dport = 1024 + number % 60_000, 80 + number // 60_000
        return self.kernel.to_pod(packets.ip(PEER4, target, TCP, tcp(dport, sport, flags)), ifindex=ifindex)

    def be(self, *senders: int, others: int = 0) -> None:
        """These pods are there, and so many others that only have regions."""
        mine = {one: self.mine[one] for one in senders}
        mute = {OTHERS + one: EndpointEntry(OTHERS + one, OTHER_ID + one, EGRESS, INGRESS) for one in range(others)}
        self.tables.endpoints = mine | mute
        self.kernel.fill(self.tables)

    def ask(self, number: int, *, flooder: bool = False) -> bool:
        """Whether a datagram passes; of one pod each number is a flow of its own."""
        source, ifindex = (FLOODER4, self.interface) if flooder else (POD4, IFINDEX)
        frame = packets.ip(source, PEER4, UDP, udp(1024 + number, 80, b""))
        return self.kernel.from_pod(frame, ifindex=ifindex).passed

    def answer(self, number: int, *, flooder: bool = False) -> bool:
        """Whether the reply to it passes, which it does by its flow alone."""
        target, ifindex = (FLOODER4, self.interface) if flooder else (POD4, IFINDEX)
        frame = packets.ip(PEER4, target, UDP, udp(80, 1024 + number, b""))
        return self.kernel.to_pod(frame, ifindex=ifindex).passed

    def age(self, numbers: Container[int]) -> None:
        """What was asked under these numbers was idle for a while, and all else was used in one instant."""
        flows = self.kernel.maps["flows"]
        entries = dict(flows.items())
        newest = max(int.from_bytes(value[EXPIRES], "little") for value in entries.values())
        for key, value in entries.items():
            expires = newest - 20 * (int.from_bytes(key[20:22], "big") - 1024 in numbers)
            flows.put(key, value[: EXPIRES.start] + expires.to_bytes(4, "little") + value[EXPIRES.stop :])

    def flood(self, *, flooder: bool) -> None:
        """One of them opens more than all places, and more that an accomplice answers."""
        for number in range(FLOOD):
            assert self.connect(number, flooder=flooder).passed
        for number in range(FLOOD):
            assert self.ask(number, flooder=flooder) and self.answer(number, flooder=flooder)

    def flows_of(self, ifindex: int) -> set[bytes]:
        flows = self.kernel.maps["flows"]
        return {key for key, _ in flows.items() if int.from_bytes(key[16:20], "little") == ifindex}


def open_to_peer() -> Tables:
    """A pod may open connections to the peer; replies pass as replies, or not at all."""
    tables = make_tables(egress={"isolated": True}, ingress={"isolated": True})
    add_cidr(tables, f"{PEER4}/32", 5, EGRESS, RULE)
    tables.config = ConfigEntry(allow_events=False)
    return tables


@pytest.fixture
def pods(kernel: Kernel, interface: int) -> Pods:
    return Pods(kernel, interface, open_to_peer())


def test_a_syn_flood_evicts_none_of_a_neighbours_flows(pods: Pods) -> None:
    """All the answered and unanswered connections that fit a pod's region outlive a flood of the tables' threefold."""
    for number in range(ANSWERED):
        assert pods.connect(number).passed and pods.reply(number).passed
    for number in range(ANSWERED, ANSWERED + UNANSWERED):
        assert pods.connect(number).passed
    before = pods.flows_of(IFINDEX)
    assert len(before) == REGION
    for number in range(FLOOD):
        assert pods.connect(number, flooder=True).passed
    assert pods.flows_of(IFINDEX) == before
    assert len(pods.flows_of(pods.interface)) == UNANSWERED
    assert all(pods.reply(number).passed for number in range(ANSWERED, ANSWERED + UNANSWERED))
    assert pods.kernel.count_reason(Direction.EGRESS, Reason.MAP_FULL) == 0


def test_a_flood_that_an_accomplice_answers_evicts_none_either(pods: Pods) -> None:
    """Answered flows count against who has them: a flooder's oldest go, nobody else's."""
    for number in range(ANSWERED):
        assert pods.connect(number).passed and pods.reply(number).passed
    before = pods.flows_of(IFINDEX)
    for number in range(FLOOD):
        assert pods.connect(number, flooder=True).passed and pods.reply(number, flooder=True).passed
    assert pods.flows_of(IFINDEX) == before
    assert len(pods.flows_of(pods.interface)) <= REGION
    assert pods.kernel.count_reason(Direction.EGRESS, Reason.MAP_FULL) == 0


def test_a_flood_from_outside_harms_only_its_target(kernel: Kernel, interface: int) -> None:
    """SYNs from all over to an open pod push out that pod's own unanswered flows, not its answered ones."""
    tables = open_to_peer()
    tables.rulesets[INGRESS] = make_tables(ingress={"default": Default.ALLOW}).rulesets[INGRESS]
    pods = Pods(kernel, interface, tables)
    for number in range(UNANSWERED):
        assert pods.connect(number).passed
        assert pods.connect(number, flooder=True).passed and pods.reply(number, flooder=True).passed
    before, own = pods.flows_of(IFINDEX), pods.flows_of(interface)
    for number in range(FLOOD):
        source = f"198.18.{number >> 8}.{number & 255}"
        assert kernel.to_pod(packets.ip(source, FLOODER4, TCP, tcp(1000, 80)), ifindex=interface).passed
    assert pods.flows_of(IFINDEX) == before
    assert own <= pods.flows_of(interface)


def test_ones_own_flood_leaves_ones_own_answered_flows(pods: Pods) -> None:
    """A pod that scans keeps its connections: what nobody answered competes with its like alone."""
    for number in range(ANSWERED):
        assert pods.connect(number).passed and pods.reply(number).passed
    answered = pods.flows_of(IFINDEX)
    for number in range(ANSWERED, ANSWERED + FLOOD):
        assert pods.connect(number).passed
    assert answered <= pods.flows_of(IFINDEX)


def test_what_is_over_goes_before_what_lives(pods: Pods) -> None:
    """In a full region a new connection takes the place of one that ended, and the living stay."""
    for number in range(ANSWERED):
        assert pods.connect(number).passed and pods.reply(number).passed
    for number in range(0, ANSWERED, 2):
        assert pods.connect(number, flags=RST).passed
    living = {number for number in range(ANSWERED) if number % 2}
    for number in range(ANSWERED, ANSWERED + ANSWERED // 2):
        assert pods.connect(number).passed and pods.reply(number).passed
    ports = {int.from_bytes(key[20:22], "big") - 1024 for key in pods.flows_of(IFINDEX)}
    assert len(living & ports) >= 0.9 * len(living)


def test_regions_do_not_overlap(pods: Pods) -> None:
    """What the codec wrote: two endpoints, two halves."""
    tables = (pods.kernel.maps[name] for name in ("endpoints", "endpoints_far"))
    regions = [decode_region(value)[1] for table in tables for _, value in table.items()]
    spans = sorted((region.first, region.first + region.size) for region in regions)
    assert spans == [(0, REGION), (REGION, 2 * REGION)]


def test_an_endpoint_without_a_region_makes_no_flows(pods: Pods) -> None:
    """Zero shuts: a new connection passes by policy, its replies find nothing, and it is counted."""
    endpoints = pods.kernel.maps["endpoints"]
    slot = IFINDEX.to_bytes(4, "little")
    before = endpoints.get(slot)
    assert before is not None
    endpoints.put(slot, before[:40] + bytes(8) + before[48:])
    assert pods.connect(1).passed
    assert not pods.reply(1, flags=SYN).passed
    assert not pods.flows_of(IFINDEX)
    assert pods.kernel.count_reason(Direction.EGRESS, Reason.MAP_FULL) == 1
    endpoints.put(slot, before)


FOURTH = SIZES["FLOWS"] // 4
FEWER = FOURTH // 2 - FOURTH // 8
"""Answered flows that a region has room for when it has become half of a fourth."""


@pytest.fixture
def four(pods: Pods) -> Pods:
    """The victim among four pods: with the flooder as the fifth everybody's region is half as long."""
    pods.be()
    pods.be(IFINDEX, others=3)
    assert pods.kernel.regions[IFINDEX] == (0, FOURTH)
    return pods


def test_where_regions_shrink_a_full_one_loses_its_idlest_flows_and_no_others(four: Pods) -> None:
    """As many answered flows stay as there is room for, those that were used lately, wherever they were; the new owner
    of the rest floods in vain."""
    numbers = range(2 * FEWER)
    assert all(four.ask(number) and four.answer(number) for number in numbers)
    assert len(four.flows_of(IFINDEX)) == 2 * FEWER
    used = random.Random(1).sample(numbers, FEWER)
    four.age(set(numbers) - set(used))
    four.be(IFINDEX, four.interface, others=3)
    assert four.kernel.regions[four.interface].first < FOURTH
    four.flood(flooder=True)
    assert len(four.flows_of(IFINDEX)) == FEWER
    assert sum(four.answer(number) for number in used) >= 0.95 * len(used)


def spread(pods: Pods, room: int, *, is_answered: bool) -> set[int]:
    """So many flows of the victim's, anywhere in a region that is twice as long; their numbers."""
    numbers = range(2 * room)
    assert all(pods.ask(number) and (not is_answered or pods.answer(number)) for number in numbers)
    kept = set(random.Random(2).sample(numbers, room))
    flows = pods.kernel.maps["flows"]
    flows.delete_many(key for key, _ in flows.items() if int.from_bytes(key[20:22], "big") - 1024 not in kept)
    return kept


@pytest.mark.parametrize("is_answered", [True, False], ids=["answered", "unanswered"])
def test_where_regions_shrink_no_flow_goes_that_has_room(four: Pods, is_answered: bool) -> None:
    """What fits half of a region stays, to the last place, however it lay in the whole."""
    kept = spread(four, FEWER if is_answered else FEWER // 3, is_answered=is_answered)
    four.be(IFINDEX, four.interface, others=3)
    four.flood(flooder=True)
    assert all(four.answer(number) for number in kept)


def test_where_regions_grow_a_pod_that_moves_takes_its_flows_along(pods: Pods) -> None:
    """The second of eight regions lies in what becomes the first of two: its pod goes to the other, with all it has."""
    pods.be()
    pods.be(IFINDEX, pods.interface, others=3)
    numbers = range(FEWER)
    assert all(pods.ask(number, flooder=True) and pods.answer(number, flooder=True) for number in numbers)
    waiting = range(FEWER, FEWER + FEWER // 3)
    assert all(pods.ask(number, flooder=True) for number in waiting)
    before = pods.kernel.regions[pods.interface]
    pods.be(IFINDEX, pods.interface)
    assert pods.kernel.regions[IFINDEX].first <= before.first < pods.kernel.regions[pods.interface].first
    pods.flood(flooder=False)
    assert all(pods.answer(number, flooder=True) for number in (*numbers, *waiting))


@pytest.mark.parametrize("done", range(6))
def test_an_agent_that_ends_while_flows_move_is_followed_by_one_that_finishes(four: Pods, done: int) -> None:
    """After any of its writes: the next one knows only what is in the kernel."""
    kept = spread(four, FEWER, is_answered=True)
    assert all(fragment(four, identifier, is_first=True) for identifier in range(SIZES["FRAGMENTS"]))
    four.tables.endpoints = {**four.tables.endpoints, four.interface: four.mine[four.interface]}
    with open_datapath(four.kernel) as agent:
        ops = agent.plan(four.tables, None)
        assert Kind.MOVE in [op.kind for op in ops[:done]] or done < 4
        assert len(ops) > done
        agent.apply(ops[:done])
    with open_datapath(four.kernel) as agent:
        agent.apply(agent.plan(four.tables, None))
        four.kernel.regions = agent.regions()
    four.kernel.fill(four.tables)
    new = four.kernel.regions[four.interface]
    sets = range(new.first // 4, (new.first + new.size) // 4)
    used = {int.from_bytes(key, "little") for key, _ in four.kernel.maps["fragments"].items()}
    assert used and used.isdisjoint(sets)
    four.flood(flooder=True)
    assert all(four.answer(number) for number in kept)


def fragment(pods: Pods, identifier: int, *, is_first: bool, flooder: bool = False) -> bool:
    """Whether a part of a datagram to the peer passes."""
    source, ifindex = (FLOODER4, pods.interface) if flooder else (POD4, IFINDEX)
    if is_first:
        body = udp(5, 6, bytes(16), length=40)
        packet = packets.ipv4(source, PEER4, UDP, body, identifier=identifier, more=True)
    else:
        packet = packets.ipv4(source, PEER4, UDP, bytes(16), identifier=identifier, fragment=3)
    return pods.kernel.from_pod(packets.ethernet(packets.IPV4, packet), ifindex=ifindex).passed


def test_a_flood_of_fragments_drops_none_of_a_neighbours(pods: Pods) -> None:
    """Datagrams under way go on after a neighbour began several times as many as the table holds."""
    for identifier in range(100):
        assert fragment(pods, identifier, is_first=True)
    for identifier in range(4 * SIZES["FRAGMENTS"]):
        assert fragment(pods, identifier, is_first=True, flooder=True)
    assert all(fragment(pods, identifier, is_first=False) for identifier in range(100))


def test_a_pod_keeps_as_many_datagrams_as_its_part_holds(pods: Pods) -> None:
    """Of a quarter of its part all, whatever their numbers; of several times its part the newest."""
    own = SIZES["FRAGMENTS"] // 2
    for identifier in range(4 * own):
        assert fragment(pods, identifier, is_first=True)
    newest = range(4 * own - own // 4, 4 * own)
    assert sum(fragment(pods, identifier, is_first=False) for identifier in newest) >= 0.95 * len(newest)
    assert not fragment(pods, 0, is_first=False)


def ask(pods: Pods, name: str, identifier: int, port: int, *, flooder: bool = False) -> Result:
    source, ifindex = (FLOODER4, pods.interface) if flooder else (POD4, IFINDEX)
    return pods.kernel.from_pod(make_question(name, identifier, port, source), ifindex=ifindex)


def make_question(name: str, identifier: int, port: int, source: str) -> bytes:
    return packets.ip(source, RESOLVER, UDP, udp(port, 53, query(name, 1, identifier)))


def tell(pods: Pods, message: bytes, port: int, *, flooder: bool = False) -> Result:
    target, ifindex = (FLOODER4, pods.interface) if flooder else (POD4, IFINDEX)
    return pods.kernel.to_pod(packets.ip(RESOLVER, target, UDP, udp(53, port, message)), ifindex=ifindex)


@pytest.fixture
def resolving(kernel: Kernel, interface: int) -> Pods:
    """Both pods may ask the resolver, and both have rules for any name below example.com."""
    tables = with_dns(open_to_peer())
    add_pattern(tables, "*.example.com", 7, RULE)
    tables.config = ConfigEntry(allow_events=False, names_per_endpoint=64)
    return Pods(kernel, interface, tables)


def test_a_dns_flood_answers_none_of_a_neighbours_queries_away(resolving: Pods) -> None:
    """500 queries that are out are still known after a neighbour asked for more other names than its part holds, up to
    four times as many in ten seconds."""
    frames = [make_question(f"n{number}.flood.test", number, 1024 + number, FLOODER4) for number in range(4 * QUERIES)]
    for number in range(500):
        assert ask(resolving, f"n{number}.example.com", number * 7, 30_000 + number).passed
    before = resolving.flows_of(IFINDEX)
    until, asked = time.monotonic() + 10, 0  # a query is valid for 15 seconds, and emulated processors are slow
    while asked < len(frames) and time.monotonic() < until:
        resolving.kernel.from_pod(frames[asked], ifindex=resolving.interface)
        asked += 1
    assert asked > QUERIES
    assert resolving.flows_of(IFINDEX) == before
    told = [
        tell(resolving, answer(f"n{number}.example.com", "198.51.100.7", identifier=number * 7), 30_000 + number)
        for number in range(500)
    ]
    assert sum(result.passed for result in told) >= 499  # of more than 8 in one set the oldest is forgotten


def test_a_flood_of_answers_makes_none_of_a_neighbours_news(resolving: Pods) -> None:
    """What was told of a pod's answers is not told again because its neighbour asked for more names than the table
    holds; the neighbour's own are."""
    kernel = resolving.kernel

    def look_up(name: str, number: int, *, flooder: bool = False) -> int:
        ask(resolving, name, number & 0xFFFF, 30_000 + number % 30_000, flooder=flooder)
        message = answer(name, "198.51.100.7", identifier=number & 0xFFFF)
        tell(resolving, message, 30_000 + number % 30_000, flooder=flooder)
        return len(kernel.drain())

    assert sum(look_up(f"v{number}.other.test", number) for number in range(64)) == 64
    assert sum(look_up(f"n{number}.flood.test", number, flooder=True) for number in range(SIZES["SEEN"])) > 0
    assert sum(look_up(f"v{number}.other.test", 100 + number) for number in range(64)) == 0


def test_a_flood_of_names_takes_none_of_a_neighbours(resolving: Pods) -> None:
    """A pod that learns fresh names for ever stops at its quota; a neighbour's names stay, and it learns new ones."""
    kernel = resolving.kernel
    for number in range(32):
        ask(resolving, f"v{number}.example.com", number, 30_000)
        tell(resolving, answer(f"v{number}.example.com", f"198.51.100.{number}", identifier=number), 30_000)
    for number in range(2_000):
        name, web = f"n{number}.example.com", f"198.18.{number >> 8}.{number & 255}"
        ask(resolving, name, number, 40_000, flooder=True)
        tell(resolving, answer(name, web, identifier=number), 40_000, flooder=True)
    assert all(kernel.names_of(f"198.51.100.{number}") for number in range(32))
    assert len(kernel.maps["resolutions"].keys()) == 32 + 64
    assert kernel.count_reason(Direction.INGRESS, Reason.LEARN_QUOTA) == 2_000 - 64
    ask(resolving, "late.example.com", 99, 30_000)
    tell(resolving, answer("late.example.com", "198.51.100.99", identifier=99), 30_000)
    assert kernel.names_of("198.51.100.99")


def test_noise_hides_none_of_a_neighbours_denials(pods: Pods) -> None:
    """A pod makes 10,000 denials while nobody reads the ring: its own budget ends, and its neighbour's one is told."""
    kernel = pods.kernel
    program = bpf.open_object(kernel.loaded.programs["from_pod"])
    noise, one = (packets.ip(pod, "192.0.2.99", TCP, tcp(2000, 80)) for pod in (FLOODER4, POD4))
    bpf.run_program(program, noise, ifindex=pods.interface, ingress_ifindex=pods.interface, repeat=NOISE)
    assert bpf.run_program(program, one, ifindex=IFINDEX, ingress_ifindex=IFINDEX).action == DROP
    os.close(program)
    told = [decode_verdict(record) for record in kernel.verdicts.consume(1 << 20)]
    assert [(event.source, event.suppressed) for event in told if event.endpoint == POD_ID] == [(POD4, 0)]
    flooder, victim = (read_quota(kernel, endpoint) for endpoint in (FLOODER_ID, POD_ID))
    assert victim[SUPPRESSED] == 0 and victim[occupancy._LOST] == flooder[occupancy._LOST] == (0, 0, 0)
    noises = [event for event in told if event.endpoint == FLOODER_ID]
    held_back = flooder[SUPPRESSED] + sum(event.suppressed for event in noises)
    assert len(noises) + held_back == NOISE and held_back


SUPPRESSED = 2
"""Of a quota's words: denials that the endpoint's budget held back since its last event."""


def read_quota(kernel: Kernel, endpoint: int) -> tuple[int, ...]:
    value = kernel.maps["quotas"].get(endpoint.to_bytes(4, "little"))
    assert value is not None
    return occupancy.QUOTA.unpack(value)
