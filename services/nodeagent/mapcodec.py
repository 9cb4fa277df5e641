"""Wanted tables <-> the bytes of keys and values, map by map.

Layouts are those of ``bpf/types.h``; ``tests/bpf/test_layouts.py`` compares every offset with the compiler's. Numbers
are in the machine's order, ports and addresses in network order. Array maps without content for an index hold zeroes,
and zero denies; an array's entry is "deleted" by writing zeroes (``ARRAYS``).

Pure. Deliberately absent: which bytes to write when (``plan``), and file descriptors (``datapath``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
from typing import Any

from schemas import wire
from schemas.policy import FlowTimeouts
from services.nodeagent.patterns import covering_candidates
from services.nodeagent.regions import NO_REGION, Region
from services.nodeagent.tables import (
    RESOLVER_NODE_LOCAL,
    CidrEntry,
    ConfigEntry,
    EndpointEntry,
    FrontendEntry,
    MixedEntry,
    RulesetEntry,
    Tables,
)

Bytes = dict[bytes, bytes]
Resolver = tuple[str, int, int]
"""(address, port, RESOLVER_* flags)"""
UDP = 17

ENDPOINT_CLAIMED_TWICE = 1
ENDPOINT_MORE_ADDRESSES = 2
ENDPOINT_SCOPED_NAMES = 4
RULESET_VALID = 1
RULESET_ISOLATED = 2
RULESET_DNS_IMPLICIT = 4
RULESET_HAS_CIDRS = 8
RULESET_HAS_IDENTITIES = 16
RULESET_HAS_DOMAINS = 32
CIDR_UNKNOWN_POD = 1
ADDRESS_FRONTEND = 1
ADDRESS_OWN_NODE = 2
GUARD_REFUSE = 1
GUARD_PERMIT = 2
CONFIG_ALLOW_EVENTS = 1
CONFIG_MANY_RESOLVER_PORTS = 2
CONFIG_MANY_RESOLVERS = 4
RESOLVER_PORTS = 4
NEAR_RESOLVERS = 4
SEARCH_SUFFIXES = 8
SUFFIX_BYTES = 64
TICK_SHIFT = 30
"""A tick is so many bits of a nanosecond: 1.07 s."""
TIMEOUTS = (
    *("tcp", "tcp_opening", "tcp_closing", "tcp_closed", "udp", "udp_unanswered"),
    *("other", "other_unanswered", "fragment"),
)
"""Fields of ``FlowTimeouts`` by their places in struct config: enum timeout."""
NAME_BYTES = 256
NAME_SLOTS = 8
NAME_PAGES = 8
SCOPE_LEARNED = 0
SCOPE_SHARED = 0xFFFFFFFF

_WORDS = struct.Struct("=8Q")
_U32 = struct.Struct("=I")
_PAIR = struct.Struct("=II")
_ENDPOINT = struct.Struct("=I I 4I I I 4s 4x I I 16s 16s")
_ENDPOINT_ADDRESS = struct.Struct("=I4x16s")
_RULESET = struct.Struct("=8Q8Q4Q III HHHH 16s 4x")
_CIDR = struct.Struct("=II")
_FRONTEND_KEY = struct.Struct("=16s2sBx4x")
_FRONTEND = struct.Struct("=II2s2x4x16s")
_MIXED = struct.Struct("=IIII")
_RESOLVER_KEY = struct.Struct("=16s2s2x4x")
_NEAR_RESOLVER = struct.Struct("=16s2s2xI")
_CONFIG_HEAD = struct.Struct(f"=7I8s4x64s{NEAR_RESOLVERS * _NEAR_RESOLVER.size}s")
_SUFFIX = struct.Struct(f"=I{SUFFIX_BYTES}s")
_RESOLUTION_KEY = struct.Struct("=16sII")
_NAMES = struct.Struct("=8Q8HII")
_NO_ADDRESS = bytes(16)

ARRAYS: Mapping[str, bytes] = {
    "endpoints": bytes(_ENDPOINT.size),
    "rulesets": bytes(_RULESET.size),
    "port_classes": bytes(4),
}
"""Array maps that the agent fills, and the value that stands for "deleted"."""


def encode_port(port: int) -> bytes:
    """Two bytes, network order."""
    return port.to_bytes(2, "big")


def encode_index(index: int) -> bytes:
    """Key of an array map."""
    return _U32.pack(index)


def encode_mask(mask: int) -> bytes:
    """512 bits, bit n in word n // 64."""
    return mask.to_bytes(64, "little")


