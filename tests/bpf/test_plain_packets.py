"""Two ways through the programs: a plain packet is judged in the first one, a tagged one by those behind it."""

from __future__ import annotations

import random
import struct
from collections import Counter
from dataclasses import replace

import pytest

from schemas.terms import Reason
from services.nodeagent.mapcodec import decode_names
from tests.bpf import messages, packets
from tests.bpf.packets import ACK, FIN, ICMP, RST, SYN, TCP, UDP
from tests.bpf.prog_run import IFINDEX, Kernel, boot_seconds
from tests.bpf.worlds import (
    EGRESS,
    INGRESS,
    PEER4,
    PEER6,
    POD4,
    POD6,
    POD_ID,
    RESOLVER,
    add_cidr,
    add_pattern,
    make_tables,
    with_dns,
)

pytestmark = pytest.mark.kernel
CONVERSATIONS, LOOKUPS = 3_000, 400
TAG_BYTES = 4
OURS = {4: (POD4, POD4, POD4, "10.0.0.6", "10.0.0.7"), 6: (POD6, POD6, POD6, "fd00::6", "fe80::5")}
"""The pod's first address, mostly; its second; one that it has not."""
THEIRS = {
    4: (PEER4, PEER4, "192.0.2.81", RESOLVER, "203.0.113.9", "255.255.255.255", "224.0.0.1", POD4, "0.0.0.0"),
    6: (PEER6, PEER6, "2001:db8::81", "2001:db8:9::9", "ff02::1", "::ffff:192.0.2.80", "fe80::1", POD6, "::"),
}
PORTS = (0, 53, 67, 68, 80, 80, 81, 443, 546, 547, 5000)
DHCP = ((68, 67), (546, 547))
LENGTHS: list[dict[str, object]] = [{"total": total} for total in (0, 19, 30, 900)]
ODD = {4: [*LENGTHS, {"more": True}, {"fragment": 3}, {"options": b"\x01" * 4}], 6: LENGTHS}
"""Wrong lengths, fragments, options."""
FLAGS = (SYN, SYN, ACK, SYN | ACK, FIN | ACK, RST, SYN | FIN, SYN | RST, 0)
MET = {
    *(Reason.RULE, Reason.ISOLATED, Reason.OWN_NODE, Reason.HAIRPIN, Reason.NAME_EXPIRED, Reason.MALFORMED),
    *(Reason.SPOOFED_SOURCE, Reason.WRONG_DESTINATION, Reason.MAPPED_ADDRESS),
}
_FLOW = struct.Struct("=12xIIBBBBHBBI8xQQ48xQQ48x")
Step = tuple[bool, bytes, int]
"""Whether the pod sends it; the frame; the interface it came in by."""


@pytest.fixture
def world(kernel: Kernel) -> Kernel:
    """Some of everything: ports that are open and not, names live and expired, a resolver, a pod's second address."""
    tables = with_dns(make_tables(egress={"isolated": True, "dns_implicit": True}, ingress={"isolated": True}))
    tables.endpoints[IFINDEX] = replace(tables.endpoints[IFINDEX], more_addresses=True)
    tables.endpoint_addresses |= {(POD_ID, "10.0.0.6"): 2, (POD_ID, "fd00::6"): 3}
    for handle in (EGRESS, INGRESS):
        add_cidr(tables, f"{PEER4}/32", 1, handle, 1 << 200 | 1 << 3)
        add_cidr(tables, f"{PEER6}/128", 2, handle, 1 << 201)
        tables.ports[(handle, 1)] = 1 << 200 | 1 << 201 | 1 << 210
    tables.rulesets[EGRESS] = replace(tables.rulesets[EGRESS], deny=1 << 3)
    add_pattern(tables, "www.example.com", 7, 1 << 210)
    for port in (80, 443):
        for slot in range(2):
            tables.port_classes[slot * 65536 + port] = 1
    tables.config = replace(tables.config, allow_events=True, events_per_second=1 << 30)
    kernel.fill(tables)
    for address, lifetime in (("192.0.2.81", 3600), ("2001:db8::81", 3600), ("203.0.113.9", -10)):
        kernel.add_name(address, 7, boot_seconds() + lifetime)
    return kernel


def make_body(rng: random.Random, protocol: int, source: int, destination: int) -> bytes:
    payload = bytes(rng.choice((0, 0, 8, 40)))
    if protocol == TCP:
        body = packets.tcp(source, destination, rng.choice(FLAGS), payload=payload)
        return body[:12] + bytes([rng.choice((0x40, 0xF0))]) + body[13:] if rng.random() < 0.05 else body
    if protocol == UDP:
        lie = rng.choice((0, 7, 8, 200)) if rng.random() < 0.1 else None
        return packets.udp(source, destination, payload, length=lie)
    return packets.echo(rng.choice((8, 0)), source)


def make_conversation(rng: random.Random) -> list[Step]:
    """One to four packets of one flow, either way."""
    family, protocol = rng.choice((4, 6)), rng.choice((TCP, TCP, TCP, UDP, UDP, ICMP))
    ours, theirs = rng.choice(OURS[family]), rng.choice(THEIRS[family])
    own, peer = rng.choice(DHCP) if rng.random() < 0.2 else (rng.choice(PORTS), rng.choice(PORTS))
    steps = []
    for _ in range(rng.randint(1, 4)):
        sent = rng.random() < 0.5
        source, destination = (ours, theirs) if sent else (theirs, ours)
        body = make_body(rng, protocol, *((own, peer) if sent else (peer, own)))
        odd = rng.choice(ODD[family]) if rng.random() < 0.1 else {}
        frame = packets.ip(source, destination, protocol, body, **odd)
        steps.append((sent, frame, IFINDEX if sent else rng.choice((0, IFINDEX, 77, 77))))
    return steps


