"""Answers over TCP on a real interface: what one send leaves in one super-packet, longer than a test run may be."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from services.demo.netns import open_socket, visit_namespace
from services.nodeagent.netlink import Netlink, make_life
from services.nodeagent.tables import Tables
from tests.bpf.messages import A, address, answer, query
from tests.bpf.prog_run import Kernel
from tests.bpf.test_learner_pieces import WILD_ROW, assemble_pieces, prefixed, tables, take_given_up, take_pieces
from tests.bpf.worlds import POD4, RESOLVER

pytestmark = pytest.mark.kernel
LINK = 77
"""Index of the pod's interface in the node's namespace."""
SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Wire:
    """Two network namespaces: the resolver is in the node's, the pod has one of its own."""

    node: str
    pod: str


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=SECONDS)


def make_wire(wire: Wire) -> None:
    """Routes with a window that takes 100 segments at once."""
    ip("netns", "add", wire.node)
    ip("netns", "add", wire.pod)
    peer = ("type", "veth", "peer", "name", "eth0", "netns", wire.pod)
    ip("-n", wire.node, "link", "add", "name", "pod0", "index", str(LINK), *peer)
    for namespace, link, own, other in ((wire.node, "pod0", RESOLVER, POD4), (wire.pod, "eth0", POD4, RESOLVER)):
        ip("-n", namespace, "link", "set", link, "up")
        ip("-n", namespace, "address", "add", f"{own}/32", "dev", link)
        ip("-n", namespace, "route", "add", other, "dev", link, "initcwnd", "100", "initrwnd", "100")


@pytest.fixture
def wire(kernel: Kernel) -> Iterator[Wire]:
    """The pod of ``kernel`` is behind the interface, both programs are on it."""
    made = Wire(f"yw{os.getpid()}n", f"yw{os.getpid()}p")
    try:
        make_wire(made)
        kernel.fill(at_link(tables()))
        with visit_namespace(made.node):
            link = Netlink((), ())
        with closing(link):
            link.set_programs({name: Path(path) for name, path in kernel.loaded.programs.items()})
            assert link.attach(LINK, make_life())
        yield made
    finally:
        for namespace in (made.node, made.pod):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True, timeout=SECONDS)


def at_link(made: Tables) -> Tables:
    """The pod's interface is this one."""
    made.endpoints = {LINK: replace(made.endpoints[1], ifindex=LINK)}
    return made


def send_at_once(wire: Wire, payload: bytes) -> None:
    """From the resolver to the pod, on a connection that the pod opened and asked on; until the pod has it all."""
    with (
        closing(open_socket(wire.node, socket.AF_INET, socket.SOCK_STREAM)) as resolver,
        closing(open_socket(wire.pod, socket.AF_INET, socket.SOCK_STREAM)) as pod,
    ):
        for one in (resolver, pod):
            one.settimeout(SECONDS)
        resolver.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        resolver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        resolver.bind((RESOLVER, 53))
        resolver.listen()
        pod.connect((RESOLVER, 53))
        pod.sendall(prefixed(query("n1.wild.example", A)))
        with closing(resolver.accept()[0]) as answering:
            answering.sendall(payload)
            left = len(payload)
            while left:
                left -= len(pod.recv(left))


@pytest.mark.parametrize(
    ("several", "size", "learned"), [(7, 50, 4), (30, 50, 3), (60, 50, 2), (200, 1, 5), (25, 130, 1)]
)
def test_what_a_super_packet_holds_is_learned_or_handed_over(
    kernel: Kernel, wire: Wire, several: int, size: int, learned: int
) -> None:
    """Up to 64 KiB in one packet: the kernel learns what comes first, ``learned`` at least, the recorder the rest."""
    told = {}
    for n in range(1, several + 1):
        addresses = [f"198.18.{n}.{each}" for each in range(1, size + 1)]
        told[answer(f"n{n}.wild.example", *addresses)] = addresses
    assert count_learned(kernel, wire, told) >= learned


@pytest.mark.parametrize(("size", "learned"), [(255, 1), (256, 0), (270, 0)])
def test_an_answer_of_the_most_addresses_is_learned_or_handed_over(
    kernel: Kernel, wire: Wire, size: int, learned: int
) -> None:
    """Records whose owner is the root are the shortest: more of them in a message than the kernel keeps."""
    addresses = [f"198.18.{n // 250}.{n % 250 + 1}" for n in range(size)]
    message = answer("n1.wild.example", *(address(one, owner=b"\0") for one in addresses))
    assert len(message) <= 4095
    assert count_learned(kernel, wire, {message: addresses}) == learned


def count_learned(kernel: Kernel, wire: Wire, told: dict[bytes, list[str]]) -> int:
    """How many of these messages (of these addresses) the kernel learned whole; the recorder has every other one."""
    send_at_once(wire, b"".join(map(prefixed, told)))
    pieces, given_up = take_pieces(kernel), take_given_up(kernel)
    assert not any(event.suppressed for event in (*pieces, *given_up))
    handed = [event.message for event in given_up] + [one.message for one in assemble_pieces(pieces)]
    left = [message for message, many in told.items() if not all(WILD_ROW in kernel.names_of(one) for one in many)]
    assert sorted(handed) == sorted(left)
    return len(told) - len(left)
