"""The facts of ``yett doctor`` that an API server knows. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.controller.kube_api import Api, KubeError
from services.operate.doctor import Kube

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WANTED = {
    "ClusterNetworkPolicy": "clusternetworkpolicies.networking.k8s.aws",
    "ApplicationNetworkPolicy": "applicationnetworkpolicies.networking.k8s.aws",
}
OURS = "yett"
NOT_FOUND = 404


async def ask_kube(api: Api) -> Kube:
    """The API server's nodes, and whose the kinds' definitions are."""
    try:
        nodes = msgspec.json.decode(await api.get("/api/v1/nodes"))["items"]
        definitions = {kind: await _find_owner(api, name) for kind, name in WANTED.items()}
    except KubeError as error:
        return Kube(problem=str(error))
    return Kube("", tuple(sorted(one["metadata"]["name"] for one in nodes)), definitions)


async def _find_owner(api: Api, name: str) -> str:
    """Who defined a kind: Yett, by its label, or somebody else; empty if nobody did."""
    try:
        found: Mapping[str, Any] = msgspec.json.decode(await api.get(f"{DEFINITIONS}/{name}"))
    except KubeError as error:
        if error.code == NOT_FOUND:
            return ""
        raise
    labels = found["metadata"].get("labels") or {}
    return "Yett's" if labels.get("app.kubernetes.io/part-of") == OURS else "the cluster's own"
