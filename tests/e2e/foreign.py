"""Another's policy program, as the managed service's agent attaches its own: a TC filter at priority 1, handle 1."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from services.common import bpf
from services.demo.topology import Pod
from tests.e2e.onenode import OneNode

TC_ACT_OK, TC_ACT_SHOT = 0, 2
DESTINATION_OFFSET = 30
"""Of the IPv4 destination in a frame."""


def _instruction(code: int, registers: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhI", code, registers, offset, value & 0xFFFFFFFF)


def accept_all() -> bytes:
    """TC_ACT_OK, which ends the chain: what stands behind it is not asked."""
    return _instruction(0xB7, value=TC_ACT_OK) + _instruction(0x95)


def drop_destination(address: str) -> bytes:
    """Drops what goes to one IPv4 address and accepts the rest, ending the chain either way."""
    number = int(ipaddress.IPv4Address(address))
    return b"".join(
        (
            _instruction(0xBF, 0x16),  # r6 = r1, the packet
            _instruction(0x20, value=DESTINATION_OFFSET),  # r0 = the word there, in host order
            _instruction(0xB4, 0x02, value=number),  # w2 = the address
            _instruction(0x1D, 0x20, 2),  # if r0 == r2 skip two
            accept_all(),
            _instruction(0xB7, value=TC_ACT_SHOT),
            _instruction(0x95),
        )
    )


@contextlib.contextmanager
def pinned(program: bytes, name: str) -> Iterator[str]:
    """The program's pin, gone afterwards."""
    fd = bpf.load_program(program, name, "GPL")
    pin = Path(f"/sys/fs/bpf/yett-{name}-{os.getpid()}")
    try:
        bpf.pin_object(fd, pin)
        yield str(pin)
    finally:
        os.close(fd)
        pin.unlink(missing_ok=True)


def add_filter(node: OneNode, pod: Pod, priority: int, pin: str) -> None:
    """On what the pod sends."""
    where = ("dev", pod.interface, "ingress", "prio", str(priority), "handle", "1")
    node.in_node("tc", "filter", "add", *where, "bpf", "da", "object-pinned", pin)
