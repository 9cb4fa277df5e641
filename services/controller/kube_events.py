"""Kubernetes Events: about a policy that is refused, and about a node on which another enforcer is first.

An Event's name follows from what it says: a second leader says nothing twice. No right is needed but to create Events.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from schemas.status import FOREIGN_ENFORCER
from schemas.terms import NodeName
from services.common.log import get_logger
from services.controller.kube_api import Api, KubeError

MANAGER = "yett-controller"
CONFLICT = 409
DEFAULT_NAMESPACE = "default"
"""Where Events about cluster-wide objects stand."""
LOOK_SECONDS = 1.0
MESSAGE_MAX = 1024

_log = get_logger("events")


def instant() -> str:
    """Now, as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def post_warning(api: Api, involved: Mapping[str, Any], *, reason: str, message: str, seed: str) -> str:
    """A Warning, unless one with this ``seed`` stands; its namespace and name. KubeError."""
    place = involved.get("namespace") or DEFAULT_NAMESPACE
    name = f"{involved['name'][:230]}.{hashlib.sha256(seed.encode()).hexdigest()[:16]}"
    now = instant()
    event = {
        "metadata": {"name": name, "namespace": place},
        "involvedObject": dict(involved),
        "type": "Warning",
        "reason": reason,
        "message": message[:MESSAGE_MAX],
        "source": {"component": MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    try:
        path = f"/api/v1/namespaces/{place}/events"
        await api.send("POST", path, body=event, content_type="application/json")
    except KubeError as error:
        if error.code != CONFLICT:
            raise
    return f"{place}/{name}"


class NodeEvents:
    """Says of a node that another enforcer is first there: when that begins or changes, and once a day while it lasts.

    An Event and no condition in ``Node.status``: writing that would take the right to change every node.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._said: dict[NodeName, str] = {}

    async def run(self, read: Callable[[], Mapping[NodeName, tuple[str, ...]]]) -> None:
        """While leading. ``read``: node -> the programs of others. Until cancelled."""
        self._said.clear()
        while True:
            found = read()
            for gone in self._said.keys() - found.keys():
                del self._said[gone]
            for node, programs in found.items():
                await self._say(node, "; ".join(programs))
            await asyncio.sleep(LOOK_SECONDS)

    async def _say(self, node: NodeName, programs: str) -> None:
        seed = f"{node} {programs} {instant()[:10]}"
        if self._said.get(node) == seed:
            return
        involved = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node}  # the kubelet's own form
        message = f"{programs}: runs before Yett's and is left alone; yett migrate says what to turn off"
        try:
            await post_warning(self._api, involved, reason=FOREIGN_ENFORCER, message=message, seed=seed)
        except KubeError as error:
            _log.info("event not written", node=node, reason=str(error))
            return
        self._said[node] = seed
