"""The DaemonSet that takes the programs off: made of the agent's, whatever that came from."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from services.common.settings import NodeagentSettings, load_settings
from services.installation.objects import WAITING, find_definitions, hold_back, let_go, make_detach
from tests.deploy.test_overlays import DEPLOY, PLACES, environment, find, render, render_with

Object = dict[str, Any]


def agents() -> dict[str, Object]:
    places = {place: render(DEPLOY / place) for place in PLACES}
    places["host-credentials"] = render_with("host-credentials")
    return {place: find(objects, "DaemonSet", "yett-agent") for place, objects in places.items()}


@pytest.fixture(scope="module", params=[*PLACES, "host-credentials"])
def agent(request: pytest.FixtureRequest) -> Object:
    return agents()[request.param]


def test_it_runs_where_the_agent_ran_with_what_the_agent_might(agent: Object) -> None:
    """The same image, nodes, tolerations, capabilities; valid by the published schema; no credential is asked for."""
    detach = make_detach(agent, is_waiting=False)
    kubernetes_validate.validate(detach, kubernetes_validate.latest_version(), strict=True)
    was, spec = agent["spec"]["template"]["spec"], detach["spec"]["template"]["spec"]
    for field in ("nodeSelector", "tolerations", "affinity", "hostNetwork", "priorityClassName"):
        assert spec.get(field) == was.get(field), field
    (first,), (then,) = spec["initContainers"], spec["containers"]
    nodeagent = was["containers"][0]
    assert (first["image"], first["args"]) == (nodeagent["image"], ["detach"])
    assert first["securityContext"] == nodeagent["securityContext"]
    assert then["securityContext"]["capabilities"] == {"drop": ["ALL"]} and "volumeMounts" not in then
    mounted = {each["name"]: each["mountPath"] for each in first["volumeMounts"]}
    assert mounted == {"bpffs": "/sys/fs/bpf", "state": "/var/lib/yett", "tmp": "/tmp"}
    assert {each["name"] for each in spec["volumes"]} == set(mounted)
    assert not any("configMapKeyRef" in each.get("valueFrom", {}) for each in first["env"])
    assert load_settings(NodeagentSettings, environment(first)).pin_root == "/sys/fs/bpf/yett"


def test_it_waits_on_no_node_until_it_is_let_go(agent: Object) -> None:
    """What selects its nodes is the same before and after; a second call changes nothing."""
    waiting, ready = make_detach(agent, is_waiting=True), make_detach(agent, is_waiting=False)
    assert waiting["spec"]["template"]["spec"]["nodeSelector"][WAITING] == "true"
    assert let_go(waiting) == let_go(ready) == ready
    assert hold_back(ready) == waiting


@pytest.mark.parametrize(
    ("name", "labels", "is_taken"),
    [
        ("clusternetworkpolicies.networking.k8s.aws", {"app.kubernetes.io/part-of": "yett"}, True),
        ("clusternetworkpolicies.networking.k8s.aws", {"app.kubernetes.io/part-of": "other"}, False),
        ("clusternetworkpolicies.networking.k8s.aws", None, False),
        ("clusternetworkpolicies.policy.networking.k8s.io", {"app.kubernetes.io/part-of": "yett"}, False),
    ],
)
def test_a_definition_is_ours_by_its_name_and_its_label(name: str, labels: Any, is_taken: bool) -> None:
    """Both: a label that somebody copied onto another kind is no reason to delete it."""
    assert find_definitions([{"metadata": {"name": name, "labels": labels}}]) == ([name] if is_taken else [])
