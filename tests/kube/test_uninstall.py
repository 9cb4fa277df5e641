"""``yett uninstall`` against a real API server: nothing of ours is left, and nothing of others is touched.

There is no kubelet: the test says of the DaemonSet that detaches what a cluster's controllers would.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.access.folder import Folder
from services.access.kubernetes import MOUNTED, SERVICE_HOST, make_objects
from services.installation.objects import LABEL, VALUE, WAITING
from tests.deploy.test_overlays import DEPLOY, render
from tests.kube.definitions import definition, open_definition
from tests.kube.servers import ADMIN_TOKEN, KUBECTL, KubeServer
from tests.kube.test_deploy import NEWER

pytestmark = [pytest.mark.kube, pytest.mark.timeout(300)]

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
AWS = "/apis/networking.k8s.aws/v1alpha1"
DAEMONSETS = "/apis/apps/v1/namespaces/yett-system/daemonsets"
MERGE = "application/merge-patch+json"
POLICY: dict[str, Any] = {
    "apiVersion": "networking.k8s.aws/v1alpha1",
    "kind": "ApplicationNetworkPolicy",
    "metadata": {"name": "p", "namespace": "default"},
    "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"domainNames": ["a.example.com"]}]}]},
}


def everything(kube: KubeServer) -> set[str]:
    """Every object that can be listed, but for what the server makes of others: events, leases, endpoints."""
    kinds = set(kube.kubectl("api-resources", "--verbs=list", "--output=name").stdout.split())
    kinds -= {"events", "events.events.k8s.io", "leases.coordination.k8s.io", "endpoints"}
    kinds -= {"apiservices.apiregistration.k8s.io", "componentstatuses"}
    text = '{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\\n"}{end}'
    listed = kube.kubectl("get", ",".join(sorted(kinds)), "--all-namespaces", f"--output=jsonpath={text}").stdout
    return set(listed.splitlines())


def install(kube: KubeServer, folder: Path, *, namespace: dict[str, Any] | None = None) -> None:
    """As the README does; ``namespace``: one that stands there already, without our label."""
    keys = Folder(folder / "keys", MOUNTED)
    keys.complete(hosts=[SERVICE_HOST], nodes=["node-a"], readers=[], now=datetime.now(UTC), days=1)
    objects = [each for each in render(DEPLOY / "base") if (each["apiVersion"], each["kind"]) not in NEWER]
    objects = [namespace if namespace and each["kind"] == "Namespace" else each for each in objects]
    kube.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([*objects, *make_objects(keys)]))


def start_uninstall(kube: KubeServer, *arguments: str) -> subprocess.Popen[str]:
    path = f"{KUBECTL.parent}:{os.environ['PATH']}"
    environment = os.environ | {"KUBECONFIG": str(kube.kubeconfig("admin", ADMIN_TOKEN)), "PATH": path}
    command = [sys.executable, "-m", "services.cli", "uninstall", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def play_nodes(kube: KubeServer) -> bool:
    """The DaemonSet that detaches has done so on its one node, if it was let go. Whether that was said."""
    status, found = kube.admin.request("GET", f"{DAEMONSETS}/yett-detach")
    if status != 200 or WAITING in found["spec"]["template"]["spec"]["nodeSelector"]:
        return False
    names = ("desiredNumberScheduled", "currentNumberScheduled", "updatedNumberScheduled", "numberAvailable")
    said = {**dict.fromkeys(names, 1), "numberReady": 1, "numberMisscheduled": 0}
    said["observedGeneration"] = found["metadata"]["generation"]
    body = {"status": said}
    return bool(kube.admin.request("PATCH", f"{DAEMONSETS}/yett-detach/status", body, content_type=MERGE)[0] == 200)


def uninstall(kube: KubeServer, *arguments: str) -> str:
    """To a good end; what it said."""
    process = start_uninstall(kube, *arguments)
    kube.until(lambda: play_nodes(kube) or process.poll() is not None, 60)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


@contextmanager
def others(kube: KubeServer) -> Iterator[set[str]]:
    """What is somebody else's: a definition of another group, one of a policy, and everything that was there."""
    # The server is the ring's: roles that other tests gave their controllers bear our label, and are not others'.
    kube.kubectl("delete", "clusterroles,clusterrolebindings", f"--selector={LABEL}={VALUE}", "--ignore-not-found")
    kube.admin.create_namespace("shop")
    kube.admin.create("/api/v1/namespaces/shop/configmaps", {"metadata": {"name": "yett"}})
    policy = {"metadata": {"name": "closed"}, "spec": {"podSelector": {}}}
    kube.admin.create("/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies", policy)
    upstream = open_definition(
        "policy.networking.k8s.io", "v1alpha1", "AdminNetworkPolicy", "adminnetworkpolicies", scope="Cluster"
    )
    kube.admin.create(DEFINITIONS, upstream)
    # What the controller manager puts into every namespace is there before what is there is noted.
    kube.until(lambda: "ServiceAccount shop/default" in everything(kube), 20)
    before = everything(kube)
    yield before
    assert everything(kube) == before


