"""What the kernel keeps of the peers of new flows, and how often rules decided; read as the agent reads it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from schemas.terms import Default, Direction, Reason
from services.common.bpfarray import MappedArray
from services.nodeagent.reached import WAYS, Reached
from services.nodeagent.tables import EndpointEntry
from services.nodeagent.usage import Reach
from tests.bpf import packets
from tests.bpf.packets import ACK, SYN, TCP, UDP, tcp, udp
from tests.bpf.prog_run import SIZES, Kernel, boot_seconds
from tests.bpf.worlds import (
    EGRESS,
    INGRESS,
    PEER4,
    PEER6,
    POD4,
    POD6,
    POD_ID,
    add_cidr,
    add_identity,
    add_pattern,
    allow_all,
    make_tables,
)

pytestmark = pytest.mark.kernel
RULE = 200
OTHER4, OTHER_ID = "10.0.0.6", POD_ID + 1
ROOM = 8 * WAYS
"""Rows of one endpoint in one direction, at the loader's default."""


@pytest.fixture
def reached(kernel: Kernel) -> Iterator[Reached]:
    one = Reached(kernel.loaded.maps, SIZES["ENDPOINT_SLOTS"])
    yield one
    one.close()


def connect(kernel: Kernel, peer: str, port: int, *, sport: int = 40000, flags: int = SYN) -> None:
    source = POD6 if ":" in peer else POD4
    assert kernel.from_pod(packets.ip(source, peer, TCP, tcp(sport, port, flags))).passed


def find_rows(reached: Reached, endpoint: int = POD_ID) -> dict[tuple[Direction, str, int], Reach]:
    return {(row.direction, row.address, row.port): row for row in reached.read_rows(endpoint)}


def test_a_new_flow_is_counted_once_and_its_packets_not_at_all(kernel: Kernel, reached: Reached) -> None:
    """Three connections to one port are one row with three flows, however many packets they have."""
    kernel.fill(allow_all())
    for sport in (40000, 40001, 40002):
        connect(kernel, PEER4, 443, sport=sport)
        assert kernel.to_pod(packets.ip(PEER4, POD4, TCP, tcp(443, sport, SYN | ACK))).passed
        for _ in range(3):
            connect(kernel, PEER4, 443, sport=sport, flags=ACK)
    assert list(reached.read_rows(POD_ID)) == [
        Reach(Direction.EGRESS, TCP, 443, PEER4, 0, 0, Reason.DEFAULT, is_audited=False, flows=3)
    ]


def test_both_families_directions_and_protocols_have_rows_of_their_own(kernel: Kernel, reached: Reached) -> None:
    """A row is of one peer, port, protocol and direction; the port is the destination's."""
    kernel.fill(allow_all())
    connect(kernel, PEER4, 80)
    connect(kernel, PEER6, 80)
    assert kernel.from_pod(packets.ip(POD4, PEER4, UDP, udp(5000, 80))).passed
    assert kernel.to_pod(packets.ip(PEER4, POD4, TCP, tcp(50000, 8080, SYN))).passed
    found = {(row.direction, row.protocol, row.address, row.port) for row in reached.read_rows(POD_ID)}
    assert found == {
        (Direction.EGRESS, TCP, PEER4, 80),
        (Direction.EGRESS, TCP, PEER6, 80),
        (Direction.EGRESS, UDP, PEER4, 80),
        (Direction.INGRESS, TCP, PEER4, 8080),
    }


def test_a_row_tells_the_peers_identity_or_the_name_that_admitted(kernel: Kernel, reached: Reached) -> None:
    """A pod's address comes with its identity, a named one with its domain row, and each with the reason."""
    tables = make_tables()
    add_identity(tables, "10.0.1.9", 77, EGRESS, 1 << RULE)
    add_pattern(tables, "api.example.com", 5, 1 << (RULE + 1))
    kernel.fill(tables)
    kernel.add_name(PEER4, 5, boot_seconds() + 60)
    connect(kernel, "10.0.1.9", 80)
    connect(kernel, PEER4, 443)
    rows = find_rows(reached)
    pod, named = rows[Direction.EGRESS, "10.0.1.9", 80], rows[Direction.EGRESS, PEER4, 443]
    assert (pod.identity, pod.row, pod.reason) == (77, 0, Reason.RULE)
    assert (named.identity, named.row, named.reason) == (0, 5, Reason.RULE)


