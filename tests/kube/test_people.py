"""The ways of people into a cluster, on a real API server: --kube, doctor, check --live, kubectl yett."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.access.folder import Folder
from services.access.kubernetes import MOUNTED, NAMESPACE, PERSON, SERVICE_HOST, make_objects
from tests.bus.controllers import SHOP, controller
from tests.bus.harness import connected, run
from tests.bus.secured import OPERATOR, SecuredServer
from tests.kube.definitions import definition
from tests.kube.kubelet import forwarding_kubelet
from tests.kube.servers import ADMIN_TOKEN, KUBECTL, READER_TOKEN, KubeServer
from tests.kube.test_inpod import until_troubles
from tests.kube.test_lease import reading
from tests.nats_server import NatsServer

pytestmark = pytest.mark.kube

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
AWS = "/apis/networking.k8s.aws/v1alpha1"
RUNNING_NATS = "yett-nats-0"


async def yett(kube: KubeServer, token: str, *arguments: str, entry: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """A command with a kubeconfig of this token: exit code, stdout, stderr."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    clean = {key: value for key, value in os.environ.items() if not key.startswith("YETT_")}
    temporary = kube.folder / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = clean | {"KUBECONFIG": str(kube.kubeconfig("person", token)), "PATH": path}
    environment |= {"TMPDIR": str(temporary), "YETT_PIN_ROOT": "/sys/fs/bpf/yett-none"}
    command = entry or (sys.executable, "-m", "services.cli")
    done = await asyncio.create_subprocess_exec(*command, *arguments, stdout=PIPE, stderr=PIPE, env=environment)
    out, told = await asyncio.wait_for(done.communicate(), 60)
    return done.returncode or 0, out.decode(), told.decode()


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[SecuredServer]:
    """NATS as shipped: its certificate has the Service's name."""
    server = SecuredServer(tmp_path, hosts=(SERVICE_HOST, "127.0.0.1"))
    server.start()
    yield server
    server.stop()


def install(kube: KubeServer, secured: SecuredServer, kubelet_port: int) -> None:
    """The Secrets as ``yett keys kubernetes`` prints them, and a pod of NATS on a node with this kubelet."""
    keys = Folder(secured.keys.path, MOUNTED)
    keys.complete(hosts=[], nodes=[], readers=[], now=datetime.now(UTC), days=1)
    kube.admin.create_namespace(NAMESPACE)
    kube.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(make_objects(keys)))
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
    }
    kube.admin.create("/api/v1/nodes", {"metadata": {"name": "node-a"}, "status": status})
    labels = {"app.kubernetes.io/part-of": "yett", "app.kubernetes.io/component": "nats"}
    kube.admin.create_pod(NAMESPACE, RUNNING_NATS, address="127.0.0.1", **labels)


def let_read(kube: KubeServer, secret: str) -> None:
    """What a person needs, and no more (docs/cli.md); on this server a websocket is the verb ``get``."""
    rules = [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get"]},
    ]
    root = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"
    kube.admin.create(f"{root}/roles", {"metadata": {"name": "people"}, "rules": rules})
    group = "rbac.authorization.k8s.io"
    subject = {"kind": "User", "name": "reader", "apiGroup": group}
    reference = {"kind": "Role", "name": "people", "apiGroup": group}
    kube.admin.create(
        f"{root}/rolebindings", {"metadata": {"name": "people"}, "subjects": [subject], "roleRef": reference}
    )


