"""Words of nftables commands in JSON, for tables of our own. Pure; ``nft`` runs them.

Source: nft(8), libnftables-json(5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FAMILIES = ("inet", "bridge")
"""A routed packet meets the hooks of inet, a bridged one those of bridge."""

Command = dict[str, Any]

DROP: Command = {"drop": None}
ACCEPT: Command = {"accept": None}


def add_table(family: str, table: str) -> Command:
    """What is there already is kept."""
    return {"add": {"table": {"family": family, "name": table}}}


def add_chain(family: str, table: str, hook: str, priority: int, rules: Sequence[Sequence[Command]]) -> list[Command]:
    """A chain named as its hook, with these rules and no others."""
    named = {"family": family, "table": table}
    chain = {**named, "name": hook, "type": "filter", "hook": hook, "prio": priority, "policy": "accept"}
    commands: list[Command] = [{"add": {"chain": chain}}, {"flush": {"chain": {**named, "name": hook}}}]
    return commands + [{"add": {"rule": {**named, "chain": hook, "expr": list(rule)}}} for rule in rules]


def add_counter(family: str, table: str, name: str) -> Command:
    """A counter that goes on where it is there already."""
    return {"add": {"counter": {"family": family, "table": table, "name": name}}}


def add_set(family: str, table: str, name: str, kind: str, elements: Sequence[str]) -> list[Command]:
    """A set with these elements and no others. ``kind``: as ``ipv4_addr``."""
    named = {"family": family, "table": table, "name": name}
    commands: list[Command] = [{"add": {"set": {**named, "type": kind}}}, {"flush": {"set": named}}]
    return commands + ([{"add": {"element": {**named, "elem": list(elements)}}}] if elements else [])


def delete_table(family: str, table: str) -> list[Command]:
    """No trace. Adding first makes the delete succeed where there is none."""
    return [add_table(family, table), {"delete": {"table": {"family": family, "name": table}}}]


def match(operator: str, key: str, right: object) -> Command:
    """By what is known of the packet beside its content, as ``iifkind``."""
    return compare(operator, {"meta": {"key": key}}, right)


def compare(operator: str, left: object, right: object) -> Command:
    """``left operator right``."""
    return {"match": {"op": operator, "left": left, "right": right}}


def field(protocol: str, name: str, right: object) -> Command:
    """By a header's field."""
    return compare("==", {"payload": {"protocol": protocol, "field": name}}, right)


def family_of(command: Command) -> str:
    """Of the table that the command is about."""
    ((_, what),) = command.items()
    ((_, named),) = what.items()
    return str(named["family"])


def count_drops(commands: Sequence[Command], family: str) -> int:
    """How many rules of the family end in a drop."""
    rules = (command["add"]["rule"] for command in commands if "rule" in command.get("add", {}))
    return sum(DROP in rule["expr"] for rule in rules if rule["family"] == family)
