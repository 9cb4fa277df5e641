"""Two packets at once: two processes on two processors, which begin each step in one instant."""

from __future__ import annotations

import functools
import mmap
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from schemas.terms import Default
from services.common import bpf
from services.nodeagent import mapcodec, occupancy
from services.nodeagent.regions import Region
from services.nodeagent.tables import ConfigEntry
from tests.bpf import packets
from tests.bpf.messages import address, answer, query
from tests.bpf.packets import ACK, SYN, TCP, UDP, tcp, udp
from tests.bpf.prog_run import IFINDEX, PASS, Kernel, boot_seconds
from tests.bpf.worlds import NETWORK_POLICY, PEER4, POD4, POD_ID, RESOLVER, add_pattern, make_tables, with_dns

pytestmark = pytest.mark.kernel
SIDES = 2
ADDRESSES = 100
ROWS = 32
"""That each side teaches: 64 together are what all pages of an address hold."""
FIRST_ROW = 100
TTLS = (60, 600, 3600)
"""Each more than twice the one before: what is known then is written again."""
CONNECTIONS = 4_000
"""A side: many times the places that they compete for."""
PLACE_OFFSET = 32
"""Of ``place`` in ``struct flow``."""
STATE_OFFSET, ANSWERED = 21, 1

Step = Sequence[Callable[[], object]]


class Race:
    """Steps that both sides take at once; each side is a process on a processor of its own."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._places = memoryview(self._shared)[:128].cast("Q")
        """How far each side is, in lines of the cache of their own."""

    def run(self, steps: Callable[[int], Iterator[Step]]) -> None:
        """``steps`` of a side are made before it begins; every one is taken when the other side is there too."""
        children = [self._start(side, steps) for side in range(SIDES)]
        states = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert states == [0] * SIDES

    def _start(self, side: int, steps: Callable[[int], Iterator[Step]]) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[side]})
            self._take(side, list(steps(side)))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            self._places[side * 8] = 1 << 63  # one that failed keeps nobody waiting
            os._exit(status)

    def _take(self, side: int, steps: list[Step]) -> None:
        for number, step in enumerate(steps, 1):
            self._places[side * 8] = number
            while self._places[(1 - side) * 8] < number:
                pass
            for one in step:
                one()


class Sender:
    """Frames of the pod behind loopback, made ready."""

    def __init__(self, kernel: Kernel) -> None:
        self._programs = {name: bpf.open_object(kernel.loaded.programs[name]) for name in ("from_pod", "to_pod")}

    def close(self) -> None:
        for program in self._programs.values():
            os.close(program)

    def prepare(self, program: str, frame: bytes) -> Callable[[], object]:
        ingress = IFINDEX if program == "from_pod" else 77
        context = bpf.make_context(ifindex=IFINDEX, ingress_ifindex=ingress)
        run = bpf.PreparedRun(self._programs[program], frame, context, name=program)

        def send() -> None:
            assert run().action == PASS

        return send


@contextmanager
def open_sender(kernel: Kernel) -> Iterator[Sender]:
    sender = Sender(kernel)
    yield sender
    sender.close()


def shared_address(number: int) -> str:
    return f"198.51.100.{number}"


def held_slots(kernel: Kernel, web: str) -> list[int]:
    """Domain rows in all the slots of an address that this node's answers filled."""
    found = []
    for scope in (mapcodec.SCOPE_LEARNED, POD_ID):
        for page in range(mapcodec.NAME_PAGES):
            value = kernel.maps["resolutions"].get(mapcodec.encode_resolution_key(web, page, scope))
            if value is not None:
                found += [row for row, _ in mapcodec.decode_names(value).slots if row]
    return found


def teach(sender: Sender, side: int) -> Iterator[Step]:
    """Of each address, for each lifetime: this side's questions, then their answers one by one."""
    rows = range(FIRST_ROW + side * ROWS, FIRST_ROW + (side + 1) * ROWS)
    for number in range(ADDRESSES):
        for ttl in TTLS:
            asked, told = [], []
            for row in rows:
                name, port = f"n{row}.race.test", 40_000
                question = packets.ip(POD4, RESOLVER, UDP, udp(port, 53, query(name, identifier=row)))
                message = answer(name, address(shared_address(number), ttl=ttl), identifier=row)
                asked.append(sender.prepare("from_pod", question))
                told.append(sender.prepare("to_pod", packets.ip(RESOLVER, POD4, UDP, udp(53, port, message))))
            yield asked
            yield from ([one] for one in told)


