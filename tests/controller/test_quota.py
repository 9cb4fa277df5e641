"""Quotas of prefixes: a tenant's blocks crowd out neither an administrator's nor a neighbour's."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.terms import Direction, Protocol, Reason, Verdict
from services.common.settings import NodeagentSettings, load_settings
from services.controller.policy.evaluate import Oracle
from services.controller.policy.model import Finding, Packet, Pod, Settings
from services.controller.policy.quota import PrefixQuotas
from services.controller.world import State
from services.scenario.rows import Rows
from tests import builders as k8s
from tests.controller.interpreter import judge
from tests.controller.test_twin import state_of

Obj = dict[str, Any]
WEB, MAIN = "10.0.0.1", "10.0.0.2"
CLUSTER = [
    k8s.namespace("app"),
    k8s.namespace("db"),
    k8s.node("node-a", "192.168.0.1"),
    k8s.pod("app/web", WEB),
    k8s.pod("db/main", MAIN),
]
AUDITED = {"annotations": {"yett.dev/mode": "audit"}}


def opens(name: str, blocks: int, created: int, *, namespace: str = "app", first: int = 0, **metadata: Any) -> Obj:
    """Egress to so many blocks, from ``203.0.<first>.0/24`` on."""
    to = [{"ipBlock": {"cidr": f"203.0.{first + n}.0/24"}} for n in range(blocks)]
    spec = {"policyTypes": ["Egress"], "egress": [{"to": to}]}
    made = f"2026-01-{created:02}T00:00:00Z"
    return k8s.network_policy(name, spec, namespace=namespace, creationTimestamp=made, **metadata)


def room(own: int, table: int = 1000) -> Obj:
    return k8s.settings(prefixes=str(table), prefixes_per_namespace=str(own))


def ask_both(state: State, source: str, block: int) -> Finding:
    """What both roads say of a packet to a block."""
    oracle, rows = Oracle(state.policies, state.world), Rows.read(state.rows())
    packet = Packet(source, f"203.0.{block}.9", Protocol.TCP, 80)
    pod = oracle.owner_of(source)
    assert isinstance(pod, Pod)
    found = oracle.evaluate(packet, direction=Direction.EGRESS, pod=pod)
    row = rows.endpoints[pod.key]
    assert judge(rows, packet, direction=Direction.EGRESS, endpoint=row, answers=(), at=0.0) == found
    return found


def is_open(state: State, source: str, block: int) -> bool:
    return ask_both(state, source, block).verdict is Verdict.ALLOW


def test_a_namespaces_newest_policies_go_without_their_rules() -> None:
    """They isolate all the same, say so, and are back when there is room; in any order of arrival."""
    old, new = opens("z-old", 3, 1), opens("a-new", 2, 2, first=3)
    for order in itertools.permutations((room(own=4), old, new)):
        state = state_of([*CLUSTER, *order])
        assert is_open(state, WEB, 2) and ask_both(state, WEB, 3).reason is Reason.ISOLATED
        (problem,) = state.problems()
        assert problem.object == "NetworkPolicy app/a-new" and "4 prefixes of a namespace" in problem.message
        (standing,) = state.standings([("NetworkPolicy", "app", "a-new")]).values()
        assert len(standing.problems) == 1
        state.delete("NetworkPolicy", "app", "z-old")
        assert is_open(state, WEB, 3) and state.problems() == []


def test_isolation_is_kept_where_nothing_else_isolates() -> None:
    """A policy that is too large by itself opens nothing, and shuts what it would have shut."""
    state = state_of([*CLUSTER, room(own=4), opens("large", 5, 1)])
    assert ask_both(state, WEB, 0).reason is Reason.ISOLATED


def test_one_namespace_takes_nothing_from_another_or_from_the_cluster() -> None:
    """With its quota full, a neighbour's blocks are open, and a Deny of the whole cluster shuts what it names."""
    blocks = {"to": [{"networks": ["203.0.100.0/24"]}], "action": "Deny"}
    deny = k8s.cluster_policy("deny", {"egress": [blocks]})
    flood = [opens(f"flood-{n}", 10, 1, first=10 * n) for n in range(5)]
    neighbour = opens("needs", 2, 9, namespace="db", first=100)
    state = state_of([*CLUSTER, room(own=20), *flood, neighbour, deny])
    assert is_open(state, MAIN, 101) and ask_both(state, MAIN, 100).verdict is Verdict.DENY
    assert [is_open(state, WEB, block) for block in (0, 19, 20, 49)] == [True, True, False, False]


