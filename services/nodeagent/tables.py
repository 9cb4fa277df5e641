"""What the kernel should know, as plain Python: the wanted content of every map that the agent owns.

``wanted`` builds these from a proven policy state, ``mapcodec`` turns them into key and value bytes, ``plan`` compares
with what is present. Map names and meanings are those of ``bpf/types.h``; read that file beside this one.

Rule masks are Python ints with bit ``n`` for rule ``n``. Deliberately absent: bytes, handles' allocation, I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.policy import FlowTimeouts
from schemas.terms import Default, Reason, Tier, Verdict

CLASS_IDENTITY = 0
CLASS_CIDR = 0x40000000
CLASS_DOMAIN = 0x80000000
RESOLVER_TRUSTED = 1
RESOLVER_NODE_LOCAL = 2
RESOLVER_OUTSIDE = 4
PORT_SLOTS = {6: 0, 17: 1, 132: 2}
PORT_SLOTS_OTHER = 3 * 65536
PORT_CLASS_ENTRIES = PORT_SLOTS_OTHER + 256


@dataclass(frozen=True, slots=True)
class EndpointEntry:
    """endpoints (and endpoints_far): one pod interface. Rulesets are handles; 0 is none."""

    ifindex: int
    id: int
    egress: int
    ingress: int
    egress_shadow: int = 0
    ingress_shadow: int = 0
    identity: int = 0
    address4: str = ""
    address6: str = ""
    gateway6: str = ""
    claimed_twice: bool = False
    more_addresses: bool = False
    scoped_names: bool = False


@dataclass(frozen=True, slots=True)
class RulesetEntry:
    """rulesets: by handle."""

    hash: str
    any: int
    deny: int
    passes: int
    default: Default
    isolated: bool
    dns_implicit: bool
    has_cidrs: bool
    has_identities: bool
    has_domains: bool
    counters: int
    admin_rules: int
    network_policy_rules: int
    baseline_rules: int


@dataclass(frozen=True, slots=True)
class CidrEntry:
    """cidrs4, cidrs6: ``klass`` includes CLASS_CIDR, or is 0."""

    klass: int
    unknown_pod: bool = False


@dataclass(frozen=True, slots=True)
class FrontendEntry:
    """frontends: ``kind`` as enum frontend_kind."""

    kind: int
    target: int = 0
    port: int = 0
    backend: str = ""


@dataclass(frozen=True, slots=True)
class MixedEntry:
    """mixed: the final verdict over all backends of one frontend; ``bit`` 0xffff: none."""

    verdict: Verdict
    reason: Reason
    tier: Tier
    bit: int


@dataclass(frozen=True, slots=True)
class ConfigEntry:
    """config: seconds, counts, and search suffixes in plain form (``svc.cluster.local``)."""

    ttl_min_seconds: int = 30
    ttl_max_seconds: int = 3600
    grace_seconds: int = 60
    names_per_endpoint: int = 4096
    events_per_second: int = 1000
    revision: int = 0
    allow_events: bool = True
    search_suffixes: tuple[str, ...] = ()
    timeouts: FlowTimeouts = field(default_factory=FlowTimeouts)


@dataclass(slots=True)
class Tables:
    """One wanted state of all maps."""

    endpoints: dict[int, EndpointEntry] = field(default_factory=dict)
    """by ifindex"""
    endpoint_addresses: dict[tuple[int, str], int] = field(default_factory=dict)
    """(endpoint id, address) -> 2.."""
    rulesets: dict[int, RulesetEntry] = field(default_factory=dict)
    ipcache: dict[str, int] = field(default_factory=dict)
    """address -> identity"""
    cidrs: dict[str, CidrEntry] = field(default_factory=dict)
    """canonical prefix, either family"""
    classes: dict[int, int] = field(default_factory=dict)
    """identity -> class"""
    peers: dict[tuple[int, int], int] = field(default_factory=dict)
    """(ruleset handle, class) -> mask; zero masks are absent"""
    port_classes: dict[int, int] = field(default_factory=dict)
    """index (slot of protocol * 65536 + port, or PORT_SLOTS_OTHER + protocol) -> class; class 0 is absent"""
    ports: dict[tuple[int, int], int] = field(default_factory=dict)
    """(ruleset handle, port class) -> mask; zero masks are absent"""
    frontends: dict[tuple[str, int, int], FrontendEntry] = field(default_factory=dict)
    """(address, protocol, port)"""
    mixed: dict[tuple[int, int], MixedEntry] = field(default_factory=dict)
    """(ruleset handle, set number)"""
    domains: dict[str, int] = field(default_factory=dict)
    """``x`` or ``*.x`` -> domain row; closed under coverage: the longest match carries all that cover it"""
    resolvers: dict[tuple[str, int], int] = field(default_factory=dict)
    """(address, port) -> RESOLVER_* flags"""
    guard: dict[str, bool] = field(default_factory=dict)
    """prefix over the 128-bit form (IPv4 prefixes in plain form) -> True: refuse, False: exception"""
    own_addresses: dict[str, int] = field(default_factory=dict)
    """the own node's addresses -> 1"""
    config: ConfigEntry = field(default_factory=ConfigEntry)