def test_two_answers_at_once_lose_and_double_no_name(kernel: Kernel) -> None:
    """Two processors teach 32 names each to one address, over and over: all have one slot, charged once."""
    tables = with_dns(make_tables(egress={"isolated": True}, ingress={"isolated": True}))
    rows = range(FIRST_ROW, FIRST_ROW + SIDES * ROWS)
    for row in rows:
        add_pattern(tables, f"n{row}.race.test", row, 1 << NETWORK_POLICY)
    tables.config = ConfigEntry(names_per_endpoint=1 << 30)
    kernel.fill(tables)
    with open_sender(kernel) as sender:
        Race().run(lambda side: teach(sender, side))
    held = {number: Counter(held_slots(kernel, shared_address(number))) for number in range(ADDRESSES)}
    doubled = {number: found - Counter(rows) for number, found in held.items() if found - Counter(rows)}
    missing = {number: set(rows) - found.keys() for number, found in held.items() if set(rows) - found.keys()}
    quota = kernel.maps["quotas"].get(mapcodec.encode_index(POD_ID))
    assert quota is not None
    assert (missing, doubled) == ({}, {})
    assert occupancy.QUOTA.unpack(quota)[occupancy._LEARNED] == sum(found.total() for found in held.values())


EXPIRED_ROW, OTHER_ROW, CONTESTED = 100, 200, 1_500
"""Whose time is over in a page that is full of live names; who wants its slot; on how many addresses."""


def contested_address(number: int) -> str:
    return f"198.51.{100 + number // 250}.{number % 250 + 1}"


def contest(sender: Sender, side: int) -> Iterator[Step]:
    """Of each address: one side's name is told again as the other's takes the slot that it had."""
    row, port = (EXPIRED_ROW, OTHER_ROW)[side], 40_000 + side
    for number in range(CONTESTED):
        question = query(f"n{row}.race.test", identifier=number)
        message = answer(f"n{row}.race.test", contested_address(number), identifier=number)
        yield [sender.prepare("from_pod", packets.ip(POD4, RESOLVER, UDP, udp(port, 53, question)))]
        yield [sender.prepare("to_pod", packets.ip(RESOLVER, POD4, UDP, udp(53, port, message)))]


def test_a_name_that_is_renewed_as_another_takes_its_slot_is_learned(kernel: Kernel) -> None:
    """Its time was over, so the slot is anyone's: both names are there when their answers are released."""
    tables = with_dns(make_tables(egress={"isolated": True}, ingress={"isolated": True}))
    page = range(EXPIRED_ROW, EXPIRED_ROW + mapcodec.NAME_SLOTS)
    for row in (*page, OTHER_ROW):
        add_pattern(tables, f"n{row}.race.test", row, 1 << NETWORK_POLICY)
    tables.config = ConfigEntry(names_per_endpoint=1 << 30)
    kernel.fill(tables)
    for number in range(CONTESTED):
        for row in page:
            kernel.add_name(contested_address(number), row, boot_seconds() + (3600 if row > EXPIRED_ROW else -5))
    with open_sender(kernel) as sender:
        Race().run(lambda side: contest(sender, side))
    wanted = {EXPIRED_ROW, OTHER_ROW}
    missing = {number: wanted - set(held_slots(kernel, contested_address(number))) for number in range(CONTESTED)}
    assert {number: rows for number, rows in missing.items() if rows} == {}


def flow_frames(number: int, side: int) -> tuple[bytes, bytes]:
    """A connection's SYN, and the answer to it."""
    port = 1024 + side * CONNECTIONS + number
    return packets.ip(POD4, PEER4, TCP, tcp(port, 80)), packets.ip(PEER4, POD4, TCP, tcp(80, port, SYN | ACK))


def open_connections(sender: Sender, side: int, *, answered: bool) -> Iterator[Step]:
    """Connections of this side; where they are answered, each is when the next eight are open."""
    frames = [flow_frames(number, side) for number in range(CONNECTIONS)]
    opened = [sender.prepare("from_pod", syn) for syn, _ in frames]
    replies = [sender.prepare("to_pod", reply) for _, reply in frames]
    for number in range(0, CONNECTIONS, 8):
        yield opened[number : number + 8]
        if answered:
            yield replies[number : number + 8]


def places_of(kernel: Kernel) -> dict[bytes, int]:
    """flow -> its place"""
    at = PLACE_OFFSET
    return {key: int.from_bytes(value[at : at + 4], "little") for key, value in kernel.maps["flows"].items()}


