"""What is there of the managed service, read once from the API server; and our ConfigMap, which may be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.access.kubernetes import NAMESPACE
from services.controller.kube_api import Api, KubeError
from services.controller.policy.parse_settings import SETTINGS_NAME
from services.operate.migrate import THEIR_AGENT, THEIR_CONFIG, THEIR_FLAG, THEIR_SWITCH, TRUE, Found
from services.operate.reach import NOT_FOUND

CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
NODE_CLASSES = "/apis/eks.amazonaws.com/v1/nodeclasses"
ENDPOINTS = "/apis/networking.k8s.aws/v1alpha1/policyendpoints"
MERGE = "application/merge-patch+json"


async def read_managed(api: Api) -> Found:
    """All but what the bus knows; KubeError."""
    namespace, name = THEIR_CONFIG
    config = await _get(api, f"/api/v1/namespaces/{namespace}/configmaps/{name}")
    classes = (await _get(api, NODE_CLASSES)).get("items", ())
    ours = await _get(api, f"{CONFIG_MAPS}/{SETTINGS_NAME}")
    return Found(
        switch=str((config.get("data") or {}).get(THEIR_SWITCH, "")),
        flag=await _read_flag(api),
        node_classes={
            one["metadata"]["name"]: str((one.get("spec") or {}).get("networkPolicy", "")) for one in classes
        },
        endpoints=len((await _get(api, ENDPOINTS)).get("items", ())),
        ours=(ours.get("data") or {}) if ours else None,
    )


async def write_settings(api: Api, data: Mapping[str, str]) -> None:
    """Our ConfigMap, made or brought to this; other keys stay. KubeError."""
    labels = {"app.kubernetes.io/part-of": "yett"}
    body = {"metadata": {"name": SETTINGS_NAME, "labels": labels}, "data": dict(data)}
    try:
        await api.send("PATCH", f"{CONFIG_MAPS}/{SETTINGS_NAME}", body=body, content_type=MERGE)
    except KubeError as error:
        if error.code != NOT_FOUND:
            raise
        await api.send("POST", CONFIG_MAPS, body=body, content_type="application/json")


async def _read_flag(api: Api) -> str:
    """Of their agent's container: ``true`` for the flag alone, too; empty without one."""
    namespace, name, container = THEIR_AGENT
    found = await _get(api, f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}")
    containers = found.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ())
    arguments = [each for one in containers if one["name"] == container for each in one.get("args") or ()]
    return next((each.partition("=")[2] or TRUE for each in arguments if each.partition("=")[0] == THEIR_FLAG), "")


def _read_default(node_class: Mapping[str, Any]) -> str:
    return str((node_class.get("spec") or {}).get("networkPolicy", ""))


async def _get(api: Api, path: str) -> dict[str, Any]:
    """Empty where there is no such object, or no such kind."""
    try:
        return dict(msgspec.json.decode(await api.get(path)))
    except KubeError as error:
        if error.code == NOT_FOUND:
            return {}
        raise
