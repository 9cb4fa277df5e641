"""What DNS answers teach the kernel, and each condition broken once."""

from __future__ import annotations

import struct

import pytest

from schemas.terms import Direction, Reason
from services.dnsrecorder.event import decode_event
from services.nodeagent.mapcodec import SCOPE_LEARNED
from services.nodeagent.tables import ConfigEntry, Tables
from tests.bpf import messages, packets
from tests.bpf.messages import AAAA, CNAME, A, Message, Record, address, alias, answer, query, wire_name
from tests.bpf.prog_run import IFINDEX, Kernel, Result, boot_seconds
from tests.bpf.worlds import (
    NETWORK_POLICY,
    NODE_LOCAL,
    OUTSIDE,
    POD4,
    POD_ID,
    RESOLVER,
    TRUSTED,
    add_pattern,
    make_tables,
    with_dns,
)

pytestmark = pytest.mark.kernel
NAME = "www.example.com"
ROW, WILD_ROW, APEX_ROW = 7, 8, 9
WEB = "198.51.100.7"
RULE = 1 << NETWORK_POLICY
PORT = 40000
EVENT_HEADER = 64


def tables(flags: int = TRUSTED) -> Tables:
    """The pod may use www.example.com and *.wild.example, and ask the resolver."""
    made = with_dns(make_tables(egress={"isolated": True}, ingress={"isolated": True}), flags)
    add_pattern(made, NAME, ROW, RULE)
    add_pattern(made, "*.wild.example", WILD_ROW, RULE)
    return made


@pytest.fixture
def dns(kernel: Kernel) -> Kernel:
    kernel.fill(tables())
    return kernel


def ask(kernel: Kernel, name: str = NAME, kind: int = A, identifier: int = 0x1234, port: int = PORT) -> Result:
    return kernel.from_pod(
        packets.ip(POD4, RESOLVER, packets.UDP, packets.udp(port, 53, query(name, kind, identifier)))
    )


def tell(
    kernel: Kernel, message: bytes, *, source: str = RESOLVER, sport: int = 53, port: int = PORT, ingress: int = 77
) -> Result:
    return kernel.to_pod(packets.ip(source, POD4, packets.UDP, packets.udp(sport, port, message)), ingress=ingress)


def connect(kernel: Kernel, to: str = WEB, port: int = 443) -> Result:
    return kernel.from_pod(packets.ip(POD4, to, packets.TCP, packets.tcp(50000, port)))


def count(kernel: Kernel, reason: Reason) -> int:
    return kernel.count_reason(Direction.INGRESS, reason)


def test_an_answer_opens_its_addresses_at_once(dns: Kernel) -> None:
    """The first SYN after an answer passes; before it the address is closed."""
    assert not connect(dns).passed
    assert ask(dns).passed and tell(dns, answer(NAME, WEB)).passed
    result = connect(dns)
    assert result.passed and result.event is not None
    assert (result.event.domain, result.event.bit) == (ROW, NETWORK_POLICY)
    assert not connect(dns, "198.51.100.8").passed


@pytest.mark.parametrize("name", ["WWW.Example.COM", "wWw.eXample.com"])
def test_case_does_not_matter(dns: Kernel, name: str) -> None:
    """Names are folded: an answer to a name in any case is an answer to that name."""
    ask(dns, name)
    tell(dns, answer(name, WEB))
    assert set(dns.names_of(WEB)) == {ROW}


def test_an_answer_may_differ_in_case_from_the_query(dns: Kernel) -> None:
    """0x20 case randomisation is undone by the resolver or not: both are the same question."""
    ask(dns, "wWw.ExAmple.com")
    assert tell(dns, answer("www.example.com", WEB)).passed
    assert set(dns.names_of(WEB)) == {ROW}


@pytest.mark.parametrize(("name", "row"), [("a.wild.example", WILD_ROW), ("a.b.c.wild.example", WILD_ROW)])
def test_a_wildcard_covers_one_or_more_labels(dns: Kernel, name: str, row: int) -> None:
    """``*.x`` covers names at any depth below x."""
    ask(dns, name)
    tell(dns, answer(name, WEB))
    assert set(dns.names_of(WEB)) == {row}


@pytest.mark.parametrize("name", ["wild.example", "awild.example", "www.example.com.evil.test", "example.com"])
def test_a_pattern_covers_nothing_else(dns: Kernel, name: str) -> None:
    """Neither the apex, nor a name that merely ends or begins alike."""
    ask(dns, name)
    assert tell(dns, answer(name, WEB)).passed
    assert dns.names_of(WEB) == {}


def test_ipv6_addresses_are_learned(dns: Kernel) -> None:
    """AAAA answers open IPv6 addresses."""
    ask(dns, kind=AAAA)
    tell(dns, answer(NAME, "2001:db8::7"))
    assert set(dns.names_of("2001:db8::7")) == {ROW}


