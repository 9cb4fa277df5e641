"""The gate as commands: both families, both ways, in one transaction."""

from __future__ import annotations

from services.nodeagent import gate


def find(commands: list[gate.Command], kind: str) -> list[dict[str, object]]:
    return [command["add"][kind] for command in commands if kind in command.get("add", {})]


def test_both_ways_in_both_families() -> None:
    """A drop for veths that are not judged stands at prerouting and postrouting, of inet and of bridge."""
    rules = find(gate.make_gate(), "rule")
    places = {(rule["family"], rule["chain"]) for rule in rules}
    assert places == {(family, chain) for family in ("inet", "bridge") for chain in ("prerouting", "postrouting")}
    assert all(rule["expr"][-1] == {"drop": None} for rule in rules)
    assert all(rule["expr"][0]["match"]["right"] == "veth" for rule in rules)


def test_what_is_judged_is_a_group_of_interfaces() -> None:
    """The rules name a device group and no set: what a rule or set remembers could outlive the interface."""
    rules = find(gate.make_gate(), "rule")
    groups = [(rule["expr"][1]["match"]["left"]["meta"]["key"], rule["expr"][1]["match"]["right"]) for rule in rules]
    assert groups == [("iifgroup", gate.GROUP), ("oifgroup", gate.GROUP)] * 2
    assert find(gate.make_gate(), "set") == []


def test_making_it_again_doubles_no_rule() -> None:
    """Chains are emptied before their rule is added."""
    flushed = [command["flush"] for command in gate.make_gate() if "flush" in command]
    assert all("chain" in one for one in flushed)
    assert len(flushed) == len(find(gate.make_gate(), "rule"))


def test_no_trace() -> None:
    """Both tables are deleted, and that succeeds where there are none."""
    assert [next(iter(command)) for command in gate.remove_gate()] == ["add", "delete"] * 2
