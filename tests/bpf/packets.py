"""Frames by hand: small builders, so that a test can make exactly the bytes it means, right or wrong."""

from __future__ import annotations

import ipaddress
import struct

ETHERNET = bytes.fromhex("0202020202020404040404 04".replace(" ", ""))
IPV4, IPV6, ARP, VLAN, QINQ = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8
ICMP, TCP, UDP, ICMP6, SCTP = 1, 6, 17, 58, 132
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def pack(address: str) -> bytes:
    """An address in its own family's bytes."""
    return ipaddress.ip_address(address).packed


def ethernet(ethertype: int, body: bytes) -> bytes:
    """A frame, padded to what a wire carries."""
    return (ETHERNET + struct.pack("!H", ethertype) + body).ljust(60, b"\0")


def tagged(frame: bytes, *tags: int) -> bytes:
    """The same frame with VLAN tags in band."""
    inner = frame[12:]
    for tag in reversed(tags):
        inner = struct.pack("!HH", VLAN, tag) + inner
    return frame[:12] + inner


def tcp(source: int, destination: int, flags: int = SYN, *, payload: bytes = b"", sequence: int = 1) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, sequence, 0, 0x50, flags, 1024, 0, 0) + payload


def udp(source: int, destination: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    size = 8 + len(payload) if length is None else length
    return struct.pack("!HHHH", source, destination, size, 0) + payload


def seal_udp(source: str, destination: str, body: bytes) -> bytes:
    """The same datagram with its checksum (RFC 768)."""
    part = pack(source) + pack(destination) + struct.pack("!II", len(body), UDP) + body + bytes(len(body) % 2)
    rest = 0xFFFF - int.from_bytes(part, "big") % 0xFFFF
    return body[:6] + struct.pack("!H", rest) + body[8:]


def sctp(source: int, destination: int) -> bytes:
    return struct.pack("!HHII", source, destination, 0, 0)


def echo(kind: int, identifier: int, *, code: int = 0) -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, identifier, 1)


def icmp(kind: int, code: int, rest: bytes = bytes(4), body: bytes = b"") -> bytes:
    return struct.pack("!BBH", kind, code, 0) + rest + body


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    body: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0,
    more: bool = False,
    identifier: int = 1,
    total: int | None = None,
    ttl: int = 64,
) -> bytes:
    """``fragment`` in units of 8 bytes; ``total`` overrides the length field."""
    header = 20 + len(options)
    length = header + len(body) if total is None else total
    start = struct.pack("!BBHHHBBH", 0x40 | header // 4, 0, length, identifier, fragment | more << 13, ttl, protocol, 0)
    return start + pack(source) + pack(destination) + options + body


def ipv6(
    source: str, destination: str, following: int, body: bytes, *, hops: int = 64, total: int | None = None
) -> bytes:
    length = len(body) if total is None else total
    return struct.pack("!IHBB", 6 << 28, length, following, hops) + pack(source) + pack(destination) + body


def extension(following: int, body: bytes = bytes(6)) -> bytes:
    """Hop-by-hop, destination options or routing: next header, length, body (6 bytes, or 6 + 8n)."""
    return struct.pack("!BB", following, (len(body) + 2) // 8 - 1) + body


def fragment6(following: int, offset: int, *, more: bool, identifier: int = 7) -> bytes:
    """``offset`` in units of 8 bytes."""
    return struct.pack("!BBHI", following, 0, offset << 3 | more, identifier)


def ip(source: str, destination: str, protocol: int, body: bytes, **rest: object) -> bytes:
    """A frame of whichever family the addresses are."""
    if ":" in source:
        return ethernet(IPV6, ipv6(source, destination, protocol, body, **rest))  # type: ignore[arg-type]
    return ethernet(IPV4, ipv4(source, destination, protocol, body, **rest))  # type: ignore[arg-type]


def arp(sender: str, target: str, *, operation: int = 1) -> bytes:
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + bytes(6) + pack(sender) + bytes(6) + pack(target)
    return ethernet(ARP, body)
