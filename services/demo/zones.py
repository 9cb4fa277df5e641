"""Text of the daemons' configuration: zones and knot.conf, unbound.conf, nats-server.conf.

Deliberately absent: files and processes (``servers``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from services.demo import topology

TTL_SECONDS = 300
"""Of every name that does not move."""
FRESH_TTL_SECONDS = 60


def render_zone(zone: str, names: Mapping[str, tuple[str, str]]) -> str:
    """A zone file with A and AAAA for every name in or below ``zone``."""
    lines = [
        f"$ORIGIN {zone}.",
        f"$TTL {TTL_SECONDS}",
        "@ SOA ns hostmaster 1 3600 600 86400 5",
        "@ NS ns",
        f"ns A {topology.AUTHORITY}",
    ]
    for name, (address, address6) in names.items():
        if name == zone or name.endswith(f".{zone}"):
            ttl = topology.DATABASE_TTL_SECONDS if name == topology.DATABASE else TTL_SECONDS
            lines += [f"{name}. {ttl} A {address}", f"{name}. {ttl} AAAA {address6}"]
    return "\n".join(lines) + "\n"


def render_knot(folder: Path, zones: Iterable[str]) -> str:
    """knot.conf: the zones from files in ``folder``, and the fresh names computed from their addresses."""
    listed = "".join(f'  - domain: {zone}\n    file: "{folder}/{zone}.zone"\n' for zone in zones)
    return f"""\
server:
    rundir: "{folder}"
    listen: {topology.AUTHORITY}@53
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: warning
database:
    storage: "{folder}"
mod-synthrecord:
  - id: fresh
    type: forward
    prefix: n
    network: {topology.FRESH_RANGE}
    ttl: {FRESH_TTL_SECONDS}
template:
  - id: default
    storage: "{folder}"
    zonefile-sync: -1
    journal-content: none
zone:
{listed}  - domain: {topology.FRESH_ZONE}
    file: "{folder}/{topology.FRESH_ZONE}.zone"
    module: mod-synthrecord/fresh
"""


def render_unbound(folder: Path) -> str:
    """unbound.conf: recursive for the zones of the authoritative server, authoritative for the Services' names."""
    services = {
        f"{service.name}.{service.namespace}.svc.cluster.local": service.addresses for service in topology.SERVICES
    }
    local = "".join(
        f'    local-data: "{name}. 5 {kind} {address}"\n'
        for name, addresses in services.items()
        for kind, address in zip(("A", "AAAA"), addresses, strict=True)
    )
    stubs = "".join(
        f'stub-zone:\n    name: "{zone}"\n    stub-addr: {topology.AUTHORITY}\n'
        for zone in (*topology.ZONES, topology.FRESH_ZONE)
    )
    return f"""\
server:
    directory: "{folder}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    log-time-ascii: yes
    interface: {topology.FABRIC_DNS}
    interface: {topology.FABRIC_DNS6}
    access-control: 0.0.0.0/0 allow
    access-control: ::/0 allow
    num-threads: 1
    module-config: "iterator"
    max-udp-size: 65535
    qname-minimisation: no
    local-zone: "cluster.local." static
    local-zone: "{topology.REFUSED_NAME}." refuse
    local-zone: "{topology.EMPTY_NAME}." static
    local-data: "{topology.EMPTY_NAME}. 5 TXT empty"
{local}{stubs}"""


def render_nats(folder: Path, *, address: str, port: int) -> str:
    """nats-server.conf: JetStream on disk, every acknowledged message synced, as production would have it."""
    return f"""\
listen: "{address}:{port}"
server_name: yett-demo
pid_file: "{folder}/nats.pid"
jetstream {{
  store_dir: "{folder}"
  sync_interval: always
}}
"""
