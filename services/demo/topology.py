"""The demo's world as data: two nodes, their pods, the Services, and the names of the outside with their addresses.

Rules of this module:

* Outside addresses come from the documentation ranges (RFC 5737, RFC 3849) and the benchmarking range (RFC 2544);
  every name has an address of its own in both families, so that a row never passes for a neighbour's sake.
* Everything here lives inside network namespaces of one run; two runs may use the same addresses.

Deliberately absent: namespaces, processes, Kubernetes objects (``lab``, ``servers``, ``objects`` make those).
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass

FABRIC_DNS = "10.0.3.53"
FABRIC_DNS6 = "fd00:10:0:3::53"
AUTHORITY = "10.0.3.54"
"""Where the recursive resolver and the authoritative server listen, outside every pod range."""

DNS_SERVICE = "10.100.0.10"
DNS_SERVICE6 = "fd00:10:100::a"
SERVICE_CIDRS = ("10.100.0.0/16", "fd00:10:100::/112")
POD_CIDRS = ("10.244.0.0/16", "fd00:10:244::/48")
POD_GATEWAY = "169.254.1.1"
POD_GATEWAY6 = "fe80::1"
METADATA = "169.254.169.254"

WEB_PORTS = (80, 443)
ECHO_PORT = 5432
"""Answers every line with the same line: the database of step 10, and what a live connection is shown on."""
POD_WEB_PORT = 8080


@dataclass(frozen=True, slots=True)
class Node:
    """One node. ``key`` is short, for namespaces and folders; ``name`` is Kubernetes' and may hold dots."""

    key: str
    name: str
    address: str
    address6: str
    gateway: str
    gateway6: str
    pod_cidr: str
    pod_cidr6: str
    answers_arp_for_gateway: bool
    """True: pods ask for the gateway and the veth answers by proxy (as Calico's). False: a permanent entry in the pod
    (as the VPC CNI's)."""


NODE_A = Node(
    key="a",
    name="node-a",
    address="10.0.1.10",
    address6="fd00:10:0:1::10",
    gateway="10.0.1.1",
    gateway6="fd00:10:0:1::1",
    pod_cidr="10.244.1.0/24",
    pod_cidr6="fd00:10:244:1::/64",
    answers_arp_for_gateway=False,
)
NODE_B = Node(
    key="b",
    name="ip-10-0-2-17.ec2.internal",
    address="10.0.2.17",
    address6="fd00:10:0:2::17",
    gateway="10.0.2.1",
    gateway6="fd00:10:0:2::1",
    pod_cidr="10.244.2.0/24",
    pod_cidr6="fd00:10:244:2::/64",
    answers_arp_for_gateway=True,
)
NODES = (NODE_A, NODE_B)


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod. ``host`` is its number in the node's ranges. ``shown``: its name in the demo's rows."""

    namespace: str
    name: str
    node: Node
    host: int
    labels: tuple[tuple[str, str], ...] = ()
    serves: bool = False
    shown: str = ""

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def display(self) -> str:
        """The name in rows: as in the seed, with ``@node-b`` where the pod is on the second node."""
        return self.shown or (f"{self.name}@node-b" if self.node is NODE_B else self.name)

    @property
    def address(self) -> str:
        """IPv4 address."""
        return str(ipaddress.ip_network(self.node.pod_cidr)[self.host])

    @property
    def address6(self) -> str:
        """IPv6 address."""
        return str(ipaddress.ip_network(self.node.pod_cidr6)[self.host])

    @property
    def addresses(self) -> tuple[str, str]:
        """Both, IPv4 first."""
        return self.address, self.address6

    @property
    def uid(self) -> str:
        """Stable within a topology: the demo never makes one pod twice."""
        digest = hashlib.sha1(self.key.encode(), usedforsecurity=False).hexdigest()
        return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"

    @property
    def interface(self) -> str:
        """Host-side veth: a prefix and 11 hex digits of sha1("namespace.pod"), the way the CNIs name theirs."""
        return "pod" + hashlib.sha1(f"{self.namespace}.{self.name}".encode(), usedforsecurity=False).hexdigest()[:11]


@dataclass(frozen=True, slots=True)
class Service:
    """A ClusterIP in both families; ``port`` leads to ``POD_WEB_PORT`` of the pods, by kube-proxy's DNAT."""

    namespace: str
    name: str
    address: str
    address6: str
    port: int
    selector: tuple[tuple[str, str], ...]
    backends: tuple[str, ...]
    """Pod keys."""

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def addresses(self) -> tuple[str, str]:
        """Both, IPv4 first."""
        return self.address, self.address6


