"""The first packet of a flow as bytes: Ethernet, IPv4 or IPv6, and the header of whatever it carries.

Checksums are left zero: nothing that judges looks at them. Pure.
"""

from __future__ import annotations

import struct

from schemas.selectors import parse_address
from schemas.terms import Protocol
from services.controller.policy.model import Packet

_MACS = bytes.fromhex("020000000002020000000004")
_ETHER_IPV4, _ETHER_IPV6 = 0x0800, 0x86DD
_TCP_SYN = 0x02
_ECHO_REQUEST = {Protocol.ICMP: 8, Protocol.ICMPV6: 128}
_FRAME_BYTES_MIN = 60


def make_frame(packet: Packet, tag: int) -> bytes:
    """A frame that opens a flow. ``tag``: 16 bits that tell it from another one: source port or echo identifier."""
    body = _make_body(packet.protocol, packet.port, tag)
    source, destination = parse_address(packet.source), parse_address(packet.destination)
    if source.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), tag, 0, 64, packet.protocol, 0)
        ethertype = _ETHER_IPV4
    else:
        head = struct.pack("!IHBB", 6 << 28, len(body), packet.protocol, 64)
        ethertype = _ETHER_IPV6
    frame = _MACS + struct.pack("!H", ethertype) + head + source.packed + destination.packed + body
    return frame.ljust(_FRAME_BYTES_MIN, b"\0")


def _make_body(protocol: int, port: int, tag: int) -> bytes:
    if protocol == Protocol.TCP:
        return struct.pack("!HHIIBBHHH", tag, port, 1, 0, 0x50, _TCP_SYN, 1024, 0, 0)
    if protocol == Protocol.UDP:
        return struct.pack("!HHHH", tag, port, 8, 0)
    if protocol == Protocol.SCTP:
        return struct.pack("!HHII", tag, port, 0, 0)
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        return struct.pack("!BBHHH", _ECHO_REQUEST[Protocol(protocol)], 0, 0, tag, 1)
    return bytes(20)