def test_kube_forwards_a_port_with_the_readers_secret(kube: KubeServer, secured: SecuredServer, tmp_path: Path) -> None:
    """``--kube``: through the API server's own proxy, to a NATS with TLS, as a person with three rights; nothing is
    left behind; as ``kubectl yett`` too; forgetting takes the other Secret."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "shop.yaml").write_text(SHOP)

    async def scenario() -> None:
        async with (
            forwarding_kubelet(kube.folder, secured.port) as (port, asked),
            controller(secured, tmp_path / "manifests", "one", **secured.environment("controller")) as leader,
        ):
            await leader.until_said("published")
            install(kube, secured, port)
            code, _, told = await yett(kube, READER_TOKEN, "status", "--kube")
            assert code == 2 and f"Secret {NAMESPACE}/yett-reader" in told and "403" in told
            let_read(kube, "yett-reader")
            code, out, told = await yett(kube, READER_TOKEN, "status", "--kube", "--output", "json")
            assert code == 0, told
            assert json.loads(out)["leader"] == "one"
            assert set(asked) == {f"/portForward/{NAMESPACE}/{RUNNING_NATS}?port=4222"}
            kubectl = (str(KUBECTL), "yett")
            code, out, told = await yett(kube, READER_TOKEN, "status", "--kube", entry=kubectl)
            assert code == 0 and "leader one" in out, told
            code, _, told = await yett(kube, READER_TOKEN, "forget", "a.example.com", "--kube")
            assert code == 2 and f"Secret {NAMESPACE}/yett-operator" in told
            code, out, told = await yett(kube, ADMIN_TOKEN, "forget", "a.example.com", "--kube", "--wait", "0.5")
            assert code == 1 and "forgotten by 0 of" in out, told
            kube.admin.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/{RUNNING_NATS}")
            code, _, told = await yett(kube, READER_TOKEN, "status", "--kube")
            assert code == 2 and "kubectl get pods" in told
            assert PERSON == OPERATOR and not list((kube.folder / "temporary").iterdir())

    run(scenario(), 240)


def doctor(answer: tuple[int, str, str]) -> tuple[int, dict[str, tuple[str, str]], str]:
    code, out, _ = answer
    told = json.loads(out)
    return code, {one["check"]: (one["state"], one["message"]) for one in told["findings"]}, told["next"]


def test_doctor_asks_the_api_server(kube: KubeServer, secured: SecuredServer, tmp_path: Path) -> None:
    """Undefined kinds; whose they are; a node without an agent; a server that refuses. NATS is given by its URL."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "shop.yaml").write_text(SHOP)
    creds = str(secured.keys.path / "readers" / f"{PERSON}.nk")
    asked = ("doctor", "--kube", "--output", "json", "--nats", secured.url, "--creds", creds)

    async def scenario() -> None:
        env = secured.environment("controller")
        async with controller(secured, tmp_path / "manifests", "one", **env) as leader:
            await leader.until_said("published")
            code, found, following = doctor(await yett(kube, ADMIN_TOKEN, *asked))
            assert code == 1 and found["api-server"][0] == "fine" and found["definitions"][0] == "wrong"
            assert following == "kubectl apply --server-side -f deploy/crds"
            kube.admin.create(DEFINITIONS, definition("ClusterNetworkPolicy"))
            theirs = definition("ApplicationNetworkPolicy")
            theirs["metadata"].pop("labels")
            kube.admin.create(DEFINITIONS, theirs)
            kube.admin.create("/api/v1/nodes", {"metadata": {"name": "lonely"}})
            code, found, _ = doctor(await yett(kube, ADMIN_TOKEN, *asked))
            said = "ApplicationNetworkPolicy: the cluster's own; ClusterNetworkPolicy: Yett's"
            assert found["definitions"] == ("fine", said)
            assert code == 1 and "lonely" in found["agents"][1]
            code, found, following = doctor(await yett(kube, READER_TOKEN, *asked))
            assert code == 1 and found["api-server"][0] == "wrong" and "403" in found["api-server"][1]
            assert following == "kubectl auth can-i list nodes"

    run(scenario(), 240)


def test_doctor_says_since_when_what_is_known_is_stale(nats_server: NatsServer, kube: KubeServer) -> None:
    """The API server is killed: as soon as the leader's status says so doctor does, and when it is back no more."""
    asked = ("doctor", "--output", "json", "--nats", nats_server.url)

    async def scenario() -> None:
        kube.admin.create_namespace("yett-system")
        async with connected(nats_server) as (client, _), reading(nats_server, kube, "one") as one:
            await one.until_said("leading")
            _, found, _ = doctor(await yett(kube, ADMIN_TOKEN, *asked))
            assert found["controller"][0] == found["source"][0] == "fine"
            kube.apiserver.stop(signal.SIGKILL)
            await until_troubles(client, lambda told: len(told) >= 8)
            code, found, following = doctor(await yett(kube, ADMIN_TOKEN, *asked))
            assert code == 1 and found["source"][0] == "wrong" and found["source"][1].startswith("stale since 20")
            assert following == "kubectl get --raw '/readyz?verbose'" and found["controller"][0] == "fine"
            await asyncio.to_thread(kube.start_apiserver)
            await until_troubles(client, lambda told: not told)
            _, found, _ = doctor(await yett(kube, ADMIN_TOKEN, *asked))
            assert found["source"][0] == "fine"

    run(scenario(), 240)