def test_a_and_aaaa_from_one_port_are_apart(dns: Kernel) -> None:
    """glibc asks both types from one socket with two ids; each answer matches its own query."""
    ask(dns, kind=A, identifier=1)
    ask(dns, kind=AAAA, identifier=2)
    tell(dns, answer(NAME, "2001:db8::7", identifier=2))
    tell(dns, answer(NAME, WEB, identifier=1))
    assert set(dns.names_of(WEB)) == set(dns.names_of("2001:db8::7")) == {ROW}


def test_expiry_is_ttl_clamped_plus_grace(dns: Kernel) -> None:
    """TTL below 30 counts as 30, above 3600 as 3600, 2^31 and above as 0; then 60 seconds of grace."""
    ttls = {"198.51.100.1": 0, "198.51.100.2": 300, "198.51.100.3": 86400, "198.51.100.4": 1 << 31}
    ask(dns)
    tell(dns, answer(NAME, *(address(one, ttl=ttl) for one, ttl in ttls.items())))
    lifetimes = [dns.names_of(one)[ROW] - boot_seconds() for one in ttls]
    for lifetime, expected in zip(lifetimes, (90, 360, 3660, 90), strict=True):
        assert expected - 2 <= lifetime <= expected


def test_the_chain_of_aliases_belongs_to_the_asked_name(dns: Kernel) -> None:
    """Ten CNAMEs between the question and the address change nothing."""
    chain = [alias("a1.cdn.test")] + [
        alias(f"a{n + 1}.cdn.test", owner=wire_name(f"a{n}.cdn.test")) for n in range(1, 10)
    ]
    ask(dns)
    tell(dns, answer(NAME, *chain, address(WEB, owner=wire_name("a10.cdn.test"))))
    assert set(dns.names_of(WEB)) == {ROW}


def test_other_records_between_are_skipped(dns: Kernel) -> None:
    """Signatures and EDNS do not disturb the addresses around them."""
    signature = Record(46, bytes(40))
    option = Record(41, b"", owner=b"\0", klass=1232)
    ask(dns)
    tell(dns, Message(NAME, A, answers=[signature, address(WEB), signature], others=[option], flags=0x8180).wire())
    assert set(dns.names_of(WEB)) == {ROW}


def test_200_addresses_in_one_packet_are_all_learned(dns: Kernel) -> None:
    """More addresses than one program can walk: the last of them is open as soon as the first."""
    many = [f"198.18.0.{n}" for n in range(200)]
    ask(dns)
    tell(dns, answer(NAME, *many))
    assert all(set(dns.names_of(one)) == {ROW} for one in many)


# ---------------------------------------------------------------------------------------------------------------------
# Conditions


def learned_nothing(kernel: Kernel) -> bool:
    return kernel.names_of(WEB) == {} and not connect(kernel).passed


def test_wrong_resolver(dns: Kernel) -> None:
    """An answer from an address that is no trusted resolver teaches nothing, and is no reply either."""
    ask(dns)
    assert not tell(dns, answer(NAME, WEB), source="203.0.113.53").passed
    assert learned_nothing(dns)


def test_another_trusted_resolver_than_the_one_asked(dns: Kernel) -> None:
    """Only the resolver that was asked may answer."""
    more = tables()
    more.resolvers[("10.96.0.11", 53)] = TRUSTED
    dns.fill(more)
    ask(dns)
    assert not tell(dns, answer(NAME, WEB), source="10.96.0.11").passed
    assert learned_nothing(dns)


def test_wrong_port_of_the_resolver(dns: Kernel) -> None:
    """A resolver is an address *and* a port."""
    ask(dns)
    assert not tell(dns, answer(NAME, WEB), sport=5353).passed
    assert learned_nothing(dns)


def test_unasked(dns: Kernel) -> None:
    """An answer to nothing teaches nothing, does not pass, and is counted."""
    assert not tell(dns, answer(NAME, WEB)).passed
    assert learned_nothing(dns)
    assert count(dns, Reason.LEARN_UNASKED) == 1


@pytest.mark.parametrize(
    ("message", "port"),
    [
        pytest.param(answer(NAME, WEB, identifier=0x1235), PORT, id="other transaction id"),
        pytest.param(answer("xww.example.com", WEB), PORT, id="other name"),
        pytest.param(answer(NAME, WEB), PORT + 1, id="other port of the pod"),
        pytest.param(Message(NAME, AAAA, answers=[address(WEB)], flags=0x8180).wire(), PORT, id="other type"),
        pytest.param(Message(NAME, A, answers=[address(WEB)], flags=0x8180, klass=3).wire(), PORT, id="other class"),
        pytest.param(Message(NAME, A, answers=[address(WEB)], flags=0x0100).wire(), PORT, id="a query, not an answer"),
        pytest.param(Message(NAME, A, answers=[address(WEB)], flags=0xA980).wire(), PORT, id="opcode UPDATE"),
        pytest.param(
            Message(NAME, A, answers=[address(WEB)], flags=0x8180, questions=2).wire(), PORT, id="two questions"
        ),
        pytest.param(
            Message(NAME, A, answers=[address(WEB)], flags=0x8180, questions=0).wire(), PORT, id="no question"
        ),
    ],
)
def test_an_answer_that_does_not_match_the_query(dns: Kernel, message: bytes, port: int) -> None:
    """Id, name, type, class and port must be those of an outstanding query; one question, opcode QUERY."""
    ask(dns)
    assert not tell(dns, message, port=port).passed
    assert learned_nothing(dns)