def decode_mask(value: bytes) -> int:
    """Inverse of ``encode_mask``."""
    return int.from_bytes(value, "little")


# ---------------------------------------------------------------------------------------------------------------------
# One function a map: entry -> bytes


def encode_endpoint(entry: EndpointEntry, region: Region = NO_REGION) -> bytes:
    """struct endpoint. ``region``: where its flows have their places."""
    flags = (
        ENDPOINT_CLAIMED_TWICE * entry.claimed_twice
        | ENDPOINT_MORE_ADDRESSES * entry.more_addresses
        | ENDPOINT_SCOPED_NAMES * entry.scoped_names
    )
    return _ENDPOINT.pack(
        entry.ifindex,
        entry.id,
        entry.egress,
        entry.ingress,
        entry.egress_shadow,
        entry.ingress_shadow,
        flags,
        entry.identity,
        wire.pack_address(entry.address4)[12:] if entry.address4 else bytes(4),
        region.first,
        region.size,
        _address_or_none(entry.address6),
        _address_or_none(entry.gateway6),
    )


def decode_endpoint(value: bytes) -> tuple[int, int, tuple[int, int, int, int]]:
    """(ifindex, id, ruleset handles): what a restarted agent must know of an endpoint in force."""
    fields = _ENDPOINT.unpack(value)
    return fields[0], fields[1], fields[2:6]


def decode_region(value: bytes) -> tuple[int, Region]:
    """(ifindex, region) of an endpoint in force."""
    fields = _ENDPOINT.unpack(value)
    return fields[0], Region(fields[9], fields[10])


def replace_region(value: bytes, region: Region) -> bytes:
    """The same endpoint with another region."""
    fields = list(_ENDPOINT.unpack(value))
    fields[9:11] = region
    return _ENDPOINT.pack(*fields)


def encode_ruleset(entry: RulesetEntry) -> bytes:
    """struct ruleset."""
    flags = (
        RULESET_VALID
        | RULESET_ISOLATED * entry.isolated
        | RULESET_DNS_IMPLICIT * entry.dns_implicit
        | RULESET_HAS_CIDRS * entry.has_cidrs
        | RULESET_HAS_IDENTITIES * entry.has_identities
        | RULESET_HAS_DOMAINS * entry.has_domains
    )
    return _RULESET.pack(
        *_WORDS.unpack(encode_mask(entry.any)),
        *_WORDS.unpack(encode_mask(entry.deny)),
        *_pass_words(entry.passes),
        flags,
        int(entry.default),
        entry.counters,
        entry.admin_rules,
        entry.network_policy_rules,
        entry.baseline_rules,
        0,
        bytes.fromhex(entry.hash),
    )


def _pass_words(passes: int) -> tuple[int, ...]:
    """Admin's words, then Baseline's: no rule between them can pass."""
    words = _WORDS.unpack(encode_mask(passes))
    return (*words[:3], words[7])


def decode_ruleset_hash(value: bytes) -> str:
    """The content hash of a ruleset in the map; empty for an empty entry."""
    fields = _RULESET.unpack(value)
    return fields[-1].hex() if fields[20] & RULESET_VALID else ""


def encode_cidr_key(prefix: str) -> tuple[str, bytes]:
    """(map, key) of a prefix of either family."""
    network = ip_network(prefix)
    name = "cidrs4" if isinstance(network, IPv4Network) else "cidrs6"
    return name, _U32.pack(network.prefixlen) + network.network_address.packed


def encode_cidr(entry: CidrEntry) -> bytes:
    """struct cidr."""
    return _CIDR.pack(entry.klass, CIDR_UNKNOWN_POD * entry.unknown_pod)