def pruning(
    kind: str, plural: str, spec: dict[str, Any], *, group: str = "networking.k8s.aws", version: str = "v1alpha1"
) -> dict[str, Any]:
    """A definition as the managed service has it: structural, so that what it does not name is dropped."""
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": spec}}}
    versions = [{"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}]
    names = {"kind": kind, "plural": plural, "singular": kind.lower()}
    scope = "Namespaced" if kind == "PolicyEndpoint" else "Cluster"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "scope": scope, "names": names, "versions": versions},
    }


SELECTOR = {
    "type": "object",
    "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}},
}
PORT = {"port": {"type": "integer"}, "protocol": {"type": "string"}}
RULE = {
    "type": "object",
    "properties": {
        "action": {"type": "string"},
        "to": {"type": "array", "items": {"type": "object", "properties": {"namespaces": SELECTOR}}},
        "ports": {
            "type": "array",
            "items": {"type": "object", "properties": {"portNumber": {"type": "object", "properties": PORT}}},
        },
    },
}
THEIRS = {
    "tier": {"type": "string"},
    "priority": {"type": "integer"},
    "subject": {"type": "object", "properties": {"namespaces": SELECTOR}},
    "egress": {"type": "array", "items": RULE},
}
WRITTEN = """\
apiVersion: networking.k8s.aws/v1alpha1
kind: ClusterNetworkPolicy
metadata: {name: written}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {namespaceSelector: {matchLabels: {team: retail}}}}
  egress:
  - action: Deny
    to: [{namespaces: {matchLabels: {team: bank}}}]
    ports: [{protocol: TCP, port: 443}]
"""
SOUND = (
    WRITTEN.replace("written", "sound")
    .replace("{namespaceSelector: {matchLabels: {team: retail}}}", ("{matchLabels: {team: retail}}"))
    .replace("{protocol: TCP, port: 443}", "{portNumber: {protocol: TCP, port: 443}}")
)


def apply(kube: KubeServer, text: str) -> None:
    """By a client that does not validate, as old ones do not."""
    done = kube.kubectl("apply", "--validate=false", "-f", "-", stdin=text, check=False)
    assert done.returncode == 0, done.stderr


def test_check_live_tells_what_the_definition_dropped(kube: KubeServer) -> None:
    """Applied by a client that does not validate, as old ones do: both fields by path and what becomes of the policy;
    a policy in the definition's own spelling, and a NetworkPolicy, are nothing to look at."""
    kube.admin.create(DEFINITIONS, pruning("ClusterNetworkPolicy", "clusternetworkpolicies", THEIRS))
    kube.until(lambda: kube.admin.request("GET", f"{AWS}/clusternetworkpolicies")[0] == 200, 20)
    kube.admin.create_namespace("shop")
    closed = {"podSelector": {}, "policyTypes": ["Ingress"]}
    plain = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "shop"},
        "spec": closed,
    }
    for text in (SOUND, yaml.safe_dump(plain)):
        apply(kube, text)

    async def scenario() -> None:
        code, out, told = await yett(kube, ADMIN_TOKEN, "check", "--live")
        assert code == 0 and "nothing to look at" in out, told
        apply(kube, WRITTEN)
        code, out, _ = await yett(kube, ADMIN_TOKEN, "check", "--live", "--output", "json")
        found = {one["path"]: one for one in json.loads(out)["pruned"]}
        assert code == 1 and {one["object"] for one in found.values()} == {"ClusterNetworkPolicy written"}
        namespaces = "spec.subject.namespaces.namespaceSelector"
        assert found.keys() == {namespaces, "spec.egress[0].ports[0].protocol", "spec.egress[0].ports[0].port"}
        assert "governs every namespace" in found[namespaces]["message"]
        assert "for every port" in found["spec.egress[0].ports[0].port"]["message"]
        code, out, _ = await yett(kube, ADMIN_TOKEN, "check", "--live")
        assert code == 1 and f"pruned ClusterNetworkPolicy written: {namespaces}: applied, but not stored" in out

    run(scenario(), 120)


