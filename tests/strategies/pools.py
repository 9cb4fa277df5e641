"""What random scenes are made of. Pools are small on purpose: random labels, prefixes and ports must meet to say
anything."""

from __future__ import annotations

NAMESPACES = ("app", "db", "team.one")
NODES = {"node-a": ("192.168.0.1", "fd01::1"), "node.b": ("192.168.0.2",)}
NODE_ADDRESSES = ("192.168.0.1", "192.168.0.2")
POD_ADDRESSES = tuple(f"10.244.0.{n}" for n in range(1, 9))
POD_ADDRESSES_6 = tuple(f"fd00::{n}" for n in range(1, 9))
UNKNOWN_POD, UNKNOWN_POD_6 = "10.244.0.200", "fd00::77"
OUTSIDE = ("198.51.100.7", "198.51.100.8", "203.0.113.9", "169.254.169.254", "10.9.9.9", UNKNOWN_POD)
OUTSIDE_6 = ("2001:db8::7", UNKNOWN_POD_6, "64:ff9b::c633:6407", "64:ff9b::af4:1", "2002:c633:6408::1")
"""The last three embed 198.51.100.7, a pod's address and 198.51.100.8 (NAT64, RFC 6052; 6to4, RFC 3056)."""
DNS_SERVICE = "10.100.0.10"
OTHER_RESOLVER = "203.0.113.53"
DNS_BACKENDS, DNS_TARGETS = (*POD_ADDRESSES[:3], OUTSIDE[0]), (5353, 8053)
"""What answers behind the DNS Service, and where it listens."""
DNS_PLACES = (
    (DNS_BACKENDS[0], 17, DNS_TARGETS[0]),
    (DNS_BACKENDS[1], 6, DNS_TARGETS[0]),
    (DNS_BACKENDS[2], 17, DNS_TARGETS[0]),
    (DNS_BACKENDS[3], 17, DNS_TARGETS[1]),
)
EXTERNAL, BALANCER = "203.0.113.50", "203.0.113.51"
SERVICES = {"10.100.0.1": "web", "10.100.0.2": "all", "10.100.0.3": "empty", DNS_SERVICE: "kube-dns"}
SERVICES_6 = {"fd02::1": "web", "fd02::2": "all"}
SLICED, CROWD = "10.100.0.4", "10.100.0.5"
NODE_PORT, HOST_PORT = 30080, 8081
DOMAINS = ("example.com", "a.example.com", "b.a.example.com", "example.org", "x.example.org")
PATTERNS = ("example.com", "*.example.com", "*.a.example.com", "example.org", "*.example.org", "*.Example.COM.")
INNER = {"0.0.0.0/0": "10.0.0.0/8", "10.0.0.0/8": "10.244.0.0/16", "198.51.100.0/24": "198.51.100.7/32"}
CIDRS = (
    *INNER,
    "::/0",
    "10.244.0.0/16",
    "10.244.0.2/32",
    "10.100.0.0/16",
    "198.51.100.7/32",
    "203.0.113.0/24",
    "169.254.169.254/32",
    "192.168.0.0/24",
    "2001:db8::/32",
    "fd00::/64",
    "fd00::2/128",
    "64:ff9b::/96",
)
PORTS = (53, 80, 443, 8080)
PORT_NAMES = ("http", "dns")
PROTOCOLS = ("TCP", "TCP", "UDP", "SCTP")
VALUES = {"app": "xy", "tier": "pq", "team": "xy", "zone": "pq"}
AT = 1000.0
"""The moment at which packets are judged; answers lie before it."""