def test_wrong_pod(dns: Kernel) -> None:
    """A query of one pod admits no answer to another."""
    ask(dns)
    result = dns.to_pod(packets.ip(RESOLVER, "10.0.0.6", packets.UDP, packets.udp(53, PORT, answer(NAME, WEB))))
    assert not result.passed and result.reason is Reason.WRONG_DESTINATION
    assert learned_nothing(dns)


def test_a_spoofed_query_asks_nothing(dns: Kernel) -> None:
    """A query with a source that is not the pod's is dropped, so no answer to it counts."""
    spoofed = packets.ip("10.0.0.9", RESOLVER, packets.UDP, packets.udp(PORT, 53, query(NAME)))
    assert dns.from_pod(spoofed).reason is Reason.SPOOFED_SOURCE
    assert not tell(dns, answer(NAME, WEB)).passed
    assert learned_nothing(dns)


def test_a_denied_query_asks_nothing(dns: Kernel) -> None:
    """Without leave to ask the resolver there is no query, whatever comes back."""
    closed = tables()
    del closed.cidrs[f"{RESOLVER}/32"]
    dns.fill(closed)
    assert not ask(dns).passed
    assert not tell(dns, answer(NAME, WEB)).passed
    assert learned_nothing(dns)


def test_a_node_local_resolver_answers_from_this_node_alone(dns: Kernel) -> None:
    """An answer in its name that came in over an interface is forged: it neither teaches nor passes."""
    dns.fill(tables(TRUSTED | NODE_LOCAL))
    ask(dns)
    assert not tell(dns, answer(NAME, WEB), ingress=77).passed
    assert not tell(dns, answer(NAME, WEB), ingress=IFINDEX + 5).passed
    assert learned_nothing(dns)
    assert count(dns, Reason.LEARN_UNTRUSTED) == 2
    assert tell(dns, answer(NAME, WEB), ingress=0).passed
    assert set(dns.names_of(WEB)) == {ROW}


def test_an_outside_resolver_teaches_the_asking_endpoint_alone(dns: Kernel) -> None:
    """What a resolver outside the cluster says is kept in the endpoint's own scope."""
    from dataclasses import replace

    outside = tables(TRUSTED | OUTSIDE)
    dns.fill(outside)
    ask(dns)
    tell(dns, answer(NAME, WEB))
    assert dns.names_of(WEB, SCOPE_LEARNED) == {}
    assert set(dns.names_of(WEB, POD_ID)) == {ROW}
    assert not connect(dns).passed
    outside.endpoints[1] = replace(outside.endpoints[1], scoped_names=True)
    dns.fill(outside)
    assert connect(dns).passed


@pytest.mark.parametrize("rcode", [1, 2, 3, 5])
def test_an_error_teaches_nothing(dns: Kernel, rcode: int) -> None:
    """NXDOMAIN, SERVFAIL and the others pass, teach nothing, and are counted."""
    ask(dns)
    assert tell(dns, answer(NAME, WEB, rcode=rcode)).passed
    assert learned_nothing(dns)
    assert count(dns, Reason.LEARN_RCODE) == 1


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([Record(A, packets.pack(WEB), size=5)], id="rdlength beyond the end"),
        pytest.param([Record(A, packets.pack(WEB) + b"\0")], id="five bytes of address"),
        pytest.param([address(WEB), Record(A, b"\1\2\3")], id="three bytes, behind a good record"),
        pytest.param([address(WEB, owner=b"\xff\xff")], id="pointer beyond the end"),
        pytest.param([address(WEB, owner=b"\xc0\x04")], id="pointer into the header"),
        pytest.param([address(WEB), address(WEB, owner=b"\xc0\x31")], id="pointer to itself"),
        pytest.param(
            [address(WEB, owner=b"\xc0\x40"), address("198.51.100.8")], id="pointer forward, to a later record"
        ),
        pytest.param([address(WEB, owner=b"\xc0\x31"), address(WEB, owner=b"\xc0\x21")], id="two pointers in a loop"),
        pytest.param([address(WEB, owner=b"\x40" + bytes(64) + b"\0")], id="a label of 64"),
        pytest.param([address(WEB, owner=b"\x80\0")], id="a label of a kind that does not exist"),
    ],
)
def test_a_malformed_answer_teaches_nothing_of_it(dns: Kernel, records: list[Record]) -> None:
    """One bad record spoils the message: what stands before it is not learned either."""
    ask(dns)
    assert tell(dns, answer(NAME, *records, kind=A)).passed
    assert learned_nothing(dns)
    assert count(dns, Reason.LEARN_MALFORMED) == 1


