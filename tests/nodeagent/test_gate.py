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


def test_making_it_again_keeps_members_and_doubles_no_rule() -> None:
    """Chains are emptied before their rule is added; the set is not."""
    flushed = [command["flush"] for command in gate.make_gate() if "flush" in command]
    assert all("chain" in one for one in flushed)
    assert len(flushed) == len(find(gate.make_gate(), "rule"))


def test_members_are_replaced_whole() -> None:
    """The set is emptied and filled within one transaction; no members is a set that shuts everything."""
    commands = gate.replace_members({7, 3})
    assert [next(iter(command)) for command in commands] == ["flush", "flush", "add", "add"]
    assert commands[2]["add"]["element"]["elem"] == [3, 7]
    assert gate.replace_members(()) == commands[:2]


def test_no_trace() -> None:
    """Both tables are deleted, and that succeeds where there are none."""
    assert [next(iter(command)) for command in gate.remove_gate()] == ["add", "delete"] * 2
