"""A pod and rules as tables: the smallest state in which one thing can be tested."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from schemas.terms import Default
from services.nodeagent.tables import (
    CLASS_CIDR,
    CLASS_DOMAIN,
    CidrEntry,
    ConfigEntry,
    EndpointEntry,
    RulesetEntry,
    Tables,
)

POD4, POD6 = "10.0.0.5", "fd00::5"
GATEWAY6 = "fe80::1"
PEER4, PEER6 = "192.0.2.80", "2001:db8::80"
RESOLVER = "10.96.0.10"
POD_ID = 3
EGRESS, INGRESS = 1, 2
"""Ruleset handles."""
ADMIN, NETWORK_POLICY, BASELINE = 0, 192, 448
"""First bits of the tiers."""
TRUSTED, NODE_LOCAL, OUTSIDE = 1, 2, 4

_RULESET = RulesetEntry(
    hash="11" * 16,
    any=0,
    deny=0,
    passes=0,
    default=Default.DENY,
    isolated=False,
    dns_implicit=False,
    has_cidrs=True,
    has_identities=True,
    has_domains=True,
    counters=0,
    admin_rules=192,
    network_policy_rules=256,
    baseline_rules=64,
)


def make_tables(*, egress: dict[str, Any] | None = None, ingress: dict[str, Any] | None = None) -> Tables:
    """One pod with a ruleset a direction, default deny; ports are not looked at (every rule matches every port)."""
    tables = Tables()
    tables.endpoints[1] = EndpointEntry(
        1, POD_ID, EGRESS, INGRESS, identity=900, address4=POD4, address6=POD6, gateway6=GATEWAY6
    )
    tables.rulesets[EGRESS] = replace(_RULESET, **(egress or {}))
    tables.rulesets[INGRESS] = replace(_RULESET, counters=512, **(ingress or {}))
    for handle in (EGRESS, INGRESS):
        tables.ports[(handle, 0)] = (1 << 512) - 1
    tables.config = ConfigEntry(search_suffixes=("svc.cluster.local", "cluster.local"))
    return tables


def allow_all() -> Tables:
    """Both directions open by default."""
    return make_tables(egress={"default": Default.ALLOW}, ingress={"default": Default.ALLOW})


def add_identity(tables: Tables, address: str, identity: int, handle: int, mask: int) -> None:
    """``address`` is a pod whose identity these rules select."""
    tables.ipcache[address] = identity
    tables.classes[identity] = identity
    tables.peers[(handle, identity)] = mask


def add_cidr(tables: Tables, prefix: str, number: int, handle: int, mask: int) -> None:
    """These rules have the prefix."""
    tables.cidrs[prefix] = CidrEntry(CLASS_CIDR | number)
    tables.peers[(handle, CLASS_CIDR | number)] = mask


def add_pattern(tables: Tables, pattern: str, row: int, mask: int, *, handle: int = EGRESS) -> None:
    """These rules have the domain pattern."""
    tables.domains[pattern] = row
    tables.peers[(handle, CLASS_DOMAIN | row)] = mask


def with_dns(tables: Tables, flags: int = TRUSTED) -> Tables:
    """A trusted resolver, which a rule lets the pod ask."""
    tables.resolvers[(RESOLVER, 53)] = flags
    add_cidr(tables, f"{RESOLVER}/32", 77, EGRESS, 1 << 191)
    return tables
