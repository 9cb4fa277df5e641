"""The policies that an API server stores, as it stores them."""

from __future__ import annotations

from typing import Any

import msgspec

from services.controller.kube_api import Api, KubeError
from services.controller.kube_kinds import kinds_read
from services.controller.policy.parse import POLICY_KIND_NAMES
from services.operate.reach import NOT_FOUND

Obj = dict[str, Any]


async def read_policies(api: Api) -> list[Obj]:
    """Every policy of every kind that is served; KubeError."""
    found: list[Obj] = []
    for kind in kinds_read(""):
        if kind.kind not in POLICY_KIND_NAMES:
            continue
        for version in kind.versions:
            try:
                answer = msgspec.json.decode(await api.get(kind.path(version)))
            except KubeError as error:
                if error.code == NOT_FOUND and kind.is_custom:
                    continue
                raise
            found += [{**obj, "apiVersion": kind.api_version(version), "kind": kind.kind} for obj in answer["items"]]
            break
    return found
