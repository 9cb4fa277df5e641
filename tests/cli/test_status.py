"""``yett status`` adds nothing to what the services say."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
import typer
from rich.console import Console

from schemas.status import AgentStatus, ControllerStatus, EndpointStatus, LearnedName, Problem
from schemas.terms import Default, NodeName, RevisionNumber
from services.cli.output import ENVIRONMENT_URL, are_refusals, find_nats_url
from services.cli.status import collect_problems, count_converged, show, to_json
from services.demo.report import make_console

WARNING = Problem(object="NetworkPolicy a/b", path="spec", message="read as", severity="warning")
REFUSAL = Problem(object="NetworkPolicy a/c", path="spec.egress[0]", message="unknown field", file="c.yaml")


def make_agent(node: str, revision: int) -> AgentStatus:
    """An agent that enforces a revision."""
    return AgentStatus(node=NodeName(node), revision=RevisionNumber(revision))


def make_controller(revision: int, **nodes: int) -> ControllerStatus:
    """A leader that heard of nodes."""
    known = {node: RevisionNumber(number) for node, number in nodes.items()}
    return ControllerStatus(holder="x", revision=RevisionNumber(revision), nodes=known, problems=(WARNING, REFUSAL))


def test_convergence_counts_nodes_at_the_newest_revision() -> None:
    """An acknowledgement that the controller has not heard yet counts if the agent says so itself."""
    controller = make_controller(7, a=7, b=6, c=5)
    assert count_converged(controller, {"b": make_agent("b", 7)}) == (2, 3)


def test_nothing_is_converged_before_the_first_revision() -> None:
    """Revision 0 is "none yet"."""
    assert count_converged(make_controller(0, a=0), {}) == (0, 1)
    assert count_converged(None, {"a": make_agent("a", 3)}) == (0, 1)


def test_a_warning_is_no_refusal() -> None:
    """Exit status 3 is for objects that are refused."""
    assert not are_refusals([WARNING])
    assert are_refusals([WARNING, REFUSAL])


def test_problems_of_controller_and_nodes_are_shown_with_file_object_and_path() -> None:
    """In the JSON as in the table."""
    own = Problem(object="endpoint", path="", message="claimed twice")
    agents = {"a": AgentStatus(node=NodeName("a"), problems=(own,))}
    problems = collect_problems(make_controller(7), agents)
    assert problems == (WARNING, REFUSAL, own)
    shown = to_json(make_controller(7), agents, problems)["problems"]
    assert {
        "file": "c.yaml",
        "object": "NetworkPolicy a/c",
        "path": "spec.egress[0]",
        "message": "unknown field",
    } in shown  # type: ignore[operator]  # a list, by to_builtins


def test_a_switch_that_is_off_is_said_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    """Before everything else, with the nodes on which nothing is enforced; nothing is said where all enforce."""
    agents = {"a": make_agent("a", 7), "b": msgspec.structs.replace(make_agent("b", 7), enforcing=False)}
    show(make_console(), None, agents, ())
    assert capsys.readouterr().out.strip().startswith("NOTHING IS ENFORCED  on b")
    show(make_console(), None, {"a": agents["a"]}, ())
    assert "ENFORCED" not in capsys.readouterr().out


def test_another_enforcer_is_told_by_node_and_interface() -> None:
    """The condition ForeignEnforcer; nodes without one are not listed."""
    foreign = "bpf handle_ingress at tc ingress, priority 1, handle 0x1"
    one = EndpointStatus(pod="a/b", interface="eni1", ifindex=3, state="foreign", foreign=foreign)
    two = EndpointStatus(pod="a/c", interface="eni2", ifindex=4, state="enforced")
    agents = {"a": AgentStatus(node=NodeName("a"), endpoints=(one, two)), "b": make_agent("b", 7)}
    assert to_json(make_controller(7), agents, ())["foreign_enforcers"] == {"a": {"eni1": foreign}}


def test_each_node_says_how_far_it_is_behind_and_which_names_live_how_long() -> None:
    """Convergence in the first line; names of its own pods and of others apart, each with its seconds."""
    learned = (
        LearnedName(name="a.example.com", address="192.0.2.1", seconds=77),
        LearnedName(name="b.example.com", address="192.0.2.2", seconds=88, is_own=True),
    )
    agents = {"a": msgspec.structs.replace(make_agent("a", 5), learned=learned, names=1)}
    console = Console(record=True, width=160, file=io.StringIO())
    show(console, make_controller(7, a=5), agents, ())
    shown = console.export_text()
    assert "revision 7 enforced on 0 of 1 nodes" in shown and "a: revision 5 (2 behind)" in shown
    own, others = (shown.index(f"names that {whose} resolved") for whose in ("its own pods", "other nodes"))
    assert own < shown.index("b.example.com") < shown.index("88") < others < shown.index("a.example.com")
    assert "77" in shown[others:]


@pytest.mark.parametrize("default", list(Default))
def test_each_node_says_its_default(default: Default) -> None:
    """In the table and in the JSON, by the word of the settings; deny too, which the bus leaves out."""
    agents = {"a": msgspec.structs.replace(make_agent("a", 7), default=default), "b": make_agent("b", 7)}
    word = default.name.lower()
    console = Console(record=True, width=160, file=io.StringIO())
    show(console, make_controller(7), agents, ())
    shown = " ".join(console.export_text().split())
    assert f"a: revision 7, standard mode, default {word}, 0 names" in shown
    assert "b: revision 7, standard mode, default deny, 0 names" in shown
    nodes = json.loads(json.dumps(to_json(make_controller(7), agents, ())))["nodes"]
    assert {name: one["default"] for name, one in nodes.items()} == {"a": word, "b": "deny"}
    assert nodes["a"]["revision"] == 7


def test_the_bus_is_found_by_option_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And without any the command says what to do."""
    monkeypatch.setenv(ENVIRONMENT_URL, "nats://environment:4222")
    assert find_nats_url("nats://option:4222") == "nats://option:4222"
    assert find_nats_url("") == "nats://environment:4222"
    monkeypatch.delenv(ENVIRONMENT_URL)
    monkeypatch.setattr("services.cli.output.find_runs", list)
    with pytest.raises(typer.Exit):
        find_nats_url("")