RESOLVERS = {4: (RESOLVER, RESOLVER, PEER4), 6: ("2001:db8::53", "2001:db8::53", PEER6)}
"""The trusted one, mostly; another, whose port is a resolver's too."""


def make_lookup(rng: random.Random, first_id: int) -> list[Step]:
    """Questions and answers of one pod in any order, as they should be or nearly so, with two ids from the first on."""
    family = rng.choice((4, 6))
    steps = []
    for _ in range(rng.randint(2, 5)):
        name, identifier, port = (
            rng.choice(("www.example.com", "www.example.org")),
            first_id + rng.choice((0, 0, 1)),
            4000,
        )
        own, peer = rng.choice(OURS[family]), rng.choice(RESOLVERS[family])
        port += rng.random() < 0.1
        sent = rng.random() < 0.5
        if sent != (rng.random() < 0.1):
            message = messages.query(name, rng.choice((messages.A, messages.AAAA)), identifier)
        else:
            addresses = (rng.choice(("198.51.100.7", "2001:db8:7::7", "10.1.2.3")),) * rng.randint(0, 2)
            message = messages.answer(name, *addresses, identifier=identifier)
        if rng.random() < 0.1:
            message = message[: rng.randrange(len(message))]
        length = rng.choice((0, 8, 8 + len(message) - 1, 600)) if rng.random() < 0.1 else None
        ends = ((own, port), (peer, 53)) if sent else ((peer, 53), (own, port))
        body = packets.udp(ends[0][1], ends[1][1], message, length=length)
        frame = packets.ip(ends[0][0], ends[1][0], UDP, body)
        steps.append((sent, frame, IFINDEX if sent else rng.choice((0, IFINDEX, 77, 77, 77))))
    return steps


def play(kernel: Kernel, steps: list[Step], *, is_tagged: bool) -> list[tuple[object, ...]]:
    """What becomes of each packet, and of the flows; the tag's own bytes and the times left out."""
    kernel.forget_flows()
    found: list[tuple[object, ...]] = []
    for sent, plain, ingress in steps:
        frame = packets.tagged(plain, 5) if is_tagged else plain
        result = kernel.from_pod(frame) if sent else kernel.to_pod(frame, ingress=ingress)
        event = result.event and (
            *(result.event.source, result.event.destination, result.event.source_port, result.event.destination_port),
            *(result.event.protocol, result.event.direction, result.event.verdict, result.event.reason),
            *(result.event.tier, result.event.family, result.event.bit, result.event.ruleset, result.event.domain),
            *(result.event.peer_identity, result.event.revision, result.event.frame_bytes - len(frame)),
        )
        found.append((result.passed, event))
    for key, value in sorted(kernel.maps["flows"].items()):
        *rest, sent_packets, sent_bytes, replies, reply_bytes = _FLOW.unpack(value)
        tags = TAG_BYTES * is_tagged
        found.append(
            (key, sent_packets, replies, sent_bytes - tags * sent_packets, reply_bytes - tags * replies, *rest)
        )
    return found


def test_the_first_program_says_what_the_others_say(world: Kernel) -> None:
    """Of a plain packet and of the same one behind a tag: the same verdict, event and flow, packet by packet."""
    rng = random.Random(4)
    seen: set[object] = set()
    for number in range(CONVERSATIONS):
        steps = make_conversation(rng)
        plain, tagged = (play(world, steps, is_tagged=is_tagged) for is_tagged in (False, True))
        assert plain == tagged, f"conversation {number}: {[(sent, frame.hex()) for sent, frame, _ in steps]}"
        seen |= {event[7] if event else None for _, event in plain[: len(steps)]}  # type: ignore[index]
    assert seen >= MET, f"never met: {MET - seen}"


def count_reasons(kernel: Kernel) -> Counter[bytes]:
    """Packets by reason and direction."""
    return Counter({key: int.from_bytes(value[:8], "little") for key, value in kernel.maps["reasons"].items()})


def test_a_plain_datagram_teaches_what_a_tagged_one_does(world: Kernel) -> None:
    """Of questions and answers at a resolver's port: the same verdicts, flows, names and counted reasons."""
    tables = with_dns(make_tables(egress={"isolated": True, "dns_implicit": True}, ingress={"isolated": True}))
    tables.endpoints[IFINDEX] = replace(tables.endpoints[IFINDEX], more_addresses=True)
    tables.endpoint_addresses |= {(POD_ID, "10.0.0.6"): 2, (POD_ID, "fd00::6"): 3}
    tables.resolvers[("2001:db8::53", 53)] = 1
    add_pattern(tables, "www.example.com", 7, 1 << 210)
    tables.config = replace(tables.config, allow_events=True, events_per_second=1 << 30)
    world.fill(tables)
    learned: set[object] = set()
    for number in range(LOOKUPS):
        found = []
        for is_tagged in (False, True):
            steps = make_lookup(
                random.Random(number), 4 * number + 2 * is_tagged
            )  # no question of another way's answers
            resolutions = world.maps["resolutions"]
            resolutions.delete_many(resolutions.keys())
            before = count_reasons(world)
            outcome = play(world, steps, is_tagged=is_tagged)
            names = {(key, row) for key, value in resolutions.items() for row, _ in decode_names(value).slots}
            found.append((outcome, names, count_reasons(world) - before))
        assert found[0] == found[1], f"lookup {number}: {[(sent, frame.hex()) for sent, frame, _ in steps]}"
        learned |= {key[:16] for key, _ in names}
    assert len(learned) == 2, "an address of each family was learned, and the pod's own network refused"