def test_an_uninstall_leaves_nothing_and_touches_nothing_of_others(kube: KubeServer, tmp_path: Path) -> None:
    """Definitions and their policies stay without --purge, and go with it; a second call has nothing to do.

    First no node can be reached: then the call fails after the agents and before anything that a second call needs, and
    policy stays in force. The second goes on from there.
    """
    with others(kube) as before:
        for kind in ("ApplicationNetworkPolicy", "ClusterNetworkPolicy"):
            kube.admin.create(DEFINITIONS, definition(kind))
        kube.until(lambda: kube.admin.request("GET", f"{AWS}/applicationnetworkpolicies")[0] == 200, 20)
        kube.admin.create(f"{AWS}/namespaces/default/applicationnetworkpolicies", POLICY)
        with_definitions = everything(kube)
        install(kube, tmp_path)

        process = start_uninstall(kube, "--wait", "3")
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2 and "nodes are not clean yet" in said, said
        names = {each["metadata"]["name"] for each in kube.admin.call("GET", DAEMONSETS)["items"]}
        assert names == {"yett-detach"}
        assert kube.admin.request("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/yett-controller")[0] == 200

        said = uninstall(kube)
        assert everything(kube) == with_definitions, said
        said = uninstall(kube, "--purge")
        assert "applicationnetworkpolicies.networking.k8s.aws, and 1 policies" in said
        assert everything(kube) == before
        said = uninstall(kube, "--purge")
        assert "no agents" in said and "no definition of ours" in said


def test_a_node_that_cannot_be_reached_is_left_where_one_says_so(kube: KubeServer, tmp_path: Path) -> None:
    """It keeps its programs, which is said; the cluster has nothing of ours any more."""
    with others(kube):
        install(kube, tmp_path)
        process = start_uninstall(kube, "--leave-nodes", "--wait", "20")
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0 and "left as it is" in said, said


def test_a_definition_that_we_did_not_install_is_never_purged(kube: KubeServer) -> None:
    """The managed service's own has our kind's name and not our label: it stays, with every policy of its kind."""
    theirs = definition("ApplicationNetworkPolicy")
    theirs["metadata"]["labels"] = {"app.kubernetes.io/part-of": "amazon-vpc-cni"}
    with others(kube):
        kube.admin.create(DEFINITIONS, theirs)
        kube.until(lambda: kube.admin.request("GET", f"{AWS}/applicationnetworkpolicies")[0] == 200, 20)
        kube.admin.create(f"{AWS}/namespaces/default/applicationnetworkpolicies", POLICY)
        with_theirs = everything(kube)
        assert "no definition of ours" in uninstall(kube, "--purge")
        assert everything(kube) == with_theirs
        kube.admin.call("DELETE", f"{DEFINITIONS}/{theirs['metadata']['name']}")
        kube.until(lambda: not is_served(kube), 30)


def is_served(kube: KubeServer) -> bool:
    """Whether the kind is there, or told of: what is told of and gone ends kubectl with an error."""
    name = "applicationnetworkpolicies"
    if kube.admin.request("GET", f"{DEFINITIONS}/{name}.networking.k8s.aws")[0] != 404:
        return True
    status, told = kube.admin.request("GET", AWS)
    return status != 404 and name in str(told)


def test_a_namespace_that_is_not_ours_stays(kube: KubeServer, tmp_path: Path) -> None:
    """Where it stood before, or others live in it: what bears our label goes, and the rest is left."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "yett-system"}}
    kube.admin.create_namespace("yett-system")
    kube.admin.create("/api/v1/namespaces/yett-system/configmaps", {"metadata": {"name": "somebodys"}})
    with others(kube):
        install(kube, tmp_path, namespace=namespace)
        lease = {"metadata": {"name": "yett-controller"}, "spec": {}}
        leases = "/apis/coordination.k8s.io/v1/namespaces/yett-system/leases"
        kube.admin.create(leases, lease)
        uninstall(kube)
        assert kube.admin.call("GET", leases)["items"] == []