def test_what_passes_under_audit_only_is_marked(kernel: Kernel, reached: Reached) -> None:
    """A flow that the default lets through for its audit is a row that says so; a denied one is none."""
    kernel.fill(make_tables(egress={"default": Default.AUDIT}))
    connect(kernel, PEER4, 443)
    assert not kernel.to_pod(packets.ip(PEER4, POD4, TCP, tcp(50000, 8080, SYN))).passed
    (row,) = reached.read_rows(POD_ID)
    assert row.is_audited and row.direction is Direction.EGRESS


def test_a_scan_fills_its_own_part_and_is_counted(kernel: Kernel, reached: Reached, interface: int) -> None:
    """A pod that scans loses rows of its own; another pod's, and its own of the other direction, are all there."""
    tables = allow_all()
    tables.endpoints[interface] = EndpointEntry(interface, OTHER_ID, EGRESS, INGRESS, address4=OTHER4)
    kernel.fill(tables)
    scanned = 1000
    for port in range(1, scanned + 1):
        frame = packets.ip(OTHER4, PEER4, TCP, tcp(40000, port, SYN))
        assert kernel.from_pod(frame, ifindex=interface).passed
    for port in range(1, 11):
        connect(kernel, PEER4, port)
        frame = packets.ip(PEER4, OTHER4, TCP, tcp(50000, port, SYN))
        assert kernel.to_pod(frame, ifindex=interface).passed
    own, scanner = find_rows(reached), find_rows(reached, OTHER_ID)
    assert {port for _, _, port in own} == set(range(1, 11))
    assert {port for direction, _, port in scanner if direction is Direction.INGRESS} == set(range(1, 11))
    kept = [row for row in scanner.values() if row.direction is Direction.EGRESS]
    lost = reached.read_lost(OTHER_ID)
    assert len(kept) <= ROOM and lost[Direction.EGRESS] == scanned - len(kept)
    assert lost[Direction.INGRESS] == 0 and reached.read_lost(POD_ID)[Direction.EGRESS] == 0


def test_freed_rows_are_there_for_others(kernel: Kernel, reached: Reached) -> None:
    """After a row was read and freed the same peer has a new one, counted from one; unread rows are not freed."""
    kernel.fill(allow_all())
    for turn in range(3 * ROOM):
        connect(kernel, f"192.0.2.{turn + 1}", 443)
        assert [row.flows for row in reached.read_rows(POD_ID)] == [1]
        reached.free()
    connect(kernel, PEER4, 443)
    reached.free()
    assert [row.address for row in reached.read_rows(POD_ID)] == [PEER4]


def test_a_rules_counter_counts_new_flows_and_denials(kernel: Kernel, reached: Reached) -> None:
    """Each new flow that a rule lets in counts once, each packet that one denies too; established ones never."""
    tables = make_tables(egress={"deny": 1 << 3})
    add_cidr(tables, f"{PEER4}/32", 5, EGRESS, 1 << RULE)
    add_cidr(tables, "198.51.100.1/32", 6, EGRESS, 1 << 3)
    kernel.fill(tables)
    for sport in (40000, 40001):
        connect(kernel, PEER4, 443, sport=sport)
        connect(kernel, PEER4, 443, sport=sport, flags=ACK)
    assert not kernel.from_pod(packets.ip(POD4, "198.51.100.1", TCP, tcp(40000, 443, SYN))).passed
    assert reached.read_counters([reached.all_counters]) == {3: 1, RULE: 2}
    assert reached.read_counters([range(4, 600)]) == {RULE: 2}


def test_a_live_flow_under_another_rule_counts_for_it(kernel: Kernel, reached: Reached) -> None:
    """A flow that is judged again and stands by another rule is that rule's use; by the same rule it is no news."""
    tables = make_tables()
    add_cidr(tables, f"{PEER4}/32", 5, EGRESS, 1 << RULE)
    kernel.fill(tables)
    connect(kernel, PEER4, 443)
    kernel.bump()
    connect(kernel, PEER4, 443, flags=ACK)
    assert reached.read_counters([reached.all_counters]) == {RULE: 1}
    add_cidr(tables, f"{PEER4}/32", 5, EGRESS, 1 << (RULE + 1))
    kernel.fill(tables)
    connect(kernel, PEER4, 443, flags=ACK)
    assert reached.read_counters([reached.all_counters]) == {RULE: 1, RULE + 1: 1}
    assert reached.read_live() == {RULE + 1}


def test_an_array_that_is_not_mapped_is_refused(kernel: Kernel) -> None:
    """What cannot be mapped is said at once."""
    with pytest.raises(ValueError, match="reasons"):
        MappedArray(kernel.loaded.maps["reasons"])
