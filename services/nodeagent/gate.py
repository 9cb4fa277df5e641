"""Strict mode's gate as nftables commands: what comes from or goes to a veth that is not judged is dropped.

An interface is judged while it is in the device group ``GROUP``. A set of numbers or names would outlive its members:
a pod that starts while no agent runs could get the number of one that was judged. The group is an attribute of the
interface and dies with it. A routed packet meets the inet hooks, a bridged one those of family bridge. The gate
outlives the agent: pods started while it is down stay shut. Pure; ``strict`` runs ``nft``, ``netlink`` sets the group.
Source: nft(8), libnftables-json(5), ip-link(8).
"""

from __future__ import annotations

from typing import Any

TABLE = "yett"
GROUP = 0x7E77
"""Device group of the interfaces that are judged, and of the node's own way out where that is a veth."""
FAMILIES = ("inet", "bridge")
PRIORITY_IN = -450
"""Before conntrack and everything that could let a packet by."""
PRIORITY_OUT = 500

HOOKS = (("prerouting", PRIORITY_IN, "iifkind", "iifgroup"), ("postrouting", PRIORITY_OUT, "oifkind", "oifgroup"))
"""Hook, priority, and the packet's interface there by kind and by group."""

Command = dict[str, Any]


def make_gate() -> list[Command]:
    """Table, chains and rules, in one transaction. What is there already is kept; the rules are made afresh."""
    return [command for family in FAMILIES for command in _make_family(family)]


def _make_family(family: str) -> list[Command]:
    named = {"family": family, "table": TABLE}
    commands: list[Command] = [{"add": {"table": {"family": family, "name": TABLE}}}]
    for hook, priority, kind, group in HOOKS:
        chain = {**named, "name": hook, "type": "filter", "hook": hook, "prio": priority, "policy": "accept"}
        rule = {**named, "chain": hook, "expr": [_match("==", kind, "veth"), _match("!=", group, GROUP), _DROP]}
        commands += [{"add": {"chain": chain}}, {"flush": {"chain": {**named, "name": hook}}}, {"add": {"rule": rule}}]
    return commands


_DROP: Command = {"drop": None}


def _match(operator: str, key: str, right: object) -> Command:
    return {"match": {"op": operator, "left": {"meta": {"key": key}}, "right": right}}


def remove_gate() -> list[Command]:
    """No trace. Adding first makes the delete succeed where there is none."""
    commands: list[Command] = []
    for family in FAMILIES:
        table = {"table": {"family": family, "name": TABLE}}
        commands += [{"add": table}, {"delete": table}]
    return commands
