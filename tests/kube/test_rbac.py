"""The role that is shipped, against the audit log of a controller that uses everything it has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.controller.kube_kinds import Kind, kinds_read
from tests.bus.harness import eventually, run
from tests.kube.definitions import open_definition
from tests.kube.servers import CONTROLLER_TOKEN, CONTROLLER_USER, KubeServer
from tests.kube.test_lease import reading
from tests.nats_server import NatsServer

pytestmark = pytest.mark.kube

ROLE_FILE = Path(__file__).parents[2] / "deploy" / "base" / "rbac.yaml"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/yett-controller"
ROLE_IN_NAMESPACE = "/apis/rbac.authorization.k8s.io/v1/namespaces/yett-system/roles/yett-controller"
CUSTOM = [kind for kind in kinds_read("yett-system") if kind.is_custom]

OWN_NAMESPACE = "yett-system"

Right = tuple[str, str, str, str, str]
"""(verb, API group, resource with its subresource, namespace or empty for all, name or empty for all)."""


def granted(file: Path = ROLE_FILE) -> set[Right]:
    """Every right in a shipped file that a binding gives, where the binding gives it."""
    objects = list(yaml.safe_load_all(file.read_text()))
    roles = {(each["kind"], each["metadata"]["name"]): each["rules"] for each in objects if "rules" in each}
    return {
        (verb, group, resource, binding["metadata"].get("namespace", ""), name)
        for binding in objects
        if "roleRef" in binding
        for rule in roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }


def used(kube: KubeServer, *, code: int, since: int = 0) -> set[Right]:
    """Every right that the controller's requests needed that were answered so. ``since``: lines of the audit log that
    other tests left."""
    found = set()
    for entry in kube.audit()[since:]:
        reference = entry.get("objectRef")
        status = entry.get("responseStatus", {}).get("code", 0)
        if entry["user"].get("username") == CONTROLLER_USER and reference and (status == 403) == (code == 403):
            found.add(right_needed(entry["verb"], reference))
    return found


def right_needed(verb: str, reference: dict[str, str]) -> Right:
    """The least that allows this request, and those like it: people's objects have any name in any namespace, our own
    stand in our namespace and are known by name; but what is yet to be created has none for RBAC."""
    resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
    namespace = OWN_NAMESPACE if reference.get("namespace") == OWN_NAMESPACE else ""
    name = reference.get("name", "") if namespace and verb != "create" else ""
    return verb, reference.get("apiGroup", ""), resource, namespace, name


def scope_of(kind: Kind) -> str:
    return "Namespaced" if kind.kind == "ApplicationNetworkPolicy" else "Cluster"


def policy_of(kind: Kind) -> dict[str, Any]:
    """A valid object of a policy kind."""
    cluster = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}
    specs: dict[str, dict[str, Any]] = {
        "ApplicationNetworkPolicy": {"podSelector": {}},
        "AdminNetworkPolicy": {"priority": 1, "subject": {"namespaces": {}}},
        "BaselineAdminNetworkPolicy": {"subject": {"namespaces": {}}},
    }
    spec = specs.get(kind.kind, cluster)
    return {"apiVersion": f"{kind.group}/{kind.versions[0]}", "kind": kind.kind, "spec": spec}


def path_of(kind: Kind) -> str:
    place = "namespaces/default/" if scope_of(kind) == "Namespaced" else ""
    return f"/apis/{kind.group}/{kind.versions[0]}/{place}{kind.plural}"


def install(kube: KubeServer) -> None:
    """The shipped role, every kind of policy that there is, and an object of each; one of them is to be refused."""
    kube.kubectl("apply", "-f", str(ROLE_FILE.parent / "namespace.yaml"), "-f", str(ROLE_FILE))
    define(kube, CUSTOM)
    fill(kube)


def define(kube: KubeServer, kinds: Sequence[Kind]) -> None:
    """Definitions that take anything; served when this returns."""
    for kind in kinds:
        made = open_definition(kind.group, kind.versions[0], kind.kind, kind.plural, scope=scope_of(kind))
        kube.admin.create(DEFINITIONS, made)
    for kind in kinds:
        kube.until(lambda kind=kind: kube.admin.request("GET", path_of(kind))[0] == 200, 20)


def fill(kube: KubeServer) -> None:
    """An object of each, called ``default``, and one that is to be refused."""
    for kind in CUSTOM:
        obj = policy_of(kind) if kind.kind != "NodeClass" else {"apiVersion": "eks.amazonaws.com/v1", "kind": kind.kind}
        kube.admin.create(path_of(kind), {**obj, "metadata": {"name": "default"}})
    bad = policy_of(CUSTOM[0])
    bad["spec"] = {**bad["spec"], "surprise": 1}
    kube.admin.create(path_of(CUSTOM[0]), {**bad, "metadata": {"name": "bad"}})


def test_what_is_granted_is_what_is_used(nats_server: NatsServer, kube: KubeServer) -> None:
    """Both ways: a controller under the shipped role is refused nothing, and leaves no right unused."""

    async def scenario() -> None:
        install(kube)
        since = len(kube.audit())
        config = str(kube.kubeconfig("controller", CONTROLLER_TOKEN))
        async with reading(nats_server, kube, "one", YETT_KUBE_CONFIG=config) as one:
            await one.until_said("published")
            asked = {right for right in granted() if right[0] != "watch"}
            await eventually(lambda: used(kube, code=200, since=since) >= asked, 40)
        # A watch is in the log when it has ended.
        await eventually(lambda: used(kube, code=200, since=since) >= granted(), 20)
        assert used(kube, code=200, since=since) == granted()
        assert used(kube, code=403, since=since) == set()

    run(scenario(), 120)


@pytest.mark.parametrize(
    ("path", "right", "said"),
    [
        (ROLE, ("list", "", "pods"), "not heard"),
        (ROLE_IN_NAMESPACE, ("get", "coordination.k8s.io", "leases"), "the lease cannot be seen"),
        (ROLE, ("patch", "networking.k8s.aws", "clusternetworkpolicies/status"), "status not written"),
    ],
    ids=["list pods", "get the lease", "patch a status"],
)
def test_a_right_that_is_missing_is_said_aloud(
    nats_server: NatsServer, kube: KubeServer, path: str, right: tuple[str, str, str], said: str
) -> None:
    """The log names the request, the answer and the object; without the kinds and the Lease nobody leads."""

    async def scenario() -> None:
        install(kube)
        role = kube.admin.call("GET", path)
        role["rules"] = [rule for rule in role["rules"] if not is_about(rule, right)]
        kube.admin.call("PUT", path, role)
        lease = {"metadata": {"name": "yett-controller"}, "spec": {}}
        kube.admin.create("/apis/coordination.k8s.io/v1/namespaces/yett-system/leases", lease)
        config = str(kube.kubeconfig("controller", CONTROLLER_TOKEN))
        async with reading(nats_server, kube, "one", YETT_KUBE_CONFIG=config) as one:
            await eventually(lambda: any("403" in line.get("reason", "") for line in one.said(said)), 30)
            assert bool(one.said("leading")) == (said == "status not written")

    run(scenario(), 120)


def is_about(rule: dict[str, Any], right: tuple[str, str, str]) -> bool:
    return right[0] in rule["verbs"] and right[1] in rule["apiGroups"] and right[2] in rule["resources"]
