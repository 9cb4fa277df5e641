"""The demo's objects on an API server: policies as people apply them, by kubectl; facts as the cluster's own parts
write them, pods with the status that a kubelet gives them.

Objects are as ``services/demo/objects`` makes them; what this server is too old for is put in its words.
"""

from __future__ import annotations

from typing import Any

import yaml

from services.demo.folder import Objects
from tests.kube.servers import KubeServer

Object = dict[str, Any]
Key = tuple[str, str, str]

ROOTS = {
    "Namespace": "/api/v1/namespaces",
    "Node": "/api/v1/nodes",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "EndpointSlice": "/apis/discovery.k8s.io/v1beta1/namespaces/{}/endpointslices",
}
"""What is no policy."""
WITH_STATUS = ("Pod", "Node")
MERGE = "application/merge-patch+json"


def find_illegal_names(text: str) -> list[str]:
    """Names that no object on a server may have, because they hold capitals."""
    names = [obj["metadata"]["name"] for obj in yaml.safe_load_all(text) if obj]
    return [name for name in names if name != name.lower()]


class ApiObjects(Objects):
    """``renamed``: names that had to be made legal."""

    def __init__(self, kube: KubeServer) -> None:
        self._kube = kube
        self._files: dict[str, dict[Key, str]] = {}
        self.renamed: set[str] = set()

    def write(self, name: str, text: str) -> None:
        for illegal in find_illegal_names(text):
            self.renamed.add(illegal)
            text = text.replace(illegal, illegal.lower())
        objects = [obj for obj in yaml.safe_load_all(text) if obj]
        facts = [obj for obj in objects if obj["kind"] in ROOTS]
        for obj in facts:
            self.put(obj)
        if len(facts) < len(objects):
            policies = text if not facts else yaml.safe_dump_all(obj for obj in objects if obj["kind"] not in ROOTS)
            self._kube.kubectl("apply", "-f", "-", stdin=policies)
        before, self._files[name] = self._files.get(name, {}), {_key(obj): _resource(obj) for obj in objects}
        for key in before.keys() - self._files[name].keys():
            self._delete(key, before[key])

    def remove(self, name: str) -> None:
        for key, resource in self._files.pop(name, {}).items():
            self._delete(key, resource)

    def put(self, obj: Object) -> None:
        """A fact is so, whatever was there."""
        obj = _in_old_words(obj)
        place = _path(obj)
        status, found = self._kube.admin.request("GET", f"{place}/{obj['metadata']['name']}")
        if status == 404:
            self._kube.admin.create(place, obj)
        elif obj["kind"] in ("Pod", "Namespace"):
            labels = {"metadata": {"labels": obj["metadata"].get("labels", {})}}
            self._kube.admin.call("PATCH", f"{place}/{obj['metadata']['name']}", labels, content_type=MERGE)
        else:
            metadata = {**obj["metadata"], "resourceVersion": found["metadata"]["resourceVersion"]}
            self._kube.admin.call("PUT", f"{place}/{obj['metadata']['name']}", {**obj, "metadata": metadata})
        if obj["kind"] in WITH_STATUS and obj.get("status"):
            path = f"{place}/{obj['metadata']['name']}/status"
            self._kube.admin.call("PATCH", path, {"status": obj["status"]}, content_type=MERGE)

    def _delete(self, key: Key, resource: str) -> None:
        place = ("--namespace", key[1]) if key[1] else ()
        options = ("--ignore-not-found", "--wait=false", "--grace-period=0", "--force")
        self._kube.kubectl("delete", resource, key[2], *place, *options)


def _key(obj: Object) -> Key:
    metadata = obj["metadata"]
    return obj["kind"], metadata.get("namespace", ""), metadata["name"]


def _resource(obj: Object) -> str:
    """As kubectl takes it, without doubt about the group."""
    group = obj["apiVersion"].rpartition("/")[0]
    return f"{obj['kind']}.{obj['apiVersion'].rpartition('/')[2]}.{group}" if group else obj["kind"]


def _path(obj: Object) -> str:
    return ROOTS[obj["kind"]].format(obj["metadata"].get("namespace", ""))


def _in_old_words(obj: Object) -> Object:
    """discovery.k8s.io/v1 came with 1.21; the beta has no place for a node's name."""
    if obj["kind"] != "EndpointSlice":
        return obj
    endpoints = [{key: value for key, value in each.items() if key != "nodeName"} for each in obj["endpoints"]]
    return {**obj, "apiVersion": "discovery.k8s.io/v1beta1", "endpoints": endpoints}
