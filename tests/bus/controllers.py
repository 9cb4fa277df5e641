"""Real controller processes for tests: manifests in a folder, log lines as they come, stopped by process id."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from schemas import wire
from schemas.status import ControllerStatus
from tests.bus.harness import eventually
from tests.nats_server import NatsServer

ROOT = Path(__file__).parents[2]

SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u1, labels: {app: web}}
spec: {nodeName: node-a}
status: {phase: Running, podIPs: [{ip: 10.0.0.5}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop, uid: u2}
spec: {podSelector: {}, policyTypes: [Egress, Ingress]}
"""


class ControllerProcess:
    """One ``python -m services.controller``."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.process = process
        self.name = name
        self.log: list[dict[str, Any]] = []
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            text = line.decode()
            self.log.append(json.loads(text) if text.startswith("{") else {"event": text.strip()})

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of one kind."""
        return [line for line in self.log if line["event"] == event]

    async def until_said(self, event: str, times: int = 1) -> dict[str, Any]:
        """Wait for the n-th line of a kind."""
        await eventually(lambda: len(self.said(event)) >= times, 60)
        return self.said(event)[times - 1]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def controller(
    server: NatsServer, folder: Path, name: str, *, inside: Sequence[str] = (), **settings: str
) -> AsyncIterator[ControllerProcess]:
    """A controller on this server, reading this folder; killed at the end if it has not ended.

    ``inside``: a command that runs the one it is given, by exec.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("YETT_")}
    environment |= server.controller_environment()
    environment |= {"YETT_MANIFESTS": str(folder), "YETT_CONTROLLER_NAME": name}
    process = await asyncio.create_subprocess_exec(
        *inside,
        sys.executable,
        "-m",
        "services.controller",
        cwd=ROOT,
        env=environment | {"YETT_LOG_FORMAT": "json"} | settings,
        stderr=asyncio.subprocess.PIPE,
    )
    started = ControllerProcess(process, name)
    try:
        yield started
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await started.reading


async def ask(client: Client) -> ControllerStatus:
    """The leader's status, asked for."""
    reply = await client.request(wire.SUBJECT_STATUS_CONTROLLER_GET, timeout=2)
    status = wire.decode(wire.SUBJECT_STATUS_CONTROLLER, reply.data)
    assert isinstance(status, ControllerStatus)
    return status
