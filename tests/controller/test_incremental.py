"""What an event costs, counted: rows moved, predicates asked, rulesets compiled. Seconds are ``bench``'s."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from schemas.terms import Direction
from services.controller import rulesets
from services.controller.policy import frontends, select
from services.controller.rulings import Rulings
from services.controller.world import State
from tests import builders as k8s

Obj = dict[str, Any]
NAMESPACES, WORKLOADS, REPLICAS = 6, 3, 4
PODS = NAMESPACES * WORKLOADS * REPLICAS


def pod(place: int, workload: int, replica: int, *, revision: int = 0, **labels: str) -> Obj:
    return k8s.pod(
        f"ns-{place}/pod-{workload}-{replica}",
        f"10.{place}.{workload}.{replica + 1}",
        node=f"node-{replica}",
        ports=[{"name": "http", "containerPort": 8080}],
        **({"app": f"app-{workload}", "pod-template-hash": f"{workload}-{revision}", "track": "stable"} | labels),
    )


def namespace_policy(place: int, port: int = 8080, *, label: str = "app") -> Obj:
    peer = {"podSelector": {"matchLabels": {label: "app-0"}}}
    spec = {"policyTypes": ["Ingress"], "ingress": [{"from": [peer], "ports": [{"port": port}]}]}
    return k8s.network_policy("inside", spec, namespace=f"ns-{place}")


def workload_policy(port: int = 443) -> Obj:
    spec = {"podSelector": {"matchLabels": {"app": "app-1"}}, "policyTypes": ["Egress"]}
    return k8s.network_policy("own", {**spec, "egress": [{"ports": [{"port": port}]}]}, namespace="ns-1")


def wide_policy(team: str = "", cidr: str = "198.51.100.0/24", **spec: Any) -> Obj:
    subject: Obj = {"namespaces": {"matchLabels": {"team": team}} if team else {}}
    rules = [{"action": "Deny", "to": [{"networks": [cidr]}]}]
    return k8s.aws_cluster_policy("wide", {"subject": subject, "egress": rules, **spec})


def cluster() -> list[Obj]:
    """Six namespaces of two teams, three workloads of four pods in each; 72 pods, seven policies, a Service."""
    objects = [k8s.namespace(f"ns-{place}", team=f"t{place % 2}") for place in range(NAMESPACES)]
    objects += [k8s.node(f"node-{n}", f"192.168.0.{n + 1}") for n in range(REPLICAS)]
    objects += [
        pod(place, workload, replica)
        for place in range(NAMESPACES)
        for workload in range(WORKLOADS)
        for replica in range(REPLICAS)
    ]
    objects += [namespace_policy(place) for place in range(NAMESPACES)]
    service = k8s.service("ns-0/web", "10.96.0.1", {"port": 80}, selector={"app": "app-0"})
    return [*objects, workload_policy(), wide_policy(), service]


@pytest.fixture
def state() -> State:
    made = State()
    for obj in cluster():
        assert not [problem for problem in made.upsert(obj) if problem.severity == "error"]
    made.changes()
    return made


def moved(state: State, *objects: Obj) -> Counter[str]:
    """The rows that these objects' arrival moves, by kind; a removal counts as ``-kind``."""
    for obj in objects:
        assert not [problem for problem in state.upsert(obj) if problem.severity == "error"]
    kinds = ((change.subject.split(".")[2], change.body is None) for change in state.changes())
    return Counter(f"{'-' * is_removal}{kind}" for kind, is_removal in kinds)


@contextlib.contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often a subject's selector is asked of a profile, a Service's of a pod, and a ruleset or part is compiled."""
    asked: Counter[str] = Counter()
    places: tuple[tuple[Any, str], ...] = (
        (select, "governs"),
        (frontends, "selects"),
        (rulesets, "compile_ruleset"),
        (rulesets, "compile_part"),
    )
    with monkeypatch.context() as patch:
        for module, name in places:
            patch.setattr(module, name, _counted(getattr(module, name), name, asked))
        yield asked


def _counted(function: Any, name: str, asked: Counter[str]) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        asked[name] += 1
        return function(*args, **kwargs)

    return counted


# -- policies ---------------------------------------------------------------------------------------------------------


def test_an_edited_policy_moves_its_pods_endpoints_and_nothing_else_of_theirs(state: State) -> None:
    """Of a policy that governs four pods of 72: its source, one ruleset for one, four endpoints; no fact."""
    assert moved(state, workload_policy(port=444)) == {"source": 1, "ruleset": 1, "-ruleset": 1, "endpoint": REPLICAS}


def test_an_edit_of_a_policy_of_all_pods_moves_every_endpoint_and_no_fact(state: State) -> None:
    """The flip is one row an endpoint; an endpoint's two hashes move together or not at all."""
    found = moved(state, wide_policy(cidr="203.0.113.0/24"))
    assert found == {"source": 1, "ruleset": 2, "-ruleset": 2, "endpoint": PODS}


def test_an_edit_that_changes_no_rule_moves_its_source_alone(state: State) -> None:
    """A priority between which and the old one no other policy stands."""
    assert moved(state, wide_policy(priority=11)) == {"source": 1}


def test_a_policy_that_changes_its_subject_moves_the_endpoints_that_enter_or_leave_it(state: State) -> None:
    """From all pods to one team's: half of the endpoints."""
    assert moved(state, wide_policy(team="t0"))["endpoint"] == PODS // 2


