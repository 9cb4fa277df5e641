"""Lets pods onto a node once its agent enforces: takes off the taint with which the node registered.

* A node is looked at once in each life of its agent. The taint is never put on, nor taken off again for the same agent:
  what a person taints later stays tainted, and an agent that falls behind makes no node unready.
* A write carries the version that was read, so taints that others change meanwhile stay as they made them.

A look that fails is tried again; nothing waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from schemas.terms import NodeName
from services.common.log import get_logger
from services.controller.kube_api import Api, KubeError
from services.controller.kube_status import MERGE, NOT_FOUND

LOOK_SECONDS = 0.5
LOOKS_MAX = 50
"""Nodes in one look, so that a new leader of a large cluster leaves the API server time for others."""

_log = get_logger("taints")


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Spec(msgspec.Struct):
    taints: list[dict[str, Any]] | None = None


class _Node(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec


_NODE = msgspec.json.Decoder(_Node)


class TaintRemover:
    """One per process; works while ``run`` does. ``key``: of the taint, whatever its value and effect."""

    def __init__(self, api: Api, key: str) -> None:
        self._api = api
        self._key = key
        self._seen: dict[NodeName, int] = {}

    async def run(self, read: Callable[[], Mapping[NodeName, int]]) -> None:
        """While leading. ``read``: nodes whose agents enforce, and when each agent started. Until cancelled."""
        while True:
            ready = read()
            waiting = [node for node, life in ready.items() if self._seen.get(node) != life]
            for node in waiting[:LOOKS_MAX]:
                if await self._try_admit(node):
                    self._seen[node] = ready[node]
            await asyncio.sleep(LOOK_SECONDS)

    async def _try_admit(self, node: NodeName) -> bool:
        """Whether the node has been seen without the taint."""
        try:
            await self._admit(node)
        except KubeError as error:
            if error.code == NOT_FOUND:  # an agent without a node, or a node that has gone
                return True
            _log.warning("startup taint not taken off", node=node, reason=str(error))
            return False
        return True

    async def _admit(self, node: NodeName) -> None:
        path = f"/api/v1/nodes/{node}"
        found = _NODE.decode(await self._api.get(path))
        taints = found.spec.taints or []
        kept = [taint for taint in taints if taint.get("key") != self._key]
        if len(kept) == len(taints):
            return
        body = {"metadata": {"resourceVersion": found.metadata.resource_version}, "spec": {"taints": kept or None}}
        await self._api.send("PATCH", path, body=body, content_type=MERGE)
        _log.info("startup taint taken off", node=node, taint=self._key)