def encode_known(tables: Tables, address: str, *, is_front: bool) -> bytes:
    """struct known_address; empty if there is nothing to know. ``is_front``: it has frontends."""
    identity = tables.ipcache.get(address, 0)
    flags = ADDRESS_FRONTEND * is_front | ADDRESS_OWN_NODE * (address in tables.own_addresses)
    return _PAIR.pack(identity, flags) if identity or flags else b""


def decode_known(value: bytes) -> tuple[int, int]:
    """(identity, flags): (0, 0) for an address that is not in the map."""
    identity, flags = _PAIR.unpack(value) if value else (0, 0)
    return identity, flags


def encode_guard_key(prefix: str) -> bytes:
    """Key of ``guard``: a prefix over the 128-bit form."""
    network = ip_network(prefix)
    extra = 96 if isinstance(network, IPv4Network) else 0
    return _U32.pack(network.prefixlen + extra) + wire.pack_address(str(network.network_address))


def encode_frontend_key(address: str, protocol: int, port: int) -> bytes:
    """struct frontend_key."""
    return _FRONTEND_KEY.pack(wire.pack_address(address), encode_port(port), protocol)


def encode_frontend(entry: FrontendEntry) -> bytes:
    """struct frontend."""
    return _FRONTEND.pack(entry.kind, entry.target, encode_port(entry.port), _address_or_none(entry.backend))


def encode_mixed(entry: MixedEntry) -> bytes:
    """struct mixed."""
    return _MIXED.pack(int(entry.verdict), int(entry.reason), int(entry.tier), entry.bit)


def encode_domain_key(pattern: str) -> bytes:
    """struct domain_key: ``x`` is exact (NUL at its end), ``*.x`` all names below x."""
    reversed_name = encode_reversed(pattern.removeprefix("*."))
    data = reversed_name if pattern.startswith("*.") else reversed_name + b"\0"
    return _U32.pack(len(data) * 8) + data.ljust(NAME_BYTES, b"\0")


