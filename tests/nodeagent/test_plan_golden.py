"""What an agent writes for the usual changes, as text that a person reviews: which maps, how much, in which order."""

from __future__ import annotations

from pathlib import Path

from schemas.terms import NodeName
from services.controller.world import State
from services.nodeagent import mapcodec
from services.nodeagent.binding import Binding, Link
from services.nodeagent.numbers import make_spaces
from services.nodeagent.plan import ORDER, Kind, Op, format_plan, plan_changes
from services.nodeagent.policystate import PolicyState
from services.nodeagent.wanted import Wanted
from services.scenario.replay import follow, publish
from tests import builders as k8s
from tests.golden import compare

GOLDEN = Path(__file__).parent / "golden" / "plan.txt"
NODE = NodeName("node-a")
IFINDEX = 7
WEB, DB = k8s.pod("app/web", "10.0.0.1", app="web"), k8s.pod("app/db", "10.0.0.2", node="node-b", app="db")
FIRST = [k8s.namespace("app"), k8s.node("node-a", "192.168.0.1"), k8s.node("node-b", "192.168.0.2"), WEB, DB]


def egress(name: str, *rules: object, application: bool = False) -> dict[str, object]:
    build = k8s.application_policy if application else k8s.network_policy
    return build(name, {"policyTypes": ["Egress"], "egress": list(rules)})


TO_DB = egress("to-db", {"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": 5432}]})
TO_NAME = egress("to-name", {"to": [{"domainNames": ["*.example.com"]}], "ports": [{"port": 443}]}, application=True)
STEPS = (
    ("a node starts: two pods, no policy", FIRST),
    ("a policy: one pod peer, one port", [TO_DB]),
    ("a domain rule", [TO_NAME]),
    ("a pod elsewhere, like one that is there", [k8s.pod("app/db-2", "10.0.0.3", node="node-b", app="db")]),
    ("a pod elsewhere with labels of its own", [k8s.pod("app/other", "10.0.0.4", node="node-b", app="other")]),
    ("a Service", [k8s.service("app/db", "10.96.0.1", {"port": 5432}, selector={"app": "db"})]),
    ("the default turns to deny", [k8s.settings(default="deny")]),
)
Present = dict[str, dict[bytes, bytes]]


class Agent:
    """Follows from state to state, as the running agent does: prepare, plan, finish, plan."""

    def __init__(self) -> None:
        self.wanted = Wanted(NODE, make_spaces())
        self.present: Present = {name: {} for name in ORDER}

    def follow(self, state: PolicyState) -> list[Op]:
        web = state.endpoints["app", "web"]
        binding = Binding(Link(IFINDEX, "veth-web", web.addresses), web.uid)
        self.wanted.prepare(state, None, {IFINDEX: binding})
        ops = self._catch_up()
        self.wanted.finish(state)
        ops += self._catch_up()
        self.wanted.settle()
        return ops

    def _catch_up(self) -> list[Op]:
        ops = plan_changes(mapcodec.encode_tables(self.wanted.tables, endpoint_slots=1024, regions={}), self.present)
        for op in ops:
            if op.kind is Kind.PUT:
                self.present[op.map].update(op.entries)
            for key in op.entries if op.kind is Kind.DELETE else ():
                del self.present[op.map][key]
        return ops


def test_what_an_agent_writes_is_golden() -> None:
    """Step by step: start, policies, pods, a Service, the default, and the removal of a policy; twice is nothing."""
    state, agent, told = State(), Agent(), ["# What the agent of node-a writes. A line is a batch: op, map, entries."]
    for title, objects in STEPS:
        for obj in objects:
            assert not [each for each in state.upsert(obj) if each.severity == "error"]
        told += ["", f"## {title}", format_plan(_follow(agent, state))]
    state.delete("NetworkPolicy", "app", "to-db")
    told += ["", "## the policy is deleted", format_plan(_follow(agent, state))]
    assert _follow(agent, state) == []
    compare(GOLDEN, "\n".join(told) + "\n")


def _follow(agent: Agent, state: State) -> list[Op]:
    return agent.follow(follow(publish(state.rows()), NODE))
