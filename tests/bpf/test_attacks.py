"""Attacks on the programs, each by name: what a pod, its neighbours or its resolver may try, and what becomes of it.

Where the findings of a review are tested more widely elsewhere (``test_learner``, ``test_flows``, ``test_packets``), the
attack is made here once more in its plainest form, as its author would make it.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from schemas.terms import Direction, Reason
from services.nodeagent.mapcodec import SCOPE_LEARNED
from services.nodeagent.tables import ConfigEntry, Tables
from tests.bpf import packets
from tests.bpf.messages import AAAA, A, address, alias, answer, query
from tests.bpf.packets import ACK, SYN, TCP, UDP, tcp, udp
from tests.bpf.prog_run import IFINDEX, Kernel, Result
from tests.bpf.worlds import (
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
RULE = 1 << 200
NAME, ROW = "www.example.com", 7
WEB = "198.51.100.7"
VICTIM = "10.0.0.6"
"""Another pod."""


def shut() -> Tables:
    """A pod that may talk to nobody."""
    return make_tables(egress={"isolated": True}, ingress={"isolated": True})


def named(flags: int = TRUSTED) -> Tables:
    """A pod that may ask the resolver and connect to one name."""
    tables = with_dns(shut(), flags)
    add_pattern(tables, NAME, ROW, RULE)
    return tables


def ask(kernel: Kernel, name: str = NAME, *, kind: int = A, identifier: int = 0x1234, port: int = 40000) -> Result:
    return kernel.from_pod(packets.ip(POD4, RESOLVER, UDP, udp(port, 53, query(name, kind, identifier))))


def tell(
    kernel: Kernel, message: bytes, *, source: str = RESOLVER, sport: int = 53, port: int = 40000, ingress: int = 77
) -> Result:
    return kernel.to_pod(packets.ip(source, POD4, UDP, udp(sport, port, message)), ingress=ingress)


def connect(kernel: Kernel, to: str = WEB, *, flags: int = SYN) -> Result:
    return kernel.from_pod(packets.ip(POD4, to, TCP, tcp(50000, 443, flags)))


def denied(result: Result, reason: Reason) -> None:
    assert not result.passed and result.reason is reason


# ---------------------------------------------------------------------------------------------------------------------
# Names


def test_a_name_taught_before_the_pod_does_not_open_it(kernel: Kernel) -> None:
    """A tenant lets its wildcard resolve to free pod addresses and waits: a pod that gets one is no name's."""
    tables = named()
    kernel.fill(tables)
    ask(kernel)
    tell(kernel, answer(NAME, VICTIM))
    assert connect(kernel, VICTIM).passed
    tables.ipcache[VICTIM] = 42
    kernel.fill(tables)
    denied(connect(kernel, VICTIM), Reason.ISOLATED)
    denied(connect(kernel, VICTIM, flags=ACK), Reason.ISOLATED)


def test_a_live_flow_by_name_ends_when_the_address_becomes_a_pods(kernel: Kernel) -> None:
    """Nor does the name that admitted a flow keep it alive towards the pod that has the address now."""
    tables = named()
    kernel.fill(tables)
    ask(kernel)
    tell(kernel, answer(NAME, VICTIM))
    assert connect(kernel, VICTIM).passed and connect(kernel, VICTIM, flags=ACK).passed
    tables.ipcache[VICTIM] = 42
    kernel.fill(tables)
    denied(connect(kernel, VICTIM, flags=ACK), Reason.ISOLATED)


@pytest.mark.parametrize("embedding", ["64:ff9b::a00:6", "2002:a00:6::1", "::a00:6"])
def test_no_translator_leads_to_a_pod(kernel: Kernel, embedding: str) -> None:
    """An IPv6 form of a pod's address is no way to it."""
    tables = named()
    tables.ipcache[VICTIM] = 42
    kernel.fill(tables)
    ask(kernel, kind=AAAA)
    tell(kernel, answer(NAME, embedding))
    assert not kernel.maps["resolutions"].keys()


def test_an_answer_through_the_pods_own_service_teaches_nothing(kernel: Kernel) -> None:
    """A Service of the pod's own that bears the resolver's address makes answers come out of its own interface."""
    kernel.fill(named())
    ask(kernel)
    tell(kernel, answer(NAME, WEB), ingress=IFINDEX)
    assert kernel.names_of(WEB) == {}
    assert kernel.count_reason(Direction.INGRESS, Reason.LEARN_UNTRUSTED) == 1
    assert not connect(kernel).passed