def decode_domain_key(key: bytes) -> str:
    """Inverse of ``encode_domain_key``."""
    data = key[4 : 4 + _U32.unpack_from(key)[0] // 8]
    is_exact = data.endswith(b"\0")
    name = data.rstrip(b"\0")[::-1].decode().removeprefix(".")
    return name if is_exact else f"*.{name}"


def encode_reversed(name: str) -> bytes:
    """``example.com`` -> ``moc.elpmaxe.``: wire form with dots for length bytes, lower case, reversed."""
    return ("." + name.lower()).encode()[::-1]


def encode_resolver_key(address: str, port: int) -> bytes:
    """struct resolver_key."""
    return _RESOLVER_KEY.pack(wire.pack_address(address), encode_port(port))


def encode_config(entry: ConfigEntry, resolvers: Sequence[Resolver] = ()) -> bytes:
    """struct config. ``resolvers``: those asked most first (``order_resolvers``).

    A few are in the struct; of those and of their ports, what is more than fit is looked up packet by packet.
    """
    ports = sorted({port for _, port, _ in resolvers})
    flags = (
        CONFIG_ALLOW_EVENTS * entry.allow_events
        | CONFIG_MANY_RESOLVER_PORTS * (len(ports) > RESOLVER_PORTS)
        | CONFIG_MANY_RESOLVERS * (len(resolvers) > NEAR_RESOLVERS)
    )
    near = [
        _NEAR_RESOLVER.pack(wire.pack_address(address), encode_port(port), kind)
        for address, port, kind in resolvers[:NEAR_RESOLVERS]
    ]
    head = _CONFIG_HEAD.pack(
        entry.ttl_min_seconds,
        entry.ttl_max_seconds,
        entry.grace_seconds,
        flags,
        entry.names_per_endpoint,
        entry.events_per_second,
        entry.revision,
        b"".join(encode_port(port) for port in ports[:RESOLVER_PORTS]).ljust(8, b"\0"),
        encode_timeouts(entry.timeouts),
        b"".join(near),
    )
    suffixes = [encode_reversed(suffix) for suffix in entry.search_suffixes]
    fitting = [suffix for suffix in suffixes if len(suffix) <= SUFFIX_BYTES][:SEARCH_SUFFIXES]
    packed = [_SUFFIX.pack(len(suffix), suffix) for suffix in fitting]
    return head + b"".join(packed).ljust(SEARCH_SUFFIXES * _SUFFIX.size, b"\0")


def order_resolvers(tables: Tables) -> list[Resolver]:
    """Services and what is the node's own before the pods behind Services, which few ask by their own addresses; else
    by address."""
    fronts = {(address, port) for address, protocol, port in tables.frontends if protocol == UDP}
    found = ((address, port, flags) for (address, port), flags in tables.resolvers.items())
    return sorted(found, key=lambda one: (one[:2] not in fronts and not one[2] & RESOLVER_NODE_LOCAL, one))


def encode_timeouts(timeouts: FlowTimeouts) -> bytes:
    """Seconds in ticks, rounded up. A flow lives as long as was asked, less RENEW_JIFFIES at most."""
    ticks = [-(-getattr(timeouts, field) * 10**9 >> TICK_SHIFT) for field in TIMEOUTS]
    return struct.pack(f"={len(ticks)}I", *ticks)


def decode_revision(value: bytes) -> int:
    """The revision in a ``struct config``; 0 if there is none."""
    return int(_CONFIG_HEAD.unpack_from(value)[6]) if len(value) >= _CONFIG_HEAD.size else 0


def decode_names_limit(value: bytes) -> int:
    """``names_per_endpoint`` of a ``struct config``; 0 if there is none."""
    return int(_CONFIG_HEAD.unpack_from(value)[4]) if len(value) >= _CONFIG_HEAD.size else 0


def _address_or_none(address: str) -> bytes:
    return wire.pack_address(address) if address else _NO_ADDRESS


# ---------------------------------------------------------------------------------------------------------------------
# All tables


def encode_tables(tables: Tables, *, endpoint_slots: int, regions: Mapping[int, Region]) -> dict[str, Bytes]:
    """map name -> key -> value, for every map that the agent fills.

    ``endpoint_slots``: size of ``endpoints``; ``regions``: by ifindex, see ``allot_regions``.
    """
    near, far = encode_endpoints(tables.endpoints, endpoint_slots=endpoint_slots, regions=regions)
    encoded: dict[str, Bytes] = {"endpoints": near, "endpoints_far": far, "cidrs4": {}, "cidrs6": {}}
    for prefix, cidr in tables.cidrs.items():
        name, key = encode_cidr_key(prefix)
        encoded[name][key] = encode_cidr(cidr)
    for name, codec in CODECS.items():
        encoded[name] = dict(codec.encode(key, value) for key, value in getattr(tables, name).items())
    fronts = {address for address, _, _ in tables.frontends}
    known = {*tables.ipcache, *tables.own_addresses, *fronts}
    encoded["ipcache"] = {wire.pack_address(one): encode_known(tables, one, is_front=one in fronts) for one in known}
    encoded["domains"] = encode_domains(tables.domains)
    encoded["config"] = {encode_index(0): encode_config(tables.config, order_resolvers(tables))}
    return encoded


def encode_endpoints(
    endpoints: Mapping[int, EndpointEntry], *, endpoint_slots: int, regions: Mapping[int, Region]
) -> tuple[Bytes, Bytes]:
    """(endpoints, endpoints_far): of interfaces that share a slot the lowest ifindex has it."""
    near: Bytes = {}
    far: Bytes = {}
    for ifindex in sorted(endpoints):
        key = encode_index(ifindex & (endpoint_slots - 1))
        value = encode_endpoint(endpoints[ifindex], regions.get(ifindex, NO_REGION))
        if key in near:
            far[encode_index(ifindex)] = value
        else:
            near[key] = value
    return near, far


def encode_domains(domains: Mapping[str, int]) -> Bytes:
    """Patterns, and for each ``*.x`` without an ``x`` an exact entry that carries only what covers x (0: nothing)."""
    encoded = {encode_domain_key(pattern): _U32.pack(row) for pattern, row in domains.items()}
    for pattern in domains:
        if pattern.startswith("*."):
            apex = pattern.removeprefix("*.")
            encoded.setdefault(encode_domain_key(apex), _U32.pack(_find_row(apex, domains)))
    return encoded


def _find_row(name: str, domains: Mapping[str, int]) -> int:
    return next((domains[one] for one in covering_candidates(name) if one in domains), 0)


@dataclass(frozen=True, slots=True)
class Codec:
    """One map whose entries are encoded one by one."""

    key: Callable[[Any], bytes]
    value: Callable[[Any], bytes]

    def encode(self, key: object, value: object) -> tuple[bytes, bytes]:
        return self.key(key), self.value(value)


CODECS: Mapping[str, Codec] = {
    "endpoint_addresses": Codec(lambda key: _ENDPOINT_ADDRESS.pack(key[0], wire.pack_address(key[1])), _U32.pack),
    "rulesets": Codec(encode_index, encode_ruleset),
    "classes": Codec(_U32.pack, _U32.pack),
    "peers": Codec(lambda key: _PAIR.pack(*key), encode_mask),
    "port_classes": Codec(encode_index, _U32.pack),
    "ports": Codec(lambda key: _PAIR.pack(*key), encode_mask),
    "frontends": Codec(lambda key: encode_frontend_key(*key), encode_frontend),
    "mixed": Codec(lambda key: _PAIR.pack(*key), encode_mixed),
    "resolvers": Codec(lambda key: encode_resolver_key(*key), _U32.pack),
    "guard": Codec(encode_guard_key, lambda refused: _U32.pack(GUARD_REFUSE if refused else GUARD_PERMIT)),
}
"""Maps that mirror one table entry by entry; all others have functions of their own."""


# ---------------------------------------------------------------------------------------------------------------------
# resolutions


@dataclass(frozen=True, slots=True)
class NamesPage:
    """One page of an address: (domain row, expiry in boottime seconds) a slot, (0, 0) where free."""

    slots: tuple[tuple[int, int], ...]
    owners: tuple[int, ...]
    more: bool


def encode_resolution_key(address: str, page: int = 0, scope: int = SCOPE_SHARED) -> bytes:
    """struct resolution_key."""
    return _RESOLUTION_KEY.pack(wire.pack_address(address), scope, page)


def decode_resolution_key(key: bytes) -> tuple[str, int, int]:
    """(address, scope, page)."""
    address, scope, page = _RESOLUTION_KEY.unpack(key)
    return wire.unpack_address(address), scope, page


def encode_names(page: NamesPage) -> bytes:
    """struct names."""
    words = [row << 32 | expiry for row, expiry in page.slots]
    return _NAMES.pack(*words, *page.owners, page.more, 0)


def decode_names(value: bytes) -> NamesPage:
    """Inverse of ``encode_names``."""
    fields = _NAMES.unpack(value)
    slots = tuple((word >> 32, word & 0xFFFFFFFF) for word in fields[:NAME_SLOTS])
    return NamesPage(slots, fields[NAME_SLOTS : 2 * NAME_SLOTS], bool(fields[2 * NAME_SLOTS]))


# ---------------------------------------------------------------------------------------------------------------------
# flows, of which no more is read than where they lead, whether they live and by which name they were admitted


FLOW_KEY_WORDS = 4
"""``struct flow_key``, and so ``struct place``, in words of 64 bits: the peer's two, and one that begins with the
interface's number."""
TCP = 6
_FLOW_PROTOCOL = 24
_FLOW_EXPIRES = struct.Struct("=8xI")
_FLOW_DOMAIN = struct.Struct("=12xI")


def is_tcp(key: bytes) -> bool:
    """Whether a flow of this key is of TCP."""
    return key[_FLOW_PROTOCOL] == TCP


def is_live_flow(value: bytes, ticks: int) -> bool:
    """Whether the time of a ``struct flow`` is not over at ``ticks`` of its clock."""
    expires: int = _FLOW_EXPIRES.unpack_from(value)[0]
    return (expires - ticks) & 0xFFFFFFFF < 1 << 31


def decode_flow_row(value: bytes) -> int:
    """The domain row that admitted a ``struct flow``; 0: none did."""
    row: int = _FLOW_DOMAIN.unpack_from(value)[0]
    return row
