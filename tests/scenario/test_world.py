"""What is stood in for, and which settings are in force."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.terms import Default
from services.scenario.model import ScenarioError
from services.scenario.world import STAND_IN_NODE, build_cluster, moment_of
from tests import builders as k8s
from tests.scenario.build import name, pod, probe, scenario


def build(*objects: Any, **fields: Any) -> Any:
    made = scenario(*objects, **fields)
    return build_cluster(made, [("", obj) for obj in made.objects])


def test_a_manifest_pod_gets_a_node_and_addresses() -> None:
    """A pod as one writes it, without nodeName or status, can be asked about in both families."""
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare", "namespace": "app"}, "spec": {}}
    found = build(bare).world.pods["app", "bare"]
    assert found.node == STAND_IN_NODE
    assert [address.split(":")[0].split(".")[0] for address in found.addresses] == ["198", "2001"]


def test_what_is_there_stays() -> None:
    """Addresses and nodes of a running cluster's objects are taken as they are."""
    found = build().world.pods["app", "web"]
    assert (found.addresses, found.node) == (("10.0.0.1", "fd00::1"), "node-a")


def test_a_probe_may_give_a_bare_pod_its_address() -> None:
    """The address beside a pod without any is its own."""
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare", "namespace": "app"}}
    asked = probe(pod("app/bare", address="10.7.7.7"), pod("app/web"))
    assert build(bare, probes=[asked]).world.pods["app", "bare"].addresses == ("10.7.7.7",)


def test_probes_may_give_a_bare_pod_several_addresses() -> None:
    """One of each family, as a pod of a cluster with both has."""
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare", "namespace": "app"}}
    asked = [probe(pod("app/bare", address=each), pod("app/web")) for each in ("10.7.7.7", "fd00::7", "10.7.7.7")]
    assert build(bare, probes=asked).world.pods["app", "bare"].addresses == ("10.7.7.7", "fd00::7")


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ({}, 2),
        ({"clusterIP": "None"}, 0),
        ({"type": "ExternalName"}, 0),
        ({"clusterIPs": []}, 2),
        ({"clusterIP": "10.96.0.1"}, 1),
        ({"ipFamilies": ["IPv6"]}, 1),
        ({"ipFamilies": ["IPv6", "IPv4"]}, 2),
        ({"ipFamilies": ["IPv8"]}, 2),
    ],
)
def test_a_manifest_service_gets_a_cluster_address(spec: dict[str, Any], count: int) -> None:
    """Of the families that it asks for, or of both; unless it is headless or a name for another one."""
    obj = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "app"}, "spec": spec}
    assert len(build(obj).world.services["app", "s"].cluster_addresses) == count


def test_a_name_nobody_resolved_is_resolved_by_who_connects() -> None:
    """It has stand-in addresses of both families, learned at that moment."""
    cluster = build(probes=[probe(pod("app/web"), name("example.com"), at=500)])
    assert len(cluster.addresses_of("example.com")) == 2
    assert [answer.at for answer in cluster.answers] == [500.0]


def test_a_name_with_answers_has_those_alone() -> None:
    """Stand-ins are for what nothing is known about."""
    told = [{"name": "example.com", "addresses": ["192.0.2.1"]}]
    cluster = build(probes=[probe(pod("app/web"), name("example.com"))], resolutions=told)
    assert cluster.addresses_of("example.com") == ("192.0.2.1",)


def test_a_probe_without_a_time_comes_after_all_answers() -> None:
    """Resolutions are answers that pods have received already."""
    told = [{"name": "example.com", "addresses": ["192.0.2.1"], "at": at} for at in (-5, 70)]
    made = scenario(probes=[probe(pod("app/web"), name("example.com"))], resolutions=told)
    assert moment_of(made, made.probes[0]) == 70


def test_without_settings_the_default_is_allow() -> None:
    """As in Kubernetes."""
    assert build().world.settings.config.default is Default.ALLOW


def test_settings_of_the_scenario_win_key_by_key() -> None:
    """The rest of the cluster's ConfigMap stays in force."""
    settings = build(k8s.settings(default="deny", grace="7"), config={"default": "allow"}).world.settings.config
    assert (settings.default, settings.grace_seconds) == (Default.ALLOW, 7)


@pytest.mark.parametrize(
    ("config", "fault"),
    [({"defalut": "deny"}, "config.defalut: unknown setting"), ({"default": "maybe"}, "config[default]: 'maybe' is")],
)
def test_settings_that_are_none_are_unusable_input(config: dict[str, str], fault: str) -> None:
    """A scenario with a default that is not what its author meant would test nothing."""
    with pytest.raises(ScenarioError) as raised:
        build(config=config)
    assert raised.value.faults[0].startswith(fault)


def test_what_is_no_kubernetes_object_is_a_problem() -> None:
    """With its place in the scenario."""
    made = scenario("nonsense")
    cluster = build_cluster(made, [("objects[0]", "nonsense")])
    assert [(each.file, each.message) for each in cluster.problems] == [("objects[0]", "not a Kubernetes object")]


def make_workload(kind: str, **labels: str) -> dict[str, Any]:
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c"}]}}
    spec = {"jobTemplate": {"spec": {"template": template}}} if kind == "CronJob" else {"template": template}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "w", "namespace": "app"}, "spec": spec}


STATEFUL: dict[str, Any] = {
    "replicas": 2,
    "ordinals": {"start": 5},
    "template": {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "c"}]}},
}


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet", "Job", "CronJob"])
def test_a_workload_has_a_pod_of_its_name(kind: str) -> None:
    """Manifests have Deployments, policies select pods."""
    found = build(make_workload(kind, app="w")).world.pods["app", "w"]
    assert found.labels == {"app": "w"} and found.addresses


def test_the_pods_of_a_stateful_set_are_known_by_name() -> None:
    """By their ordinals, each with the label that says which it is."""
    pods = build({**make_workload("StatefulSet", app="w"), "spec": STATEFUL}).world.pods
    indices = {name: pods["app", name].labels["apps.kubernetes.io/pod-index"] for name in ("w-5", "w-6")}
    assert indices == {"w-5": "5", "w-6": "6"} and ("app", "w-7") not in pods and ("app", "w") not in pods
    assert pods["app", "w-6"].labels["statefulset.kubernetes.io/pod-name"] == "w-6"


@pytest.mark.parametrize(("replicas", "count"), [(None, 1), (0, 0), (3, 3), (100_000, 100), ("3", 1)])
def test_a_stateful_set_has_as_many_pods_as_it_asks_for(replicas: Any, count: int) -> None:
    """One if it does not say; a hundred at most."""
    spec = {"replicas": replicas, "template": STATEFUL["template"]}
    pods = build({**make_workload("StatefulSet", app="w"), "spec": spec}).world.pods
    assert len([key for key in pods if key[1].startswith("w-")]) == count


def test_a_workload_whose_pods_are_given_has_no_other() -> None:
    """Objects of a running cluster have both."""
    assert ("app", "w") not in build(make_workload("Deployment", app="web")).world.pods