def test_an_answer_of_the_nodes_resolver_comes_from_this_node(kernel: Kernel) -> None:
    """A masqueraded packet bears the node's address and port 53: it was forwarded, so it teaches nothing."""
    kernel.fill(named(TRUSTED | NODE_LOCAL))
    ask(kernel)
    denied(tell(kernel, answer(NAME, WEB), ingress=77), Reason.ISOLATED)
    assert kernel.names_of(WEB) == {}
    assert tell(kernel, answer(NAME, WEB), ingress=0).passed and set(kernel.names_of(WEB)) == {ROW}


def test_an_outside_resolver_cannot_speak_for_the_cluster(kernel: Kernel) -> None:
    """Whoever can forge 8.8.8.8 towards one pod teaches that pod alone."""
    kernel.fill(named(TRUSTED | OUTSIDE))
    ask(kernel)
    tell(kernel, answer(NAME, WEB))
    assert kernel.names_of(WEB, SCOPE_LEARNED) == {} and set(kernel.names_of(WEB, POD_ID)) == {ROW}


def test_every_bit_of_an_answers_header_counts(kernel: Kernel) -> None:
    """One bit changed in id, flags, opcode, counts or question: what is learned is of the asked name, or nothing."""
    kernel.fill(named())
    good = answer(NAME, WEB)
    survivors = set()
    for at in range(len(good) - 16):
        for bit in range(8):
            kernel.forget()
            ask(kernel)
            changed = bytearray(good)
            changed[at] ^= 1 << bit
            tell(kernel, bytes(changed))
            names = kernel.names_of(WEB)
            if names:
                survivors.add(at)
                assert set(names) == {ROW}
    # AA, TC, RD; RA, Z, AD, CD; the counts of sections behind the answer; case of letters.
    question = set(range(12, 12 + len(NAME) + 2))
    assert survivors <= {2, 3, 8, 9, 10, 11} | question


def test_queries_of_one_pod_cannot_be_answered_to_another_interface(kernel: Kernel) -> None:
    """The interface is part of the question: a neighbour that knows port and id is not who asked."""
    tables = named()
    kernel.fill(tables)
    ask(kernel)
    tables.endpoints[1] = replace(tables.endpoints[1], id=POD_ID - 1)
    kernel.fill(tables)
    denied(tell(kernel, answer(NAME, WEB)), Reason.ISOLATED)
    assert kernel.names_of(WEB) == {}


def test_a_flood_of_queries_overwrites_ones_own_and_admits_nothing(kernel: Kernel) -> None:
    """After 20,000 other queries the first answer may be unknown: it is then refused, never taken for another's."""
    kernel.fill(named())
    ask(kernel)
    for number in range(20_000):
        ask(kernel, f"n{number}.flood.test", identifier=number & 0xFFFF, port=1024 + number % 60_000)
    result = tell(kernel, answer(NAME, WEB))
    assert result.passed == bool(kernel.names_of(WEB))
    assert not tell(kernel, answer("n1.flood.test", WEB, identifier=77), port=1025).passed
    assert len(kernel.maps["flows_unanswered"].keys()) + len(kernel.maps["flows_answered"].keys()) == 1


@pytest.mark.parametrize("target", range(0, 64, 3))
def test_owner_pointers_lead_nowhere_else(kernel: Kernel, target: int) -> None:
    """A compression pointer to any place teaches the asked name or nothing, and never hangs the learner."""
    kernel.fill(named())
    ask(kernel)
    tell(kernel, answer(NAME, address(WEB, owner=struct.pack("!H", 0xC000 | target))))
    assert set(kernel.names_of(WEB)) <= {ROW}


def test_an_alias_does_not_lend_its_name(kernel: Kernel) -> None:
    """An attacker's name with a CNAME to an allowed one teaches nothing under the allowed name."""
    kernel.fill(named())
    ask(kernel, "evil.test")
    owner = b"\x03www\x07example\x03com\0"
    tell(kernel, answer("evil.test", alias(NAME), address(WEB, owner=owner)))
    assert kernel.names_of(WEB) == {}


def test_a_quota_that_is_used_up_is_ones_own(kernel: Kernel) -> None:
    """A pod that learned all it may takes nothing from its neighbour."""
    tables = named()
    tables.config = ConfigEntry(names_per_endpoint=5)
    kernel.fill(tables)
    ask(kernel)
    tell(kernel, answer(NAME, *(f"198.18.0.{n}" for n in range(1, 31))))
    assert len(kernel.maps["resolutions"].keys()) == 5
    tables.endpoints[1] = replace(tables.endpoints[1], id=POD_ID - 1)
    kernel.fill(tables)
    ask(kernel)
    tell(kernel, answer(NAME, WEB))
    assert set(kernel.names_of(WEB)) == {ROW}