def test_more_records_promised_than_there_are(dns: Kernel) -> None:
    """ANCOUNT larger than the message is malformed."""
    ask(dns)
    tell(dns, Message(NAME, A, answers=[address(WEB)], flags=0x8180, count=2).wire())
    assert learned_nothing(dns)


def test_every_cut_of_an_answer_teaches_nothing(dns: Kernel) -> None:
    """An answer cut anywhere before its last byte is not learned."""
    whole = answer(NAME, WEB, "198.51.100.8")
    for length in range(len(whole)):
        ask(dns)
        tell(dns, whole[:length])
    assert learned_nothing(dns)


@pytest.mark.parametrize(
    "label", [b"a.wild.example", b"www\0", b"x.example"], ids=["a dot inside", "a NUL inside", "a shorter one"]
)
def test_a_label_with_a_dot_or_a_nul_is_no_name(dns: Kernel, label: bytes) -> None:
    """``\\.`` inside a label would read like a border between labels: such names are never learned."""
    wire = bytes([len(label)]) + label + wire_name("example.com")
    question = struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + wire + struct.pack("!HH", A, 1)
    dns.from_pod(packets.ip(POD4, RESOLVER, packets.UDP, packets.udp(PORT, 53, question)))
    reply = struct.pack("!HHHHHH", 1, 0x8180, 1, 1, 0, 0) + wire + struct.pack("!HH", A, 1) + address(WEB).wire()
    tell(dns, reply)
    assert learned_nothing(dns)
    assert count(dns, Reason.LEARN_BAD_NAME) == 1


@pytest.mark.parametrize("place", range(46))
def test_a_dot_is_found_at_every_place_of_a_label(dns: Kernel, place: int) -> None:
    """Eight bytes are read at once, and the label's own length, 46, is a dot's code: neither hides one, nor is one."""
    label = b"a" * place + b"." + b"a" * (45 - place)
    wire = bytes([len(label)]) + label + wire_name("wild.example")
    for name, rows in ((wire, set()), (b"." + b"b" * 46 + wire[47:], {WILD_ROW})):
        question = name + struct.pack("!HH", A, 1)
        asked = struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + question
        dns.from_pod(packets.ip(POD4, RESOLVER, packets.UDP, packets.udp(PORT, 53, asked)))
        tell(dns, struct.pack("!HHHHHH", 1, 0x8180, 1, 1, 0, 0) + question + address(WEB).wire())
        assert set(dns.names_of(WEB)) == rows


@pytest.mark.parametrize("byte", [0x40, 0x5B, 0xC1, 0xDA])
def test_only_letters_have_a_case(dns: Kernel, byte: int) -> None:
    """What borders on the capitals, or is one but for its highest bit, is as it was asked: else it is another name."""
    tail = struct.pack("!HH", A, 1)
    asked, told = (bytes([3, 0x61, one, 0x5A]) + wire_name("wild.example") + tail for one in (byte, byte ^ 0x20))
    question = struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + asked
    for wire, rows in ((told, set()), (asked, {WILD_ROW})):
        dns.from_pod(packets.ip(POD4, RESOLVER, packets.UDP, packets.udp(PORT, 53, question)))
        tell(dns, struct.pack("!HHHHHH", 1, 0x8180, 1, 1, 0, 0) + wire + address(WEB).wire())
        assert set(dns.names_of(WEB)) == rows


def make_name(length: int) -> str:
    """Below ``wild.example``, of labels as long as may be; two bytes more on the wire."""
    tail = "wild.example"
    rest = length - len(tail) - 1
    labels = []
    while rest > 0:
        size = min(63, rest if rest <= 63 else rest - 2)
        labels.append("a" * size)
        rest -= size + 1
    name = ".".join([*labels, tail])
    assert len(name) == length and len(wire_name(name)) == length + 2
    return name


@pytest.mark.parametrize("length", [247, 252, 253])
def test_the_longest_names_are_learned(dns: Kernel, length: int) -> None:
    """A name of 253 bytes, 255 on the wire, is a name (RFC 1035 2.3.4)."""
    name = make_name(length)
    ask(dns, name)
    tell(dns, answer(name, WEB))
    assert set(dns.names_of(WEB)) == {WILD_ROW}


@pytest.mark.parametrize("length", [254, 255, 256])
def test_a_name_of_a_byte_too_many_is_no_name(dns: Kernel, length: int) -> None:
    """256 bytes on the wire and more: no query, and no answer."""
    name = make_name(length)
    ask(dns, name)
    tell(dns, answer(name, WEB))
    assert learned_nothing(dns) and dns.drain() == []


def test_a_name_over_255_bytes_is_no_name(dns: Kernel) -> None:
    """A name longer than the wire allows is no query, and its answer no answer."""
    name = ".".join(["a" * 63] * 4 + ["wild.example"])
    ask(dns, name)
    tell(dns, answer(name, WEB))
    assert learned_nothing(dns)


