"""The gate as commands: both families, both ways, in one transaction."""

from __future__ import annotations

import json
from pathlib import Path

from services.nodeagent import gate
from services.nodeagent.bootstrap import parse_bootstrap
from services.nodeagent.nftrules import Command
from tests.golden import compare

GOLDEN = Path(__file__).parent / "golden"
OPENINGS = parse_bootstrap(["tcp:10.96.7.7/32:4222", "udp:10.96.0.10:53", "tcp:[fd00:10:5::/64]:4222"])


def render(commands: list[Command]) -> str:
    """A command a line."""
    return "".join(f"{json.dumps(one)}\n" for one in commands)


def find(commands: list[Command], kind: str) -> list[dict[str, object]]:
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


def test_without_openings_it_is_what_it_was() -> None:
    """Command by command."""
    compare(GOLDEN / "gate.txt", render(gate.make_gate()))


def test_openings_stand_before_the_drop() -> None:
    """Rule by rule; what is judged is through before any of them is looked at, and the drop is as without them."""
    compare(GOLDEN / "gate-openings.txt", render(gate.make_gate(OPENINGS)))
    last = {(rule["family"], rule["chain"]): rule["expr"] for rule in find(gate.make_gate(OPENINGS), "rule")}
    assert last == {(rule["family"], rule["chain"]): rule["expr"] for rule in find(gate.make_gate(), "rule")}


def test_nothing_but_answers_comes_from_an_opening() -> None:
    """A rule that goes by the sender's port takes no segment that opens a connection, and on the routed way out of a
    veth no sender but one whose address leads back there."""
    for rule in find(gate.make_gate(OPENINGS), "rule"):
        expressions = render(rule["expr"])  # type: ignore[arg-type]
        if '"field": "sport"' in expressions:
            assert ('["syn", "ack"]' in expressions) == ('"tcp"' in expressions)
            assert ('"fib"' in expressions) == (rule["family"] == "inet" and rule["chain"] == "prerouting")
