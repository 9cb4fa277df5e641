"""No packet comes to a node from the cluster's resolver: nftables commands that drop what says so.

Whoever knows a pod's question (the pod itself told him) needs nothing but its resolver's address as a source to teach
its node, and by it the cluster, a false address. Two kinds of addresses are nobody's outside the node:

* A Service's cluster address. What answers is a backend, whose packets bear its own address where they come in;
  the Service's is put back later (conntrack in postrouting, IPVS when it forwards), behind this hook.
* The node's own DNS cache's. It answers from the node itself, by the output hook or over the loopback.

Not among them: backends and what ``resolvers`` lists outside the cluster, whose packets come from elsewhere, and all
other Services, which teach nobody. Before conntrack, so that nothing is translated yet. Bridged packets meet the hook
of family bridge: a node's way out may be a port of the pods' bridge.

A balancer that returns answers with the Service's address on the wire breaks by this; ``YETT_RESOLVER_SOURCES`` is the
way out. Pure; ``nft`` runs it.

Source: nf_nat_core.c (a reply's source is translated in postrouting), ip_vs_core.c (ip_vs_out at forward), nft(8).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Set

from schemas.policy import FrontendRow
from schemas.terms import FrontendKind, Protocol
from services.nodeagent.fronts import FrontKey
from services.nodeagent.nftrules import (
    DROP,
    FAMILIES,
    Command,
    add_chain,
    add_counter,
    add_set,
    add_table,
    field,
    match,
)

TABLE = "yett-resolvers"
PRIORITY = -300
"""As ``raw``: before conntrack."""
HOOK = "prerouting"
COUNTER = "forged"
_SETS = ((4, "ip", "resolvers4", "ipv4_addr"), (6, "ip6", "resolvers6", "ipv6_addr"))
"""IP version, its header, the set's name and type."""


def find_addresses(
    trusted: Iterable[tuple[str, int]], frontends: Mapping[FrontKey, FrontendRow], own: Set[str]
) -> frozenset[str]:
    """Those of the trusted (address, port) that no packet from elsewhere bears. ``own``: of the node's own cache."""
    found = set()
    for address, port in trusted:
        fronts = (frontends.get((address, protocol, port)) for protocol in (Protocol.TCP, Protocol.UDP))
        if address in own or any(row is not None and row.kind is FrontendKind.CLUSTER_IP for row in fronts):
            found.add(address)
    return frozenset(found)


def make_check(addresses: Iterable[str]) -> list[Command]:
    """Table, sets, counter, chain and rules, in one transaction: from one list of addresses to the next at once."""
    found = sorted(addresses)
    return [command for family in FAMILIES for command in _make_family(family, found)]


def _make_family(family: str, addresses: list[str]) -> list[Command]:
    elsewhere = [match("!=", "iif", "lo")] if family == "inet" else []
    commands, rules = [add_table(family, TABLE), add_counter(family, TABLE, COUNTER)], []
    for version, header, name, kind in _SETS:
        members = [one for one in addresses if ipaddress.ip_address(one).version == version]
        commands += add_set(family, TABLE, name, kind, members)
        rules.append([*elsewhere, field(header, "saddr", f"@{name}"), {"counter": COUNTER}, DROP])
    return commands + add_chain(family, TABLE, HOOK, PRIORITY, rules)