def test_a_label_of_64_in_the_question_is_no_label(dns: Kernel) -> None:
    """63 bytes is the longest label (RFC 1035 2.3.4): a 64 is neither a length nor a pointer."""
    ask(dns, "a" * 64 + ".wild.example")
    tell(dns, answer("a" * 64 + ".wild.example", WEB))
    assert learned_nothing(dns)
    ask(dns, "a" * 63 + ".wild.example")
    tell(dns, answer("a" * 63 + ".wild.example", WEB))
    assert set(dns.names_of(WEB)) == {WILD_ROW}


@pytest.mark.parametrize("asked", [64, 65])
def test_hints_in_service_bindings_teach_nothing(dns: Kernel, asked: int) -> None:
    """SVCB and HTTPS records carry addresses as hints (RFC 9460 7.3): a question for addresses has none in answer."""
    binding = Record(asked, b"\0\1\0" + struct.pack("!HH", 4, 4) + packets.pack(WEB))
    ask(dns, kind=asked)
    assert tell(dns, answer(NAME, binding, kind=asked)).passed
    assert dns.drain() == []
    ask(dns)
    assert tell(dns, answer(NAME, binding, kind=A)).passed
    assert learned_nothing(dns)
    assert [decode_event(record).reason for record in dns.drain()] == [Reason.LEARN_NO_ADDRESS]


def test_a_compressed_question_is_no_question(dns: Kernel) -> None:
    """A pointer in the question points nowhere that came before it."""
    reply = struct.pack("!HHHHHH", 0x1234, 0x8180, 1, 1, 0, 0) + b"\xc0\x0c" + struct.pack("!HH", A, 1)
    ask(dns)
    assert not tell(dns, reply + address(WEB).wire()).passed
    assert learned_nothing(dns)


# ---------------------------------------------------------------------------------------------------------------------
# The rebinding guard


@pytest.mark.parametrize("where", ["guard", "ipcache"])
def test_an_address_that_no_name_may_have(dns: Kernel, where: str) -> None:
    """Addresses in the guard, of pods and of nodes are not learned; the others of the answer are."""
    guarded = tables()
    if where == "guard":
        guarded.guard["198.51.100.0/29"] = True
    else:
        guarded.ipcache[WEB] = 4242
    dns.fill(guarded)
    ask(dns)
    tell(dns, answer(NAME, WEB, "198.51.100.99"))
    assert dns.names_of(WEB) == {} and set(dns.names_of("198.51.100.99")) == {ROW}
    assert count(dns, Reason.LEARN_REFUSED_ADDRESS) == 1


def test_an_exception_to_the_guard(dns: Kernel) -> None:
    """The longest prefix decides: an exception inside a refused range may be learned."""
    guarded = tables()
    guarded.guard.update({"198.51.100.0/24": True, f"{WEB}/32": False})
    dns.fill(guarded)
    ask(dns)
    tell(dns, answer(NAME, WEB, "198.51.100.99"))
    assert set(dns.names_of(WEB)) == {ROW} and dns.names_of("198.51.100.99") == {}


@pytest.mark.parametrize(
    "embedding",
    ["64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::a9fe:a9fe", "::ffff:169.254.169.254", "::ffff:198.51.100.9"],
)
def test_an_embedded_address_is_the_address(dns: Kernel, embedding: str) -> None:
    """NAT64, 6to4, v4-compatible and v4-mapped forms of a refused address are refused; v4-mapped ones always."""
    guarded = tables()
    guarded.guard["169.254.0.0/16"] = True
    dns.fill(guarded)
    ask(dns, kind=AAAA)
    data = (
        bytes(10) + b"\xff\xff" + packets.pack(embedding[7:])
        if embedding.startswith("::ffff:")
        else packets.pack(embedding)
    )
    tell(dns, answer(NAME, Record(AAAA, data)))
    assert list(dns.maps["resolutions"].items()) == []
    assert count(dns, Reason.LEARN_REFUSED_ADDRESS) == 1


@pytest.mark.parametrize("embedding", ["64:ff9b::c633:6409", "2002:c633:6409::1"])
def test_an_embedded_pod_address_is_a_pod_address(dns: Kernel, embedding: str) -> None:
    """A translator would carry it to the pod: the exact addresses of pods count in every form."""
    guarded = tables()
    guarded.ipcache["198.51.100.9"] = 4242
    dns.fill(guarded)
    ask(dns, kind=AAAA)
    tell(dns, answer(NAME, embedding))
    assert dns.names_of(embedding) == {}


def test_a_translated_public_address_is_learned(dns: Kernel) -> None:
    """NAT64 forms of addresses that may be learned may be learned."""
    ask(dns, kind=AAAA)
    tell(dns, answer(NAME, "64:ff9b::c633:6409"))
    assert set(dns.names_of("64:ff9b::c633:6409")) == {ROW}


