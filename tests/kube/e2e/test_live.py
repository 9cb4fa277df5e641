"""What is changed with kubectl on a running cluster, and what its owners are told of it."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
import yaml

from services.demo.pipeline import agent_name
from services.demo.topology import NODE_B
from tests.kube.e2e.cluster import Cluster, applied

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(120)]

POLICY = """
apiVersion: networking.k8s.aws/v1alpha1
kind: ClusterNetworkPolicy
metadata: {{name: switch-out}}
spec:
  tier: Admin
  priority: 70
  subject: {{namespaces: {{matchLabels: {{kubernetes.io/metadata.name: switch}}}}}}
  egress: [{{name: out, action: Accept, to: [{{networks: ["{network}"]}}]}}]
"""
RESOURCE = "clusternetworkpolicies.networking.k8s.aws/switch-out"
CLIENTS = ("switch/switch-client", "switch/switch-client-b")
ADDRESS, OTHER = "203.0.113.10", "203.0.113.20"


def conditions(whole: Cluster) -> dict[str, tuple[str, str, int]]:
    """type -> (status, message, observed generation), as kubectl shows them."""
    obj = json.loads(whole.kube.kubectl("get", RESOURCE, "--output", "json").stdout)
    found: list[dict[str, Any]] = obj.get("status", {}).get("conditions", [])
    return {each["type"]: (each["status"], each["message"], each["observedGeneration"]) for each in found}


def test_programmed_counts_the_nodes_that_enforce_it(whole: Cluster) -> None:
    """While one node's agent is held an edit is enforced on one of two; when it goes on, on both, and of the new
    generation: what the condition says is what packets meet."""
    agent = whole.demo.pipeline.processes[agent_name(NODE_B)]
    with applied(whole, "switch-out.yaml", POLICY.format(network=f"{ADDRESS}/32")):
        whole.until(lambda: conditions(whole).get("Programmed") == ("True", "enforced on 2 of 2 nodes", 1), 20, "both")
        assert [whole.reaches(key, ADDRESS) for key in CLIENTS] == [True, True]
        os.kill(agent.pid, signal.SIGSTOP)
        try:
            whole.objects.write("switch-out.yaml", POLICY.format(network=f"{OTHER}/32"))
            half = ("False", "enforced on 1 of 2 nodes", 2)
            whole.until(lambda: conditions(whole)["Programmed"] == half, 20, "one of two")
            assert [whole.reaches(key, ADDRESS) for key in CLIENTS] == [False, True]
        finally:
            os.kill(agent.pid, signal.SIGCONT)
        whole.until(lambda: conditions(whole)["Programmed"] == ("True", "enforced on 2 of 2 nodes", 2), 20, "both")
        assert [whole.reaches(key, OTHER) for key in CLIENTS] == [True, True]
        assert [whole.reaches(key, ADDRESS) for key in CLIENTS] == [False, False]


def test_a_refused_edit_leaves_the_last_good_version_and_says_so(whole: Cluster) -> None:
    """A field of a newer version of the API: packets pass as before, Accepted is false with the field's path."""
    good = POLICY.format(network=f"{ADDRESS}/32")
    with applied(whole, "switch-out.yaml", good):
        newer = good.replace("name: out,", "name: out, encrypted: Always,")
        whole.objects.write("switch-out.yaml", newer)
        whole.until(lambda: conditions(whole)["Accepted"][0] == "False", 20, "refused")
        said = conditions(whole)
        assert said["Accepted"][1].startswith("spec.egress[0].encrypted: unknown field")
        assert said["Programmed"][:2] == ("False", "generation 1 or what is left of it")
        assert [whole.reaches(key, ADDRESS) for key in CLIENTS] == [True, True]
        whole.objects.write("switch-out.yaml", good)
        whole.until(lambda: conditions(whole)["Accepted"][0] == "True", 20, "accepted")


def test_the_default_follows_the_config_map_and_the_node_class(whole: Cluster) -> None:
    """Edited with kubectl: the cluster opens; the class of one node shuts its pods alone; without it they are open;
    and the ConfigMap shuts the cluster again. Nothing is restarted."""
    pids = {name: process.pid for name, process in whole.demo.pipeline.processes.items()}
    tight = {"apiVersion": "eks.amazonaws.com/v1", "kind": "NodeClass", "metadata": {"name": "tight"}}
    try:
        change_default(whole, "allow")
        assert [whole.reaches(key, ADDRESS) for key in CLIENTS] == [True, True]
        before = whole.revision()
        text = yaml.safe_dump({**tight, "spec": {"networkPolicy": "DefaultDeny"}})
        whole.kube.kubectl("apply", "-f", "-", stdin=text)
        whole.kube.kubectl("label", "node", NODE_B.name, "eks.amazonaws.com/nodeclass=tight")
        whole.settle(before)
        assert [whole.reaches(key, ADDRESS) for key in CLIENTS] == [True, False]
        before = whole.revision()
        whole.kube.kubectl("label", "node", NODE_B.name, "eks.amazonaws.com/nodeclass-")
        whole.settle(before)
        assert [whole.reaches(key, ADDRESS) for key in CLIENTS] == [True, True]
    finally:
        change_default(whole, "deny")
    assert [whole.reaches(key, ADDRESS) for key in CLIENTS] == [False, False]
    assert {name: process.pid for name, process in whole.demo.pipeline.processes.items()} == pids


def change_default(whole: Cluster, default: str) -> None:
    before = whole.revision()
    patch = json.dumps({"data": {"default": default}})
    whole.kube.kubectl("patch", "configmap", "yett", "--namespace", "yett-system", "--type=merge", "--patch", patch)
    whole.settle(before)
