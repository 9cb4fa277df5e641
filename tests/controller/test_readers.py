"""Two readers, one world: an object says the same from a file and from an API server."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from services.controller.kube_kinds import Kind, decode_item, kinds_read
from services.controller.manifests import read_documents
from services.controller.policy.model import Pod
from services.controller.policy.parse import parse_object
from tests import builders as k8s
from tests.strategies import Scene, scenes

Obj = dict[str, Any]

KINDS: dict[tuple[str, str], Kind] = {
    (kind.api_version(version), kind.kind): kind for kind in kinds_read("yett-system") for version in kind.versions
}
SERVERS_OWN = {"resourceVersion": "7", "managedFields": [{"manager": "kubectl"}], "selfLink": "/x"}
"""What a server adds to everybody's metadata."""


def by_file(obj: Obj) -> Any:
    """What the manifests' reader makes of an object."""
    documents, problems = read_documents("x.json", json.dumps(obj))
    assert documents is not None and not problems
    return parse_object(documents[0])


def by_server(obj: Obj) -> Any:
    """What the API server's reader makes of it."""
    kind = KINDS[obj["apiVersion"], obj["kind"]]
    sent = {**obj, "metadata": {**obj["metadata"], **SERVERS_OWN}}
    item = decode_item(kind, obj["apiVersion"].rpartition("/")[2], msgspec.json.encode(sent))
    assert item is not None
    return parse_object(item.obj)


def owned(*references: Obj) -> Obj:
    pod = k8s.pod("app/web-6d4cf-x2x7p", "10.0.0.1", app="web", **{"pod-template-hash": "6d4cf"})
    pod["metadata"]["ownerReferences"] = list(references)
    return pod