# ---------------------------------------------------------------------------------------------------------------------
# Autopath


@pytest.mark.parametrize("suffix", ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local"])
def test_autopath_belongs_to_the_name_without_the_suffix(dns: Kernel, suffix: str) -> None:
    """CoreDNS answers ``name.suffix`` with a CNAME to ``name``: the addresses are that name's."""
    asked = f"{NAME}.{suffix}"
    ask(dns, asked)
    tell(dns, answer(asked, alias(NAME), address(WEB, owner=wire_name(NAME))))
    assert set(dns.names_of(WEB)) == {ROW}


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        (f"{NAME}.evil.test", NAME),
        (f"{NAME}.a.b.svc.cluster.local", NAME),
        (f"a.{NAME}.svc.cluster.local", NAME),
        (f"{NAME}.svc.cluster.local", f"a.{NAME}"),
        (f"{NAME}.xsvc.cluster.local", "www.example"),
        ("evil.test", NAME),
    ],
)
def test_no_other_alias_names_anything(dns: Kernel, asked: str, target: str) -> None:
    """An alias to an allowed name from any other name gives that name no address."""
    ask(dns, asked)
    tell(dns, answer(asked, alias(target), address(WEB, owner=wire_name(target))))
    assert learned_nothing(dns)


def test_an_alias_that_is_not_first_names_nothing(dns: Kernel) -> None:
    """Autopath's CNAME is the first record."""
    asked = f"{NAME}.svc.cluster.local"
    ask(dns, asked)
    tell(dns, answer(asked, address(WEB), alias(NAME)))
    assert learned_nothing(dns)


# ---------------------------------------------------------------------------------------------------------------------
# Slots, quotas, events


def test_64_names_share_an_address_and_64_more_are_the_endpoints_own(dns: Kernel) -> None:
    """Pages of eight, chained: 64 names for all, 64 more an endpoint; the next is refused with a reason."""
    many = tables()
    for row in range(100, 229):
        add_pattern(many, f"n{row}.shared.test", row, RULE)
    dns.fill(many)
    for row in range(100, 229):
        ask(dns, f"n{row}.shared.test")
        tell(dns, answer(f"n{row}.shared.test", WEB))
    assert set(dns.names_of(WEB)) == set(range(100, 164))
    assert set(dns.names_of(WEB, POD_ID)) == set(range(164, 228))
    assert count(dns, Reason.MAP_FULL) == 1


def test_learning_again_keeps_one_slot_and_the_later_expiry(dns: Kernel) -> None:
    """A repeated answer renews its slot; a shorter TTL takes nothing back."""
    for ttl in (60, 600, 30):
        ask(dns)
        tell(dns, answer(NAME, address(WEB, ttl=ttl)))
    names = dns.names_of(WEB)
    assert list(names) == [ROW] and names[ROW] - boot_seconds() > 600


@pytest.mark.parametrize("others", [0, 3, 7])
def test_a_name_is_renewed_when_half_of_its_time_is_over(dns: Kernel, others: int) -> None:
    """Whichever slot it has: with more than half of its time left nothing is written, with less it is."""
    for row in range(100, 100 + others):
        dns.add_name(WEB, row, boot_seconds() + 5000)
    ask(dns)
    tell(dns, answer(NAME, address(WEB, ttl=600)))
    first = dns.names_of(WEB)[ROW]
    ask(dns)
    tell(dns, answer(NAME, address(WEB, ttl=1000)))
    assert dns.names_of(WEB)[ROW] == first
    ask(dns)
    tell(dns, answer(NAME, address(WEB, ttl=3600)))
    assert dns.names_of(WEB)[ROW] >= first + 2900
    assert len(dns.names_of(WEB)) == others + 1


def test_what_the_guard_refuses_since_is_not_renewed(dns: Kernel) -> None:
    """A name that was taught before its address became a pod's gets no new time by another answer."""
    ask(dns)
    tell(dns, answer(NAME, address(WEB, ttl=600)))
    first = dns.names_of(WEB)[ROW]
    guarded = tables()
    guarded.ipcache[WEB] = 4242
    dns.fill(guarded)
    for ttl in (600, 3600):
        ask(dns)
        tell(dns, answer(NAME, address(WEB, ttl=ttl)))
        assert dns.names_of(WEB)[ROW] == first
    assert count(dns, Reason.LEARN_REFUSED_ADDRESS) == 1


def test_over_its_quota_an_endpoint_learns_nothing_more(dns: Kernel) -> None:
    """The quota is the endpoint's own; what the agent credits may be learned anew."""
    small = tables()
    small.config = ConfigEntry(names_per_endpoint=10)
    dns.fill(small)
    ask(dns)
    tell(dns, answer(NAME, *(f"198.18.0.{n}" for n in range(1, 21))))
    assert len(dns.maps["resolutions"].keys()) == 10
    assert count(dns, Reason.LEARN_QUOTA) == 1
    dns.maps["credits"].put(POD_ID.to_bytes(4, "little"), (5).to_bytes(4, "little"))
    ask(dns)
    tell(dns, answer(NAME, *(f"198.18.1.{n}" for n in range(1, 21))))
    assert len(dns.maps["resolutions"].keys()) == 15