@pytest.fixture
def managed(kube: KubeServer) -> Iterator[None]:
    """The managed CNI's ConfigMap and DaemonSet, whose namespace outlives a test."""
    config = {"metadata": {"name": "amazon-vpc-cni"}, "data": {"enable-network-policy-controller": "true"}}
    kube.admin.create("/api/v1/namespaces/kube-system/configmaps", config)
    kube.admin.create("/apis/apps/v1/namespaces/kube-system/daemonsets", aws_node())
    yield
    kube.admin.call("DELETE", "/api/v1/namespaces/kube-system/configmaps/amazon-vpc-cni")
    kube.admin.call("DELETE", "/apis/apps/v1/namespaces/kube-system/daemonsets/aws-node")


def test_migrate_reads_what_is_there_and_writes_our_settings(
    kube: KubeServer, secured: SecuredServer, managed: None, tmp_path: Path
) -> None:
    """The switch, the agents' flag, NodeClasses and PolicyEndpoints of a cluster under the managed service; the
    ConfigMap that means the same is printed, and written with --apply; nothing of theirs changes."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "shop.yaml").write_text(SHOP)
    kube.admin.create_namespace(NAMESPACE)
    kube.admin.create(DEFINITIONS, pruning("PolicyEndpoint", "policyendpoints", {}))
    default = {"networkPolicy": {"type": "string"}}
    group, version = "eks.amazonaws.com", "v1"
    kube.admin.create(DEFINITIONS, pruning("NodeClass", "nodeclasses", default, group=group, version=version))
    endpoints, node_classes = f"{AWS}/namespaces/default/policyendpoints", f"/apis/{group}/{version}/nodeclasses"
    for path in (endpoints, node_classes):
        kube.until(lambda path=path: kube.admin.request("GET", path)[0] == 200, 20)
    kube.admin.create(endpoints, aws_object("networking.k8s.aws/v1alpha1", "PolicyEndpoint", "left-over", {}))
    strict = {"networkPolicy": "DefaultDeny"}
    kube.admin.create(node_classes, aws_object(f"{group}/{version}", "NodeClass", "strict", strict))
    creds = str(secured.keys.path / "readers" / f"{PERSON}.nk")
    asked = ("migrate", "--output", "json", "--nats", secured.url, "--creds", creds)

    async def scenario() -> None:
        async with controller(secured, tmp_path / "manifests", "one", **secured.environment("controller")) as leader:
            await leader.until_said("published")
            code, out, told = await yett(kube, ADMIN_TOKEN, *asked)
            assert code == 1, told
            first = json.loads(out)
            assert first["config"]["data"] == {"default": "allow", "enforce": "true"}
            assert first["node_classes"] == {"strict": "DefaultDeny"}
            steps = {one["name"]: one for one in first["steps"]}
            assert steps["settings"]["progress"] == "todo" and steps["their-controller"]["progress"] == "blocked"
            assert steps["their-agents"]["message"].endswith("--enable-network-policy: true")
            assert steps["their-objects"]["message"] == "1 PolicyEndpoints"
            assert kube.admin.request("GET", OUR_CONFIG)[0] == 404
            before = kube.admin.call("GET", "/api/v1/namespaces/kube-system/configmaps/amazon-vpc-cni")
            for _ in range(2):
                code, out, _ = await yett(kube, ADMIN_TOKEN, *asked, "--apply")
                applied = {one["name"]: one["progress"] for one in json.loads(out)["steps"]}
                assert code == 1 and applied["settings"] == "done" and applied["ready"] == "todo"
            assert kube.admin.call("GET", OUR_CONFIG)["data"] == {"default": "allow", "enforce": "true"}
            assert kube.admin.call("GET", "/api/v1/namespaces/kube-system/configmaps/amazon-vpc-cni") == before
            code, _, told = await yett(kube, READER_TOKEN, *asked)
            assert code == 2 and "403" in told

    run(scenario(), 240)


OUR_CONFIG = f"/api/v1/namespaces/{NAMESPACE}/configmaps/yett"


def aws_object(version: str, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def aws_node() -> dict[str, Any]:
    """The managed CNI's DaemonSet, with its policy agent switched on."""
    agent = {
        "name": "aws-eks-nodeagent",
        "image": "none",
        "args": ["--enable-ipv6=false", "--enable-network-policy=true"],
    }
    labels = {"k8s-app": "aws-node"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "aws-node", "image": "none"}, agent]}}
    return {"metadata": {"name": "aws-node"}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