def owner(kind: str, name: str, *, in_control: bool | None = True) -> Obj:
    """As a server sends it."""
    made: Obj = {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": f"u-{name}", "blockOwnerDeletion": True}
    return made if in_control is None else made | {"controller": in_control}


METADATA: Obj = {
    "uid": "u-1",
    "generation": 3,
    "creationTimestamp": "2026-01-03T00:00:00Z",
    "deletionTimestamp": "2026-01-04T00:00:00Z",
    "annotations": {"yett.dev/default": "deny", "yett.dev/mode": "audit", "another": "one"},
    "labels": {"app": "web", "kubernetes.io/service-name": "web"},
    "ownerReferences": [owner("StatefulSet", "web")],
}
PORT = {"name": "http", "containerPort": 80, "protocol": "TCP", "hostPort": 8080, "hostIP": "192.168.0.1"}
WHOLE: dict[str, Obj] = {
    "Pod": {
        "spec": {
            "nodeName": "node-a",
            "hostNetwork": True,
            "containers": [{"name": "main", "image": "i", "ports": [PORT]}],
            "initContainers": [{"name": "side", "restartPolicy": "Always", "ports": [{**PORT, "name": "side"}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    },
    "Node": {"status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}},
    "Namespace": {},
    "Service": {
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1", "fd00:1::1"],
            "externalIPs": ["192.0.2.1"],
            "selector": {"app": "web"},
            "publishNotReadyAddresses": True,
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http", "nodePort": 30080}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}]}},
    },
    "EndpointSlice": {
        "endpoints": [
            {
                "addresses": ["10.0.0.1"],
                "conditions": {"ready": False, "serving": True},
                "targetRef": {"kind": "Pod", "name": "web"},
            }
        ],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
    },
    "NodeClass": {"spec": {"networkPolicy": "DefaultDeny"}},
}
"""Facts with every field that is read of them: what the next test finds missing here, it is to be given."""
NAMESPACED = ("Pod", "Service", "EndpointSlice")


def whole(version: str, kind: str) -> Obj:
    metadata = METADATA | {"name": "web"} | ({"namespace": "app"} if kind in NAMESPACED else {})
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **WHOLE[kind]}


class Asked(dict[str, Any]):
    """A map that notes which of the fields that it does not have are asked for."""

    def __init__(self, value: Obj, path: str, missing: set[str]) -> None:
        super().__init__({key: listen(each, f"{path}.{key}", missing) for key, each in value.items()})
        self._path, self._missing = path, missing

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self._missing.add(f"{self._path}.{key}")
        return super().get(key, default)


def listen(value: Any, path: str, missing: set[str]) -> Any:
    if isinstance(value, dict):
        return Asked(value, path, missing)
    return [listen(each, path, missing) for each in value] if isinstance(value, list) else value


by_kind = pytest.mark.parametrize(("version", "kind"), [each for each in KINDS if each[1] in WHOLE])


@by_kind
def test_a_field_that_the_parser_reads_comes_from_a_server_too(version: str, kind: str) -> None:
    """The object here has all fields that are read of its kind, and both readers give the same fact."""
    obj, missing = whole(version, kind), set[str]()
    parsed, problems = parse_object(listen(obj, kind, missing))
    assert parsed is not None and not problems
    assert missing <= {f"{kind}.metadata.namespace"} - {f"{each}.metadata.namespace" for each in NAMESPACED}
    assert by_server(obj) == by_file(obj) == (parsed, [])


@by_kind
def test_each_field_alone_says_the_same_from_both(version: str, kind: str) -> None:
    """No field stands in for another: with any one of them gone the facts are equal again."""
    for obj in without_each(whole(version, kind)):
        assert by_server(obj) == by_file(obj)


def without_each(value: Any) -> list[Any]:
    """A value in every way in which one map in it can lack one key; names and kinds stay."""
    if isinstance(value, list):
        return [[*value[:at], each, *value[at + 1 :]] for at in range(len(value)) for each in without_each(value[at])]
    if not isinstance(value, dict):
        return []
    kept = ("apiVersion", "kind", "metadata", "name", "namespace")
    less = [{other: value[other] for other in value if other != key} for key in value if key not in kept]
    return less + [{**value, key: each} for key in value for each in without_each(value[key])]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scenes(packets=0))
def test_every_object_of_a_cluster_says_the_same_from_both(scene: Scene) -> None:
    """Facts and policies, problems included, and a pod that has an owner."""
    for obj in (*scene.cluster, *scene.policies, owned(owner("ReplicaSet", "web-6d4cf"))):
        assert by_server(obj) == by_file(obj)


@pytest.mark.parametrize(
    ("references", "said"),
    [
        ([], ""),
        ([owner("ReplicaSet", "web-6d4cf")], "Deployment/web"),
        ([owner("Node", "a", in_control=False), owner("StatefulSet", "db")], "StatefulSet/db"),
        ([owner("Node", "a", in_control=None)], ""),
        ([owner("Job", "first"), owner("Job", "second")], "Job/first"),
    ],
)
def test_a_pods_owner_is_the_same_from_both(references: list[Obj], said: str) -> None:
    """The one in control, wherever it stands among others."""
    (pod, problems), from_file = by_server(owned(*references)), by_file(owned(*references))
    assert (pod, problems) == from_file and isinstance(pod, Pod) and pod.owner == said


def test_another_owner_is_news_and_another_of_no_concern_is_none() -> None:
    """A pod that is adopted is told again; one that a second reference is added to is not."""

    def fingerprint(*references: Obj) -> int:
        item = decode_item(KINDS["v1", "Pod"], "v1", msgspec.json.encode(owned(*references)))
        assert item is not None
        return item.fingerprint

    one = owner("ReplicaSet", "a")
    assert len({fingerprint(), fingerprint(one), fingerprint(owner("ReplicaSet", "b"))}) == 3
    assert fingerprint(one) == fingerprint(one, owner("Node", "n", in_control=False)) == fingerprint(one)


def test_pods_of_one_owner_share_what_is_said_of_it() -> None:
    """Ten thousand pods have a few hundred owners: neither the object nor the fact holds a copy of its own."""
    found = []
    for name in ("first", "second"):
        pod = owned(owner("ReplicaSet", "web-6d4cf"))
        pod["metadata"]["name"] = name
        item = decode_item(KINDS["v1", "Pod"], "v1", msgspec.json.encode(pod))
        assert item is not None
        found.append((item.obj["metadata"]["ownerReferences"], parse_object(item.obj)[0]))
    (first, first_fact), (second, second_fact) = found
    assert isinstance(first_fact, Pod) and isinstance(second_fact, Pod)
    assert first is second and first_fact.owner is second_fact.owner
