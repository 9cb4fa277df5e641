"""How full things are is what the programs made of them: places of flows, names charged, events that no ring took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from schemas.terms import RULES_ADMIN, RULES_BASELINE, RULES_NETWORK_POLICY
from services.common import bpf
from services.nodeagent import mapcodec
from services.nodeagent.occupancy import Fill, Occupancy
from services.nodeagent.regions import Region
from services.nodeagent.tables import Tables
from tests.bpf import packets
from tests.bpf.messages import answer
from tests.bpf.packets import SYN
from tests.bpf.prog_run import IFINDEX, SIZES, Kernel
from tests.bpf.test_learner_pieces import MANY, NAME, WEB, Connection, ask_udp, prefixed, segments_of, tables
from tests.bpf.worlds import PEER4, POD4, POD_ID, RESOLVER, allow_all, make_tables

pytestmark = pytest.mark.kernel
FLOWS, DENIALS, FRESH = 37, 20_000, 2_000
NAMES_LIMIT = 4096


@pytest.fixture
def occupancy(kernel: Kernel) -> Iterator[Occupancy]:
    opened = Occupancy(kernel.loaded.maps)
    yield opened
    opened.close()


def read(occupancy: Occupancy, made: Tables) -> Fill:
    return occupancy.read({IFINDEX: Region(0, SIZES["FLOWS"])}, made.rulesets, NAMES_LIMIT)


def test_flows_are_counted_by_their_places(kernel: Kernel, occupancy: Occupancy) -> None:
    """As many as were admitted, of the fullest pod and in all; of a ruleset, the rules of each tier."""
    made = allow_all()
    kernel.fill(made)
    assert read(occupancy, made).maps == {"flows": (0, SIZES["FLOWS"])}
    for number in range(FLOWS):
        kernel.from_pod(packets.ip(POD4, PEER4, packets.TCP, packets.tcp(2000 + number, 80, SYN)))
    fill = read(occupancy, made)
    assert fill.maps == {"flows": (FLOWS, SIZES["FLOWS"])}
    assert fill.quotas == {
        "flows": (FLOWS, SIZES["FLOWS"]),
        "names": (0, NAMES_LIMIT),
        "rules_admin": (192, RULES_ADMIN),
        "rules_network_policy": (256, RULES_NETWORK_POLICY),
        "rules_baseline": (64, RULES_BASELINE),
    }


def test_a_learned_name_is_charged_and_given_back(kernel: Kernel, occupancy: Occupancy) -> None:
    """What the agent credits for names that went counts no more."""
    made = tables()
    kernel.fill(made)
    ask_udp(kernel)
    reply_udp(kernel, NAME, WEB)
    assert read(occupancy, made).quotas["names"] == (1, NAMES_LIMIT)
    kernel.maps["credits"].put(mapcodec.encode_index(POD_ID), (1).to_bytes(4, "little"))
    assert read(occupancy, made).quotas["names"] == (0, NAMES_LIMIT)


def reply_udp(kernel: Kernel, name: str, *addresses: str) -> None:
    body = packets.udp(53, 40000, answer(name, *addresses))
    assert kernel.to_pod(packets.ip(RESOLVER, POD4, packets.UDP, body)).passed


def test_what_a_full_ring_of_verdicts_did_not_take_is_counted(kernel: Kernel, occupancy: Occupancy) -> None:
    """Made, less those that are in the ring: nobody reads it meanwhile, and no budget holds them back."""
    made = make_tables()
    made.config = replace(made.config, events_per_second=1 << 30)
    kernel.fill(made)
    kernel.verdicts.consume(1 << 20)
    frame = packets.ip(POD4, PEER4, packets.TCP, packets.tcp(2000, 80, SYN))
    program = bpf.open_object(kernel.loaded.programs["from_pod"])
    bpf.run_program(program, frame, ingress_ifindex=IFINDEX, repeat=DENIALS)
    lost = read(occupancy, made).lost
    assert lost["verdicts"] == DENIALS - len(kernel.verdicts.consume(1 << 20)) > 0
    assert (lost["answers"], lost["handovers"]) == (0, 0)


def test_what_the_rings_of_answers_did_not_take_is_counted(kernel: Kernel, occupancy: Occupancy) -> None:
    """Fresh names with long answers, and an answer in pieces over and over: each ring's losses are its own."""
    made = tables()
    kernel.fill(made)
    kernel.drain()
    for number in range(FRESH):
        name = f"n{number}.uncovered.example"
        ask_udp(kernel, name)
        reply_udp(kernel, name, *MANY[:60])
    lost = read(occupancy, made).lost
    assert lost["answers"] == FRESH - len(kernel.drain()) > 0 and lost["handovers"] == 0
    connection = Connection(kernel)
    segments = segments_of(prefixed(answer(NAME, *MANY)), size=1400)
    while not read(occupancy, made).lost["handovers"]:  # a second's budget does not fill the ring
        for segment in segments:
            connection.tell(segment)