@pytest.mark.parametrize("answered", [False, True], ids=["unanswered", "answered"])
def test_two_connections_at_once_share_no_place(kernel: Kernel, answered: bool) -> None:
    """Two processors open connections of one pod where old ones have to go: each kept has its own place."""
    tables = make_tables(egress={"default": Default.ALLOW}, ingress={"default": Default.ALLOW})
    tables.config = ConfigEntry(allow_events=False)
    kernel.fill(tables)
    with open_sender(kernel) as sender:
        Race().run(lambda side: open_connections(sender, side, answered=answered))
    held = places_of(kernel)
    whose = {int.from_bytes(index, "little"): key for index, key in kernel.maps["places"].items()}
    taken = Counter(held.values())
    shared = {index: count for index, count in taken.items() if count > 1}
    homeless = {key: place for key, place in held.items() if whose.get(place) != key}
    assert (shared, homeless) == ({}, {})
    assert len(held) > kernel.maps["places"].info.max_entries // 5


PLACE_CLAIMED = b"\xff" * 8
"""Of ``places``: where interface and ports stand while a program gives a place to another flow."""
SPARED = 3


@pytest.mark.parametrize("answered", [False, True], ids=["unanswered", "answered"])
def test_a_place_that_another_processor_is_giving_away_is_left_to_it(kernel: Kernel, answered: bool) -> None:
    """However long that one is held up: all claimed but a few, and many times as many connections. On an emulated
    processor two flows got one place so."""
    tables = make_tables(egress={"default": Default.ALLOW}, ingress={"default": Default.ALLOW})
    tables.config = ConfigEntry(allow_events=False)
    kernel.fill(tables)
    places = kernel.maps["places"]
    kind = [number for number in range(places.info.max_entries) if bool(number % 4) == answered]
    claimed = {number.to_bytes(4, "little"): bytes(16) + PLACE_CLAIMED + bytes(8) for number in kind[:-SPARED]}
    places.put_many(claimed)
    for syn, reply in map(flow_frames, range(CONNECTIONS // 4), [0] * CONNECTIONS):
        assert kernel.from_pod(syn).passed
        assert not answered or kernel.to_pod(reply).passed
    taken = Counter(place for place in places_of(kernel).values() if bool(place % 4) == answered)
    assert taken == dict.fromkeys(kind[-SPARED:], 1)
    assert {number: places.get(number) for number in claimed} == claimed


MOVES, BATCH = 10, 3_000
"""How often the pod's region changes, and connections meanwhile."""


def move_or_open(kernel: Kernel, sender: Sender, side: int) -> Iterator[Step]:
    """One side opens connections and answers some of those before, the other moves all to and fro."""
    half = kernel.maps["places"].info.max_entries // 2
    frames = [flow_frames(number, 0) for number in range((MOVES + 1) * BATCH)]
    for number in range(MOVES):
        if side:
            region = Region(half * (number % 2), half)
            yield [functools.partial(kernel.put_regions, {IFINDEX: region}), kernel.move_flows]
            continue
        first = number * BATCH
        opened = [sender.prepare("from_pod", syn) for syn, _ in frames[first : first + BATCH]]
        before = frames[max(0, first - BATCH) : first : 2]
        yield [*opened, *(sender.prepare("to_pod", reply) for _, reply in before)]


def test_packets_go_on_while_flows_move(kernel: Kernel) -> None:
    """Flows that are made and answered while their region changes have each a place of its own, in the last region."""
    tables = make_tables(egress={"default": Default.ALLOW}, ingress={"default": Default.ALLOW})
    tables.config = ConfigEntry(allow_events=False)
    kernel.fill(tables)
    with open_sender(kernel) as sender:
        Race().run(lambda side: move_or_open(kernel, sender, side))
    held = places_of(kernel)
    whose = {int.from_bytes(index, "little"): key for index, key in kernel.maps["places"].items()}
    half = kernel.maps["places"].info.max_entries // 2
    assert max(Counter(held.values()).values()) == 1
    assert {key: place for key, place in held.items() if whose.get(place) != key} == {}
    assert min(held.values()) >= half * ((MOVES - 1) % 2) and len(held) > half // 5
    answered = {key for key, value in kernel.maps["flows"].items() if value[STATE_OFFSET] & ANSWERED}
    assert answered == {key for key, place in held.items() if place % 4}