def test_more_given_back_than_was_charged_shuts_nobody_out(dns: Kernel) -> None:
    """As after an upgrade that carried names over and no quotas: what they give back is no debt."""
    dns.maps["credits"].put(POD_ID.to_bytes(4, "little"), (3).to_bytes(4, "little"))
    ask(dns)
    tell(dns, answer(NAME, WEB))
    assert set(dns.names_of(WEB)) == {ROW} and count(dns, Reason.LEARN_QUOTA) == 0


def test_news_is_told_once(dns: Kernel) -> None:
    """One event for an answer that is news, with the whole message; none for its repetition."""
    message = answer(NAME, WEB)
    for _ in range(3):
        ask(dns)
        tell(dns, message)
    (event,) = dns.drain()
    assert event[EVENT_HEADER:] == message
    ask(dns)
    tell(dns, answer(NAME, WEB, "198.51.100.8"))
    assert len(dns.drain()) == 1


KEPT_BYTES = 64
"""struct kept; its stamp's ``expires`` are the bytes 4 to 7."""


def pass_time(kernel: Kernel, seconds: int) -> None:
    """What was told was told so much longer ago."""
    seen, changed = kernel.maps["seen"], {}
    for key, value in seen.items():
        aged = bytearray(value)
        for at in range(4, len(aged), KEPT_BYTES):
            expires = int.from_bytes(aged[at : at + 4], "little")
            aged[at : at + 4] = max(expires - seconds, 0).to_bytes(4, "little")
        if aged != value:
            changed[key] = bytes(aged)
    seen.put_many(changed)


def is_told(kernel: Kernel, message: bytes, name: str = NAME, *, after: int = 0) -> bool:
    """Whether this answer, so many seconds later, is news to the recorder."""
    pass_time(kernel, after)
    kernel.drain()
    assert ask(kernel, name).passed and tell(kernel, message).passed
    return len(kernel.drain()) == 1


SOME, MORE = (WEB,), tuple(f"198.18.0.{n}" for n in range(1, 71))
"""More addresses than a whole answer is remembered by."""


@pytest.mark.parametrize("addresses", [SOME, MORE])
def test_an_answer_in_use_is_told_before_its_time_is_over(dns: Kernel, addresses: tuple[str, ...]) -> None:
    """Seen now and again, it is told so often that the cluster has it all the time: 300 seconds and 60 of grace."""
    message = answer(NAME, *addresses)
    assert is_told(dns, message)
    assert is_told(dns, message, after=280)
    assert is_told(dns, message, after=280)


@pytest.mark.parametrize(("ttl", "half"), [(300, 180), (30, 45), (1, 45), (3600, 1830), (1 << 31, 45)])
def test_an_answer_is_news_again_when_half_of_its_time_is_over(dns: Kernel, ttl: int, half: int) -> None:
    """Its own time, within the bounds, and the grace."""
    message = answer(NAME, address(WEB, ttl=ttl))
    assert is_told(dns, message)
    assert not is_told(dns, message, after=half - 5)
    assert is_told(dns, message, after=5)


def test_an_answer_is_news_again_after_its_time(dns: Kernel) -> None:
    """However often it is asked for meanwhile, and however long it is not."""
    message = answer(NAME, WEB)
    assert is_told(dns, message)
    assert not any(is_told(dns, message, after=10) for _ in range(10))
    for _ in range(2):
        assert is_told(dns, message, after=400)


def test_what_a_cache_still_has_is_no_news(dns: Kernel) -> None:
    """TTLs that fall with time end when what was told ends; the first one that does not fall is news."""
    assert is_told(dns, answer(NAME, WEB))
    assert not any(is_told(dns, answer(NAME, address(WEB, ttl=300 - age)), after=20) for age in range(20, 300, 20))
    assert is_told(dns, answer(NAME, WEB), after=20)


def test_the_shortest_time_of_an_answer_counts(dns: Kernel) -> None:
    """Wherever it stands."""
    for message in (
        answer(NAME, address(WEB, ttl=30), address("198.51.100.8", ttl=3600)),
        answer(NAME, address("198.51.100.9", ttl=3600), address("198.51.100.10", ttl=30)),
    ):
        assert is_told(dns, message)
        assert not is_told(dns, message, after=40)
        assert is_told(dns, message, after=10)


def test_what_was_not_told_again_has_no_more_time(dns: Kernel) -> None:
    """Addresses in another choice are no news, and yet soon so: not when they were seen counts, but when told."""
    assert is_told(dns, answer(NAME, WEB, "198.51.100.8"))
    assert not is_told(dns, answer(NAME, WEB), after=170)
    assert is_told(dns, answer(NAME, WEB), after=20)


