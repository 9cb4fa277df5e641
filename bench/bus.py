"""``python -m bench.bus``: what the bus costs, without a kernel.

A manifest edited on disk -> its revision delivered to a follower -> proven by a replica, beside the bare
publish-acknowledge-consume round trip of the same run. The edit flips every endpoint of a namespace of 50 pods.

A real server from the virtual environment, a real controller process, this process as the follower; needs no root.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from nats.aio.client import Client

from schemas import wire
from schemas.terms import NodeName
from services.common import nats
from services.common.follow import Follower
from services.common.messages import CaughtUp
from services.common.settings import CommonSettings
from services.nodeagent.replica import Replica, filters
from tests.nats_server import NatsServer

SAMPLES = 300
PAUSE_SECONDS = 0.06
"""Longer than the interval between revisions, so that each change is the first after a quiet time."""
NODE = NodeName("node-a")
PODS = 50

_POD = """apiVersion: v1
kind: Pod
metadata: {{name: web-{number}, namespace: shop, uid: u{number}, labels: {{app: web}}}}
spec: {{nodeName: node-a}}
status: {{phase: Running, podIPs: [{{ip: 10.0.0.{number}}}]}}
"""
_POLICY = """apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: web, namespace: shop, uid: p}}
spec:
  podSelector: {{}}
  policyTypes: [Ingress]
  ingress: [{{from: [{{ipBlock: {{cidr: 192.0.2.{number}/32}}}}]}}]
"""


def summarise(millis: list[float]) -> dict[str, float]:
    """p50 and p99 of samples in milliseconds."""
    cuts = statistics.quantiles(millis, n=100)
    return {"p50_ms": round(statistics.median(millis), 3), "p99_ms": round(cuts[98], 3), "samples": len(millis)}


async def measure_round_trip(client: Client) -> list[float]:
    """A message published to a stream, acknowledged, and consumed by a follower; milliseconds each."""
    millis = []
    async with Follower(client, wire.STREAM_RESOLUTION, [wire.RESOLUTION_PREFIX + ">"]) as follower:
        while not isinstance(await anext(follower), CaughtUp):
            pass
        for number in range(SAMPLES):
            started = time.perf_counter()
            consumed = asyncio.ensure_future(anext(follower))
            await client.request(f"{wire.RESOLUTION_PREFIX}bench.example.n{number}", b"{}", timeout=2)
            await consumed
            millis.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.002)
    return millis


async def measure_changes(client: Client, folder: Path) -> tuple[list[float], list[float]]:
    """A policy edited on disk -> (its revision acknowledged and delivered, that revision proven); milliseconds each."""
    delivered, proven = [], []
    replica = Replica(NODE)
    async with Follower(client, wire.STREAM_POLICY, filters(NODE)) as follower:
        while not isinstance(item := await anext(follower), CaughtUp):
            for message in item if isinstance(item, list) else ():
                replica.feed(message, 0.0)
        for number in range(SAMPLES):
            await asyncio.sleep(PAUSE_SECONDS)
            started = time.perf_counter()
            _write(folder / "policy.yaml", _POLICY.format(number=number % 250))
            applied = None
            while applied is None:
                item = await anext(follower)
                for message in item if isinstance(item, list) else ():
                    if message.subject == wire.SUBJECT_REVISION:
                        delivered.append((time.perf_counter() - started) * 1000)
                    applied = replica.feed(message, 0.0) or applied
            proven.append((time.perf_counter() - started) * 1000)
    return delivered, proven


def _write(path: Path, text: str) -> None:
    """As an editor that knows its trade: beside, then in place."""
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    beside.replace(path)


@asynccontextmanager
async def _controller(url: str, folder: Path) -> AsyncIterator[None]:
    environment = os.environ | {"YETT_NATS_URL": url, "YETT_MANIFESTS": str(folder), "YETT_LOG_LEVEL": "error"}
    process = subprocess.Popen([sys.executable, "-m", "services.controller"], env=environment)
    try:
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)


async def measure(folder: Path) -> dict[str, dict[str, float]]:
    """All figures, with a server and a controller of its own below ``folder``."""
    manifests = folder / "manifests"
    manifests.mkdir()
    (manifests / "pods.yaml").write_text("---\n".join(_POD.format(number=number) for number in range(1, PODS + 1)))
    _write(manifests / "policy.yaml", _POLICY.format(number=251))
    server = NatsServer(folder)
    server.start()
    client = await nats.connect(CommonSettings(nats_url=server.url, log_level="error"), "bench")
    try:
        async with _controller(server.url, manifests):
            await _until_leading(client)
            bare = await measure_round_trip(client)
            delivered, proven = await measure_changes(client, manifests)
    finally:
        await client.close()
        server.stop()
    return {
        "bare round trip": summarise(bare),
        "manifest event to revision delivered": summarise(delivered),
        "manifest event to revision proven": summarise(proven),
    }


async def _until_leading(client: Client) -> None:
    """Wait for the first revision."""
    async with (
        asyncio.timeout(20),
        Follower(client, wire.STREAM_POLICY, [wire.SUBJECT_REVISION]) as follower,
    ):
        while not isinstance(await anext(follower), list):
            pass


def main() -> None:
    """Print the figures as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(uvloop.run(measure(Path(folder))), indent=1))


if __name__ == "__main__":
    main()
