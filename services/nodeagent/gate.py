"""Strict mode's gate as nftables commands: what comes from or goes to a veth that is not ``judged`` is dropped.

A routed packet meets the inet hooks, a bridged one those of family bridge. The gate outlives the agent: pods started
while it is down stay shut. Pure; ``strict`` runs ``nft``. Source: nft(8), libnftables-json(5).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

TABLE = "yett"
SET = "judged"
FAMILIES = ("inet", "bridge")
PRIORITY_IN = -450
"""Before conntrack and everything that could let a packet by."""
PRIORITY_OUT = 500

HOOKS = (("prerouting", PRIORITY_IN, "iifkind", "iif"), ("postrouting", PRIORITY_OUT, "oifkind", "oif"))
"""Hook, priority, and the packet's interface there by kind and by index."""

Command = dict[str, Any]


def make_gate() -> list[Command]:
    """Table, set, chains and rules. What is there already is kept, members included; the rules are made afresh."""
    return [command for family in FAMILIES for command in _make_family(family)]


def _make_family(family: str) -> list[Command]:
    named = {"family": family, "table": TABLE}
    commands: list[Command] = [
        {"add": {"table": {"family": family, "name": TABLE}}},
        {"add": {"set": {**named, "name": SET, "type": "iface_index"}}},
    ]
    for hook, priority, kind, index in HOOKS:
        chain = {**named, "name": hook, "type": "filter", "hook": hook, "prio": priority, "policy": "accept"}
        rule = {**named, "chain": hook, "expr": [_match("==", kind, "veth"), _match("!=", index, f"@{SET}"), _DROP]}
        commands += [{"add": {"chain": chain}}, {"flush": {"chain": {**named, "name": hook}}}, {"add": {"rule": rule}}]
    return commands


_DROP: Command = {"drop": None}


def _match(operator: str, key: str, right: object) -> Command:
    return {"match": {"op": operator, "left": {"meta": {"key": key}}, "right": right}}


def replace_members(ifindexes: Iterable[int]) -> list[Command]:
    """Exactly these interfaces; in one transaction with what is before and after it, so nothing slips through."""
    flush = [{"flush": {"set": {"family": family, "table": TABLE, "name": SET}}} for family in FAMILIES]
    return [*flush, *add_members(ifindexes)]


def add_members(ifindexes: Iterable[int]) -> list[Command]:
    """These interfaces are judged from now on."""
    return _change("add", ifindexes)


def remove_members(ifindexes: Iterable[int]) -> list[Command]:
    """These are not; each must be in the set."""
    return _change("delete", ifindexes)


def _change(verb: str, ifindexes: Iterable[int]) -> list[Command]:
    members = sorted(ifindexes)
    if not members:
        return []
    return [
        {verb: {"element": {"family": family, "table": TABLE, "name": SET, "elem": members}}} for family in FAMILIES
    ]


def remove_gate() -> list[Command]:
    """No trace. Adding first makes the delete succeed where there is none."""
    commands: list[Command] = []
    for family in FAMILIES:
        table = {"table": {"family": family, "name": TABLE}}
        commands += [{"add": table}, {"delete": table}]
    return commands
