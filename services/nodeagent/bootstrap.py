"""What passes strict mode's gate before anything is judged: ``YETT_BOOTSTRAP``, from an agent's own configuration.

An agent whose NATS, cluster DNS or controller is a pod behind a veth would keep it shut, and so never hear that it may
open it. Each entry is ``protocol:cidr:port``, an IPv6 range in brackets. Deliberately absent: rules (``gate``), and
policy, which alone decides once an interface is judged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from services.common.settings import SettingsError

VARIABLE = "YETT_BOOTSTRAP"
OPENINGS_MAX = 32
"""Every packet of an interface that is no veth's walks past them."""
_ENTRY = re.compile(r"(?P<protocol>[^:]*):(?P<range>\[[^\]]*:[^\]]*\]|[^:\[\]]*):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Opening:
    """Addresses and a port where a pod serves what an agent needs before it can judge."""

    protocol: str
    network: IPv4Network | IPv6Network
    port: int


def parse_bootstrap(entries: Sequence[str]) -> tuple[Opening, ...]:
    """The openings in their order; SettingsError names the entry at fault."""
    if len(entries) > OPENINGS_MAX:
        raise SettingsError(VARIABLE, f"{len(entries)} entries, at most {OPENINGS_MAX}")
    return tuple(_parse_entry(f"{VARIABLE}[{index}]", entry) for index, entry in enumerate(entries))


def _parse_entry(name: str, entry: str) -> Opening:
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise SettingsError(name, f"{entry!r}: not protocol:cidr:port, with an IPv6 range in brackets")
    protocol, port = found["protocol"], int(found["port"])
    if protocol not in ("tcp", "udp"):
        raise SettingsError(name, f"{entry!r}: the protocol is {protocol!r}, not tcp or udp")
    if not 1 <= port <= 65535:
        raise SettingsError(name, f"{entry!r}: the port is {port}, not 1 to 65535")
    return Opening(protocol, _parse_range(name, entry, found["range"].strip("[]")), port)


def _parse_range(name: str, entry: str, text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise SettingsError(name, f"{entry!r}: {error}") from error
    if not network.prefixlen:
        raise SettingsError(name, f"{entry!r}: every address there is, on every pod that is not judged")
    return network