BACKEND = (("role", "backend"),)
FRONTEND = (("role", "frontend"),)
LOW = (("security-tier", "low"),)

PODS = (
    Pod("app", "backend", NODE_A, 10, (*BACKEND, ("app", "backend")), serves=True),
    Pod("app", "curl-backend", NODE_A, 11, BACKEND),
    Pod("app", "curl-frontend", NODE_A, 12, FRONTEND),
    Pod("app", "curl-frontend.b", NODE_B, 12, FRONTEND, shown="curl-frontend@node-b"),
    Pod("imds", "imds-client", NODE_A, 20),
    Pod("imds", "imds-client-b", NODE_B, 20, shown="imds-client@node-b"),
    Pod("default", "s3-client", NODE_A, 30, LOW),
    Pod("default", "s3-client-b", NODE_B, 30, LOW, shown="s3-client@node-b"),
    Pod("default", "bystander", NODE_A, 31),
    Pod("cart-services", "checkout", NODE_B, 40, (("app", "checkout-service"),)),
    Pod("cart-services", "catalogue", NODE_B, 41, (("app", "catalogue"),)),
    Pod("datacenter", "hybrid-client", NODE_A, 50),
    Pod("switch", "switch-client", NODE_A, 60),
    Pod("switch", "switch-client-b", NODE_B, 60, shown="switch-client@node-b"),
    Pod("tenants", "tenant-plain", NODE_A, 70, (("app", "plain"),)),
    Pod("tenants", "tenant-exempt", NODE_A, 71, (("app", "exempt"),)),
    Pod("data", "db-client", NODE_A, 80, (("app", "db-client"),)),
    Pod("figures", "prober", NODE_A, 90),
    Pod("figures", "prober-b", NODE_B, 90, shown="prober@node-b"),
)
"""Pods that run from the start."""

LATE_PODS = (
    Pod("vault", "vault-api", NODE_A, 110, (("app", "vault-api"),), serves=True),
    Pod("vault", "vault-client", NODE_B, 111, (("app", "vault-client"),), shown="vault-client@node-b"),
    Pod("vault", "vault-intruder", NODE_B, 112, (("app", "vault-intruder"),), shown="vault-intruder@node-b"),
)
"""Pods of the namespace that step 9 makes while everything runs."""

SERVICES = (
    Service("app", "backend", "10.100.12.34", "fd00:10:100::c22", 80, (("app", "backend"),), ("app/backend",)),
    Service(
        "vault", "vault-api", "10.100.12.35", "fd00:10:100::c23", 80, (("app", "vault-api"),), ("vault/vault-api",)
    ),
)

NAMESPACES: dict[str, dict[str, str]] = {
    "app": {},
    "imds": {},
    "default": {},
    "cart-services": {},
    "datacenter": {"data-access": "hybrid"},
    "switch": {},
    "tenants": {"tenancy": "shared"},
    "data": {},
    "figures": {},
    "kube-system": {},
    "yett-system": {},
}
"""Namespaces from the start, with their labels beside ``kubernetes.io/metadata.name``."""
LATE_NAMESPACES = {"vault": {"security-tier": "high"}}