def test_uncovered_names_are_told_and_not_learned(dns: Kernel) -> None:
    """Every valid answer is news to the recorder; only covered names open anything."""
    ask(dns, "other.test")
    tell(dns, answer("other.test", WEB))
    assert len(dns.drain()) == 1 and learned_nothing(dns)


def test_a_pattern_added_later_makes_an_answer_news_again(dns: Kernel) -> None:
    """What was seen under no pattern is learned and told when one covers it."""
    ask(dns, "other.test")
    tell(dns, answer("other.test", WEB))
    more = tables()
    add_pattern(more, "other.test", 50, RULE)
    dns.fill(more)
    dns.drain()
    ask(dns, "other.test")
    tell(dns, answer("other.test", WEB))
    assert set(dns.names_of(WEB)) == {50} and len(dns.drain()) == 1


def test_the_recorder_decodes_what_the_kernel_tells(dns: Kernel) -> None:
    """The event says who asked whom, how many addresses there were, and how many are open."""
    ask(dns)
    tell(dns, answer(NAME, WEB, "198.51.100.8"))
    event = decode_event(dns.drain()[0])
    assert (event.endpoint, event.resolver, event.resolver_port) == (POD_ID, RESOLVER, 53)
    assert (event.answers, event.learned, event.reason, event.domain) == (2, 2, 0, ROW)


def test_fragments_of_an_answer_pass_with_its_first(dns: Kernel) -> None:
    """An answer in two fragments: the first matches the query, the second follows the first."""
    ask(dns)
    message = answer(NAME, *(f"198.18.0.{n}" for n in range(1, 120)))
    body = packets.udp(53, PORT, message)
    first = packets.ethernet(
        packets.IPV4, packets.ipv4(RESOLVER, POD4, packets.UDP, body[:1480], more=True, identifier=9)
    )
    last = packets.ethernet(
        packets.IPV4, packets.ipv4(RESOLVER, POD4, packets.UDP, body[1480:], fragment=185, identifier=9)
    )
    assert not dns.to_pod(last).passed
    assert dns.to_pod(first).passed and dns.to_pod(last).passed


def test_queries_are_remembered_for_their_own_endpoint_in_their_own_array(dns: Kernel) -> None:
    """A thousand outstanding queries of one pod all get their answers."""
    for n in range(1000):
        ask(dns, f"n{n}.test", identifier=n * 7 % 65536, port=30000 + n)
    passed = [
        tell(dns, answer(f"n{n}.test", WEB, identifier=n * 7 % 65536), port=30000 + n).passed for n in range(1000)
    ]
    assert sum(passed) >= 990


def test_an_open_question_outlasts_those_that_are_answered(dns: Kernel) -> None:
    """However many others fall into its set meanwhile: what is answered is overwritten first, and may be told twice."""
    ask(dns)
    for high in range(256):
        identifier = high << 8 | high ^ 0x12 ^ 0x34  # the set is the identifier's two bytes folded, and the port's
        if identifier != 0x1234:
            ask(dns, "other.example.com", identifier=identifier)
            said = answer("other.example.com", "198.51.100.9", identifier=identifier)
            assert tell(dns, said).passed and tell(dns, said).passed
    assert tell(dns, answer(NAME, WEB)).passed
    assert set(dns.names_of(WEB)) == {ROW}


def test_queries_make_one_flow(dns: Kernel) -> None:
    """However many names a pod asks for, DNS with one resolver is one flow."""
    for n in range(50):
        ask(dns, f"n{n}.test", port=30000 + n)
        tell(dns, answer(f"n{n}.test", WEB), port=30000 + n)
    assert len(dns.maps["flows"].keys()) == 1


def test_what_is_no_query_is_an_ordinary_flow(dns: Kernel) -> None:
    """Bytes that are no DNS are judged as a flow of their own, whose replies pass and teach nothing."""
    junk = packets.ip(POD4, RESOLVER, packets.UDP, packets.udp(PORT, 53, b"junk"))
    back = packets.ip(RESOLVER, POD4, packets.UDP, packets.udp(53, PORT, answer(NAME, WEB)))
    assert dns.from_pod(junk).passed and dns.to_pod(back).passed
    assert learned_nothing(dns)


def test_learned_names_meet_the_shared_ones(dns: Kernel) -> None:
    """A name that another node saw opens the address here, in a scope that the learner never writes."""
    from services.nodeagent.mapcodec import SCOPE_SHARED

    dns.add_name(WEB, ROW, boot_seconds() + 60, scope=SCOPE_SHARED)
    assert connect(dns).passed


def test_messages_module_builds_what_dnspython_reads() -> None:
    """The builders of these tests make legal messages."""
    import dns.message

    parsed = dns.message.from_wire(answer(NAME, alias("a.test"), address(WEB, owner=wire_name("a.test"))))
    assert parsed.answer[0].rdtype == CNAME and str(parsed.question[0].name) == NAME + "."
    assert messages.QUESTION_POINTER == b"\xc0\x0c"
