"""Carries out what a step changes: files in the folder, pods in the lab, names at the authoritative server.

Deliberately absent: waiting until a change is enforced (``convergence``, by ``runner``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from services.demo import objects, servers, topology
from services.demo.folder import Objects
from services.demo.lab import Lab
from services.demo.state import DemoError
from services.demo.steps import (
    Action,
    AddNamespace,
    Apply,
    AwaitExpiry,
    Configure,
    MoveName,
    OpenLive,
    Resolve,
)
from services.demo.traffic import KINDS, Traffic

ANSWER_SECONDS = 10.0
"""How long the resolver may go on giving an old address: the TTL is 2 s."""
EXPIRY_SECONDS = topology.DATABASE_TTL_SECONDS + objects.GRACE_SECONDS + 1.0
"""TTL, grace, and a second."""

WRITES = (Apply, Configure, AddNamespace)
"""Actions that change what the controller reads."""


class Actor:
    """Does what the steps say. ``overrides``: settings that no step can change."""

    def __init__(self, lab: Lab, folder: Objects, traffic: Traffic, *, overrides: Mapping[str, str]) -> None:
        self._lab = lab
        self._folder = folder
        self._traffic = traffic
        self._overrides = overrides

    def configure(self, settings: Mapping[str, str]) -> None:
        """The cluster's settings are the demo's own, changed where ``settings`` say."""
        self._folder.write_config({**settings, **self._overrides})

    async def perform(self, action: Action) -> None:
        """One action, to its end; DemoError if the world does not follow."""
        match action:
            case Apply():
                for manifest in action.manifests:
                    self._folder.write_policy(manifest)
            case Configure():
                self.configure(dict(action.settings))
            case AddNamespace():
                self._add_namespace(action.name)
            case Resolve():
                pod = topology.find_pod(action.pod)
                answers = await asyncio.gather(*(self._traffic.resolve(pod, action.name, kind) for kind in KINDS))
                if not all(answers):
                    raise DemoError(f"{action.pod} got no answer for {action.name}")
            case OpenLive():
                await self._open_live(action)
            case MoveName():
                await self._move_name(action)
            case AwaitExpiry():
                await asyncio.sleep(EXPIRY_SECONDS)

    def _add_namespace(self, name: str) -> None:
        """The objects first, as in a cluster: a pod is bound before it runs."""
        pods = [pod for pod in topology.LATE_PODS if pod.namespace == name]
        self._folder.write(f"02-{name}.yaml", objects.render(objects.make_late(name)))
        for pod in pods:
            self._lab.add_pod(pod)
        servers.start_pod_servers(self._lab, pods)

    async def _open_live(self, action: OpenLive) -> None:
        pod = topology.find_pod(action.pod)
        answers = await self._traffic.resolve(pod, action.name)
        if not answers:
            raise DemoError(f"{action.pod} got no answer for {action.name}")
        try:
            await asyncio.to_thread(self._traffic.open_live, pod, answers[0], action.port)
        except OSError as error:
            raise DemoError(f"{action.pod} could not connect to {action.name} at {answers[0]}: {error}") from error

    async def _move_name(self, action: MoveName) -> None:
        servers.move_name(self._lab, action.name, action.addresses, topology.DATABASE_TTL_SECONDS)
        deadline = time.monotonic() + ANSWER_SECONDS
        while action.addresses[0] not in await self._traffic.resolve(topology.find_pod(action.pod), action.name):
            if time.monotonic() > deadline:
                raise DemoError(f"{action.name} is not at {action.addresses[0]} after {ANSWER_SECONDS:.0f} s")
            await asyncio.sleep(0.1)