def test_a_policy_that_names_a_new_label_key_moves_exactly_its_bearers_facts(state: State) -> None:
    """The four that bear it get an identity of their own and so new addresses and endpoints; no other pod moves."""
    assert moved(state, *(pod(2, 2, replica, canary="yes") for replica in range(REPLICAS))) == {}
    found = moved(state, namespace_policy(4, label="canary"))
    facts = {kind: count for kind, count in found.items() if "identity" in kind or "address" in kind}
    assert facts == {"identity": 1, "-identity": 1, "address": REPLICAS}
    governed_by_it = WORKLOADS * REPLICAS
    assert found["endpoint"] == REPLICAS + governed_by_it


def test_naming_a_key_that_is_named_elsewhere_moves_no_fact(state: State) -> None:
    """Its values are told apart already."""
    other = k8s.network_policy(
        "more",
        {"policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {"matchExpressions": [
            {"key": "app", "operator": "NotIn", "values": ["app-2"]}]}}]}]},
        namespace="ns-3",
    )  # fmt: skip
    found = moved(state, other)
    assert found["endpoint"] == WORKLOADS * REPLICAS
    assert not [kind for kind in found if "identity" in kind or "address" in kind]


def test_an_edit_compiles_the_part_of_its_own_tier_once(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rulesets an edited policy is in, its tier is merged once for each set of policies it stands in."""
    with counting(monkeypatch) as asked:
        state.upsert(wide_policy(cidr="203.0.113.0/24"))
        state.changes()
    assert asked == {"compile_part": 1, "compile_ruleset": 2}


def test_an_edit_asks_again_about_the_direction_that_it_changed(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each set of policies that governs pods: one a namespace and one of a workload; nobody about ingress."""
    directions: list[Direction] = []
    find = Rulings.find_side

    def counted(rulings: Rulings, direction: Direction, *args: Any, **kwargs: Any) -> Any:
        directions.append(direction)
        return find(rulings, direction, *args, **kwargs)

    monkeypatch.setattr(Rulings, "find_side", counted)
    state.upsert(wide_policy(cidr="203.0.113.0/24"))
    state.changes()
    assert directions == [Direction.EGRESS] * (NAMESPACES + 1)


def test_an_edited_subject_is_asked_of_a_namespace_once(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six namespaces; and of the three workloads of each of the three that it selects."""
    asked: Counter[str] = Counter()
    monkeypatch.setattr(select, "matches", _counted(select.matches, "matches", asked))
    state.upsert(wide_policy(team="t0"))
    assert asked == {"matches": NAMESPACES + NAMESPACES // 2 * WORKLOADS}


def test_an_edit_that_changes_no_rule_compiles_no_ruleset(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tier is merged again and comes out as it was: whoever has it keeps it, and is not asked about."""
    with counting(monkeypatch) as asked:
        state.upsert(wide_policy(priority=7))
        state.changes()
    assert asked == {"compile_part": 1}


def test_a_policy_that_comes_and_goes_finds_its_rulesets_again(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is not in is remembered while it is there."""
    state.delete("NetworkPolicy", "ns-1", "own")
    state.changes()
    with counting(monkeypatch) as asked:
        state.upsert(workload_policy())
        state.changes()
    assert asked["compile_ruleset"] == 1 and asked["compile_part"] == 1
    with counting(monkeypatch) as asked:
        state.delete("NetworkPolicy", "ns-1", "own")
        state.changes()
    assert asked == {}


# -- pods -------------------------------------------------------------------------------------------------------------


def test_a_template_hash_moves_no_row(state: State) -> None:
    """A label that no policy names: neither identity nor address nor endpoint."""
    assert moved(state, pod(0, 0, 0, revision=1)) == {}


def test_a_new_pod_of_a_known_workload_is_two_rows_and_its_services_faces(state: State) -> None:
    """An address and an endpoint; the Service's frontend stands for an identity, which is known."""
    assert moved(state, pod(0, 0, REPLICAS)) == {"address": 1, "endpoint": 1}
    state.delete("Pod", "ns-0", f"pod-0-{REPLICAS}")
    assert moved(state) == {"-address": 1, "-endpoint": 1}


def test_a_pod_of_a_known_workload_asks_no_policy_and_compiles_nothing(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its labels were asked about before; only the Service of its own namespace is."""
    with counting(monkeypatch) as asked:
        state.upsert(pod(0, 0, REPLICAS))
        state.changes()
    assert asked["governs"] == asked["compile_part"] == asked["compile_ruleset"] == 0
    assert asked["selects"] <= PODS // NAMESPACES + 3
    with counting(monkeypatch) as asked:
        state.upsert(pod(5, 0, REPLICAS))
        state.changes()
    assert asked == {}


def test_a_pod_with_new_labels_asks_the_policies_of_its_namespace_and_the_cluster_wide_ones(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three policies can govern a pod of ns-1; the other five are not asked."""
    with counting(monkeypatch) as asked:
        found = moved(state, pod(1, 1, 0, app="app-2"))
    assert asked["governs"] == 3
    assert found == {"address": 1, "endpoint": 1}


# -- namespaces -------------------------------------------------------------------------------------------------------


def test_a_relabelled_namespace_moves_itself_and_those_of_its_pods_whose_policies_change(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of another namespace moves, and its own profiles alone are asked."""
    state.upsert(wide_policy(team="t0"))
    state.changes()
    own = WORKLOADS * REPLICAS
    with counting(monkeypatch) as asked:
        assert moved(state, k8s.namespace("ns-1", team="t9")) == {"namespace": 1}
    candidates = 3
    assert asked["governs"] == WORKLOADS * candidates
    found = moved(state, k8s.namespace("ns-1", team="t0"))
    assert (found["namespace"], found["endpoint"]) == (1, own)
    assert not [kind for kind in found if "identity" in kind or "address" in kind]