def test_all_namespaces_together_have_four_fifths() -> None:
    """The last fifth is the cluster's own: beyond it the newest of them goes without."""
    state = state_of([*CLUSTER, room(own=10, table=10), opens("a", 5, 1), opens("b", 4, 2, namespace="db")])
    assert is_open(state, WEB, 4) and not is_open(state, MAIN, 0)
    (problem,) = state.problems()
    assert problem.object == "NetworkPolicy db/b" and "the 8 of all" in problem.message
    state.upsert(room(own=10, table=12))
    assert is_open(state, MAIN, 0) and state.problems() == []


def test_the_same_block_counts_once_and_an_exception_counts() -> None:
    state = state_of([*CLUSTER, room(own=3), opens("a", 3, 1), opens("b", 3, 2)])
    assert state.problems() == []
    less = opens("a", 1, 1)
    less["spec"]["egress"][0]["to"][0]["ipBlock"]["except"] = [f"203.0.0.{n}/32" for n in range(3)]
    state.upsert(less)
    assert [problem.object for problem in state.problems()] == ["NetworkPolicy app/a", "NetworkPolicy app/b"]


def test_a_policy_under_audit_crowds_out_none_that_is_enforced() -> None:
    """However old it is."""
    state = state_of([*CLUSTER, room(own=3), opens("enforced", 3, 2), opens("tried", 3, 1, first=3, **AUDITED)])
    (problem,) = state.problems()
    assert problem.object == "NetworkPolicy app/tried" and "under audit" in problem.message
    assert is_open(state, WEB, 0)


POLICIES = st.lists(
    st.tuples(st.sampled_from(("app", "db")), st.integers(0, 5), st.integers(1, 4), st.integers(1, 6), st.booleans()),
    max_size=8,
)


@settings(deadline=None, max_examples=150)
@given(POLICIES, st.integers(0, 8), st.integers(0, 15), st.randoms(use_true_random=False))
def test_both_roads_agree_whatever_comes_and_goes(
    policies: list[tuple[str, int, int, int, bool]], own: int, table: int, dice: Any
) -> None:
    """The state that saw policies come and go in some order, one that saw only the last, and the oracle."""
    objects = [
        opens(f"p{n}", blocks, created, namespace=namespace, first=first, **(AUDITED if audited else {}))
        for n, (namespace, first, blocks, created, audited) in enumerate(policies)
    ]
    gone = [obj for obj in objects if dice.random() < 0.3]
    state = state_of([*CLUSTER, room(own=2, table=5)])
    for obj in (*dice.sample(objects, len(objects)), room(own=own, table=table)):
        if dice.random() < 0.5:
            state.rows()
        state.upsert(obj)
    for obj in gone:
        state.delete("NetworkPolicy", obj["metadata"]["namespace"], obj["metadata"]["name"])
        if dice.random() < 0.5:
            state.rows()
    fresh = state_of([*CLUSTER, *(obj for obj in objects if obj not in gone), room(own=own, table=table)])
    assert [one.object for one in state.problems()] == [one.object for one in fresh.problems()]
    for source, block in itertools.product((WEB, MAIN), range(10)):
        assert ask_both(state, source, block) == ask_both(fresh, source, block)


def test_a_policy_that_comes_later_is_weighed_too() -> None:
    """One that is new, and one that grew: after what was there has been decided."""
    state = state_of([*CLUSTER, room(own=4), opens("old", 3, 1)])
    assert is_open(state, WEB, 2)
    state.upsert(opens("new", 2, 2, first=3))
    assert not is_open(state, WEB, 3) and len(state.problems()) == 1
    state.upsert(opens("old", 5, 1))
    assert not is_open(state, WEB, 0)


def test_the_table_is_taken_for_as_large_as_agents_make_it() -> None:
    """By default."""
    assert Settings().prefixes == load_settings(NodeagentSettings, {"YETT_NODE": "node-a"}).map_prefixes


def test_what_is_settled_is_not_counted_again() -> None:
    """Nothing is decided anew while nothing changed."""
    state = state_of([opens("a", 3, 1), opens("b", 3, 2, first=3)])
    quotas, small = PrefixQuotas(), Settings(prefixes_per_namespace=3)
    for policy in state.policies:
        assert quotas.put(policy) == policy
    (stripped,) = quotas.settle(small)
    assert stripped.name == "b" and not stripped.egress and stripped.isolates == {Direction.EGRESS}
    assert quotas.settle(small) == []
    (whole,) = quotas.settle(Settings())
    assert whole == quotas.whole(stripped) and whole.egress