S3_EAST = "s3.us-east-1.amazonaws.com"
S3_WEST = "s3.us-west-2.amazonaws.com"
DYNAMO_EAST = "dynamodb.us-east-1.amazonaws.com"
DYNAMO_WEST = "dynamodb.us-west-2.amazonaws.com"
DATABASE = "db.internal.company.com"
DATABASE_TTL_SECONDS = 2
DATABASE_NEXT = ("198.51.100.201", "2001:db8:4::201")
"""Where the database moves in step 10."""
SEEN_ELSEWHERE = f"seen-on-node-b.{S3_EAST}"
"""Step 7: only a pod on the second node ever asks for it."""

OUTSIDE: dict[str, tuple[str, str]] = {
    "example.com": ("192.0.2.10", "2001:db8:1::10"),
    "httpbin.org": ("192.0.2.20", "2001:db8:1::20"),
    S3_EAST: ("198.51.100.10", "2001:db8:2::10"),
    f"bucket.{S3_EAST}": ("198.51.100.11", "2001:db8:2::11"),
    f"a.b.c.{S3_EAST}": ("198.51.100.12", "2001:db8:2::12"),
    SEEN_ELSEWHERE: ("198.51.100.13", "2001:db8:2::13"),
    S3_WEST: ("198.51.100.20", "2001:db8:2::20"),
    f"bucket.{S3_WEST}": ("198.51.100.21", "2001:db8:2::21"),
    DYNAMO_EAST: ("198.51.100.30", "2001:db8:2::30"),
    f"table.{DYNAMO_EAST}": ("198.51.100.31", "2001:db8:2::31"),
    f"table.{DYNAMO_WEST}": ("198.51.100.41", "2001:db8:2::41"),
    "datacenter.company.com": ("203.0.113.10", "2001:db8:3::10"),
    "erp.datacenter.company.com": ("203.0.113.11", "2001:db8:3::11"),
    "r1.hall2.datacenter.company.com": ("203.0.113.12", "2001:db8:3::12"),
    "api.corp.company.com": ("203.0.113.20", "2001:db8:3::20"),
    "www.company.com": ("203.0.113.30", "2001:db8:3::30"),
    DATABASE: ("198.51.100.200", "2001:db8:4::200"),
}
"""Every name of the outside and its addresses, IPv4 then IPv6."""

ZONES = ("example.com", "httpbin.org", "amazonaws.com", "company.com")

FRESH_ZONE = "fresh.example.net"
REFUSED_NAME, EMPTY_NAME = f"refused.{FRESH_ZONE}", f"empty.{FRESH_ZONE}"
"""What the cluster's resolver refuses, and what it has no address for."""
FRESH_RANGE = "198.19.0.0/16"
"""``n198-19-1-2.fresh.example.net`` is 198.19.1.2: a name, and an address, that nobody has seen before."""

LOCAL_RANGES = (
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    FRESH_RANGE,
    f"{METADATA}/32",
    "2001:db8:1::/48",
    "2001:db8:2::/48",
    "2001:db8:3::/48",
    "2001:db8:4::/48",
)
"""What the outside answers for: every address in these ranges is local to the fabric."""


def fresh_name(number: int) -> tuple[str, str]:
    """The ``number``-th fresh name (1..65534) and its only address."""
    address = ipaddress.ip_network(FRESH_RANGE)[number]
    return f"n{str(address).replace('.', '-')}.{FRESH_ZONE}", str(address)


def find_pod(key: str) -> Pod:
    """The pod ``namespace/name``; KeyError if there is none."""
    return _PODS_BY_KEY[key]


def find_service(key: str) -> Service:
    """The Service ``namespace/name``; KeyError if there is none."""
    return _SERVICES_BY_KEY[key]


_PODS_BY_KEY = {pod.key: pod for pod in (*PODS, *LATE_PODS)}
_SERVICES_BY_KEY = {service.key: service for service in SERVICES}
